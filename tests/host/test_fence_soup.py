"""A real soup of three nodes whose fence is needed: a node is cut off, its daemon hangs, its supervisor is killed, the engine
loses its quorum. What a microVM does is told by the time that its QEMU has had: the guest counts, and what stands has none.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from primordia.client.answers import ready
from primordia.host import fences, namespaces
from primordia.host.shape import Shape
from primordia.host.soup import netns_name, read_config
from primordia.host.up import spawn_supervisor
from primordia.kit import command, freezer, netns
from primordia.kit.identity import running_pid
from primordia.supervisor import control
from primordia.supervisor.main import PID_FILE, SOCKET_FILE
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Context, Event, Lifeform, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

COUNTS = ("/bin/sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; usleep 20000; done")
TIMINGS = {"ttl_s": 10, "daemon_silence_s": 8}
ASK = """
import json, sys, time
from primordia.domain.lease import death_key
from primordia.supervisor.engine_client import EngineAwayError, EngineClient, Identity
pki, server, node = sys.argv[1:]
identity = Identity(f"{pki}/engine-ca.crt", f"{pki}/engine.crt", f"{pki}/engine.key")
client, until = EngineClient([server], identity, 5.0), time.monotonic() + 20
while True:
    try:
        found = client.get(death_key(node))
        break
    except EngineAwayError:  # it chooses another leader
        if time.monotonic() > until:
            raise
        time.sleep(0.1)
print(json.dumps(None if found is None else json.loads(found.value)))
"""


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 1), timings=TIMINGS) as built:

        async def populate() -> None:
            async with built.client() as client:
                for node in built.names:
                    await client.wait(Node, node, ready, timeout_s=120)
                await running(client, lifeform("counts", command=COUNTS))

        asyncio.run(populate())
        yield built


@dataclass(frozen=True)
class Guest:
    """The guest that counts: its node, the pid of its QEMU, and who else there is to ask."""

    node: str
    pid: int
    others: tuple[str, ...]


def status(soup: Many, node: str) -> dict[str, Any]:
    return control.ask(soup.paths(node).run / SOCKET_FILE, "status")


def life(soup: Many, node: str) -> int:
    return int(status(soup, node)["lease"]["createRevision"])


def frozen(soup: Many, node: str) -> bool:
    return bool(status(soup, node)["fence"]["frozen"])


def death(soup: Many, node: str, by: str) -> dict[str, Any] | None:
    """The node's death as the engine has it, by the word of another node."""
    config = read_config(soup.paths(by).config)
    asked = [str(soup.paths(by).pki), f"https://{config.address}:2379", node]
    argv = netns.argv_in(config.netns, [sys.executable, "-c", ASK, *asked])
    found: dict[str, Any] | None = json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=30).stdout)
    return found


async def counting(soup: Many, *servers: str) -> Guest:
    """The guest, once it runs and counts."""
    found: Context | None = None

    async def runs() -> bool:
        nonlocal found
        async with soup.client(*servers) as client:
            found = await client.get(Context, "counts.main")
            phase = (await client.get(Lifeform, "counts")).status.phase
        return phase == "Running" and found.status.pid != 0 and not await stands(found.status.pid, 0.3)

    await eventually("the guest runs", runs)
    assert found is not None
    return Guest(found.spec.node, found.status.pid, tuple(name for name in soup.names if name != found.spec.node))


def ticks(pid: int) -> int:
    """The time that a process has had; -1 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return -1 if fields[0] == b"Z" else int(fields[11]) + int(fields[12])


async def counts(pid: int) -> None:
    before = ticks(pid)

    async def more() -> bool:
        return ticks(pid) > before >= 0

    await eventually("the guest counts", more)


async def stands(pid: int, seconds: float = 1.5) -> bool:
    """Whether it counts nothing for so long, or is gone."""
    before = ticks(pid)
    await asyncio.sleep(seconds)
    return ticks(pid) in (before, -1)


async def until(what: str, holds: Callable[[], Any]) -> None:
    async def look() -> bool:
        return bool(holds())

    await eventually(what, look)


async def link(soup: Many, node: str, state: str) -> None:
    argv = ["ip", "link", "set", f"port{node[1:]}", state]
    await command.run(netns.argv_in(netns_name(soup.soup.name, namespaces.SWITCH), argv), timeout_s=20)


@asynccontextmanager
async def cut_off(soup: Many, node: str) -> AsyncIterator[None]:
    await link(soup, node, "down")
    try:
        yield
    finally:
        await link(soup, node, "up")


async def test_a_node_cut_off_for_a_moment_stands_by_its_own_clock_and_goes_on(soup: Many) -> None:
    guest = await counting(soup)
    async with cut_off(soup, guest.node):
        await until("it stands", lambda: frozen(soup, guest.node))
        said = status(soup, guest.node)
        assert await stands(guest.pid) and ticks(guest.pid) > 0
        (word,) = [each for each in fences.look(soup.soup.name) if each.frozen]
        assert word.node == guest.node and "could not be renewed" in word.sentence()
    since_renewal = said["lease"]["ackAgeSeconds"] - said["fence"]["frozenSeconds"]
    assert 4.0 <= since_renewal < TIMINGS["ttl_s"], said
    assert "could not be renewed" in said["fence"]["why"]
    await until("it goes on", lambda: not frozen(soup, guest.node))
    assert await counting(soup, *guest.others) == guest
    async with soup.client(*guest.others) as client:
        date = await client.exec("counts", ["date", "+%s"])
        assert abs(int(date.stdout) - time.time()) < 2, "its clock went on"

        async def told() -> bool:
            events = (await client.list(Event, all_namespaces=True)).items
            return {"Frozen", "Thawed"} <= {each.reason for each in events if each.involved_object.name == guest.node}

        await eventually("the soup is told", told)


async def test_one_that_is_declared_dead_stands_while_another_runs_and_is_killed_when_it_is_back(soup: Many) -> None:
    guest = await counting(soup)
    before, daemon = life(soup, guest.node), soup.pid(guest.node, "daemon")
    async with cut_off(soup, guest.node):
        await until("it stands", lambda: frozen(soup, guest.node))
        stood = ticks(guest.pid)
        successor = await counting(soup, *guest.others)
        assert successor.node != guest.node
        assert ticks(guest.pid) == stood, "two have run"
    await until("what stood is gone", lambda: ticks(guest.pid) == -1)
    await until("a new life", lambda: life(soup, guest.node) > before and not frozen(soup, guest.node))
    assert soup.pid(guest.node, "daemon") != daemon
    assert await counting(soup) == successor


async def test_a_daemon_that_hangs_is_killed_with_its_microvms_and_that_is_proved(soup: Many) -> None:
    guest = await counting(soup)
    before, daemon = life(soup, guest.node), soup.pid(guest.node, "daemon")
    os.kill(daemon, signal.SIGSTOP)
    await until("what ran is gone", lambda: ticks(guest.pid) == -1)
    proof: dict[str, Any] | None = None

    async def proved() -> bool:
        nonlocal proof
        proof = await asyncio.to_thread(death, soup, guest.node, guest.others[0])
        return proof is not None and (proof["life"], proof["by"]) == (before, "node")

    await eventually("its proof is written", proved)
    assert proof is not None and "daemon" in proof["reason"]
    await until("a new life", lambda: life(soup, guest.node) > before and soup.pid(guest.node, "daemon") not in (0, daemon))
    assert (await counting(soup, *guest.others)).pid != guest.pid


async def test_without_a_supervisor_it_stands_and_the_next_one_lets_it_go_on(soup: Many) -> None:
    guest = await counting(soup)
    supervisor = soup.kill(guest.node, "supervisor")
    group = f"primordia/{soup.soup.name}/{guest.node}/vm"
    await until("it stands with nobody but the warden there", lambda: freezer.stands(group))
    assert await stands(guest.pid)
    process = spawn_supervisor(soup.paths(guest.node))
    process.returncode = 0  # it is nobody's child from here on
    await until("a supervisor", lambda: running_pid(soup.paths(guest.node).run / PID_FILE) not in (0, supervisor))
    assert await counting(soup, *guest.others) == guest


async def test_without_quorum_all_go_on_until_one_is_cut_off(soup: Many) -> None:
    guest = await counting(soup)
    with soup.frozen(guest.others[0], "engine"), soup.frozen(guest.others[1], "engine"):
        await until(
            "the engine is missed", lambda: all(status(soup, each)["lease"]["doubtfulSeconds"] > 4 for each in soup.names)
        )
        assert not any(frozen(soup, node) for node in soup.names), status(soup, guest.node)
        await counts(guest.pid)
        async with cut_off(soup, guest.node):
            await until("it stands", lambda: frozen(soup, guest.node))
            assert await stands(guest.pid)
    await until("all go on", lambda: not any(frozen(soup, node) for node in soup.names))
    # Whether the leases outlive that is the engine's affair; nobody can have been declared dead, so all go on.
    assert await counting(soup) == guest

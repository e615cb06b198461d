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
from pathlib import Path
from typing import Any

import pytest

from primordia.client.aio import AsyncClient
from primordia.client.answers import ready
from primordia.host import namespaces
from primordia.host.shape import Shape
from primordia.host.soup import netns_name
from primordia.host.up import spawn_supervisor
from primordia.kit import command, netns
from primordia.kit.identity import running_pid
from primordia.supervisor import control
from primordia.supervisor.main import PID_FILE, SOCKET_FILE
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Context, Lifeform, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

COUNTS = ("/bin/sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; usleep 20000; done")
TIMINGS = {"ttl_s": 9, "daemon_silence_s": 8}
FAR = "n3"
ASK = """
import json, sys
from primordia.domain.lease import death_key, lease_key
from primordia.supervisor.engine_client import EngineClient, Identity
pki, node, death = sys.argv[1:]
identity = Identity(f"{pki}/engine-ca.crt", f"{pki}/engine.crt", f"{pki}/engine.key")
client = EngineClient(["https://10.77.0.1:2379"], identity, 5.0)
if death:
    client.bury(lease_key(node), 0, death_key(node), death.encode())
found = client.get(death_key(node))
print(json.dumps(None if found is None else json.loads(found.value)))
"""


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 1), timings=TIMINGS) as built:

        async def populate() -> None:
            async with built.client() as client:
                for node in built.names:
                    await client.wait(Node, node, ready, timeout_s=120)
                await running(client, lifeform("counts", node=FAR, command=COUNTS))

        asyncio.run(populate())
        yield built


def status(soup: Many, node: str) -> dict[str, Any]:
    return control.ask(soup.paths(node).run / SOCKET_FILE, "status")


def life(soup: Many, node: str = FAR) -> int:
    return int(status(soup, node)["lease"]["createRevision"])


def frozen(soup: Many, node: str = FAR) -> bool:
    return bool(status(soup, node)["fence"]["frozen"])


def death(soup: Many, node: str = FAR, *, declare: int = 0) -> dict[str, Any] | None:
    """The node's death as the engine has it; with `declare`, one that is put there first, as controllers would."""
    word = json.dumps({"life": declare, "by": "controllers", "reason": "a test"}) if declare else ""
    argv = netns.argv_in(netns_name(soup.soup.name, "n1"), [sys.executable, "-c", ASK, str(soup.paths("n1").pki), node, word])
    found: dict[str, Any] | None = json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=30).stdout)
    return found


async def microvm(client: AsyncClient) -> int:
    """The pid of the counting guest's QEMU, once it runs and is ready."""
    pid = 0

    async def runs() -> bool:
        nonlocal pid
        pid = (await client.get(Context, "counts.main")).status.pid
        return pid != 0 and (await client.get(Lifeform, "counts")).status.phase == "Running" and ticks(pid) > 0

    await eventually("the guest runs", runs)
    return pid


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


async def stands(pid: int) -> bool:
    """Whether it counts nothing for a second and a half."""
    before = ticks(pid)
    await asyncio.sleep(1.5)
    return ticks(pid) == before >= 0


async def until(what: str, holds: Callable[[], Any]) -> None:
    async def look() -> bool:
        return bool(holds())

    await eventually(what, look)


async def link(soup: Many, node: str, state: str) -> None:
    argv = ["ip", "link", "set", f"port{node[1:]}", state]
    await command.run(netns.argv_in(netns_name(soup.soup.name, namespaces.SWITCH), argv), timeout_s=20)


@asynccontextmanager
async def cut_off(soup: Many, node: str = FAR) -> AsyncIterator[None]:
    await link(soup, node, "down")
    try:
        yield
    finally:
        await link(soup, node, "up")


async def test_a_node_cut_off_for_a_moment_stands_by_its_own_clock_and_goes_on(soup: Many) -> None:
    async with soup.client("n1", "n2") as client:
        pid, before = await microvm(client), life(soup)
        async with cut_off(soup):
            await until("it stands", lambda: frozen(soup))
            said = status(soup, FAR)
            assert await stands(pid)
        since_renewal = said["lease"]["ackAgeSeconds"] - said["fence"]["frozenSeconds"]
        assert 4.0 <= since_renewal < TIMINGS["ttl_s"], said
        assert "could not be renewed" in said["fence"]["why"]
        await until("it goes on", lambda: not frozen(soup))
        await counts(pid)
        assert await microvm(client) == pid
        assert life(soup) >= before
        assert death(soup) is None
        guest = await client.exec("counts", ["date", "+%s"])
        assert abs(int(guest.stdout) - time.time()) < 2, "its clock has been set again"


async def test_one_that_was_declared_dead_meanwhile_is_killed_and_begins_a_new_life(soup: Many) -> None:
    async with soup.client("n1", "n2") as client:
        pid, before, daemon = await microvm(client), life(soup), soup.pid(FAR, "daemon")
        async with cut_off(soup):
            await until("it stands", lambda: frozen(soup))
            await asyncio.sleep(TIMINGS["ttl_s"])
            if death(soup) is None:
                death(soup, declare=before)
            assert await stands(pid)
        await until("what ran is gone", lambda: ticks(pid) == -1)
        await until("a new life", lambda: life(soup) > before and not frozen(soup))
        assert soup.pid(FAR, "daemon") != daemon
        again = await microvm(client)
        assert again != pid
        await counts(again)


async def test_a_daemon_that_hangs_is_killed_with_its_microvms_and_that_is_proved(soup: Many) -> None:
    async with soup.client("n1", "n2") as client:
        pid, before, daemon = await microvm(client), life(soup), soup.pid(FAR, "daemon")
        os.kill(daemon, signal.SIGSTOP)
        await until("what ran is gone", lambda: ticks(pid) == -1)
        proof = await asyncio.to_thread(death, soup)

        async def proved() -> bool:
            nonlocal proof
            proof = await asyncio.to_thread(death, soup)
            return proof is not None and (proof["life"], proof["by"]) == (before, "node")

        await eventually("its proof is written", proved)
        assert proof is not None and "daemon" in proof["reason"]
        await until("a new life", lambda: life(soup) > before and soup.pid(FAR, "daemon") not in (0, daemon))
        await counts(await microvm(client))


async def test_without_a_supervisor_it_stands_and_the_next_one_lets_it_go_on(soup: Many) -> None:
    async with soup.client("n1", "n2") as client:
        pid = await microvm(client)
        supervisor = soup.kill(FAR, "supervisor")
        before = ticks(pid)

        async def quiet() -> bool:
            return await stands(pid)

        await eventually("it stands with nobody but the warden there", quiet)
        assert ticks(pid) > before
        process = spawn_supervisor(soup.paths(FAR))
        process.returncode = 0
        await until("a supervisor", lambda: running_pid(soup.paths(FAR).run / PID_FILE) not in (0, supervisor))
        await counts(pid)
        assert await microvm(client) == pid


async def test_without_quorum_all_go_on_until_one_is_cut_off(soup: Many) -> None:
    async with soup.client() as client:
        pid = await microvm(client)
        with soup.frozen("n1", "engine"), soup.frozen("n2", "engine"):
            await until(
                "the engine is missed", lambda: all(status(soup, node)["lease"]["doubtfulSeconds"] > 4 for node in soup.names)
            )
            assert not any(frozen(soup, node) for node in soup.names), status(soup, FAR)
            await counts(pid)
            async with cut_off(soup):
                await until("it stands", lambda: frozen(soup))
                assert await stands(pid)
        await until("all go on", lambda: not any(frozen(soup, node) for node in soup.names))
        await counts(pid)
        # Whether the leases outlive that is the engine's affair; nobody can have been declared dead, so all go on.
        assert await microvm(client) == pid

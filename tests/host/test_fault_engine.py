"""Engine servers are killed under load, freeze, run out of disk, lose their data: the soup goes on, and says what is wrong.

PRIMORDIA_FAULT_LEADERS (2) is how often the leader is killed under load, every PRIMORDIA_FAULT_EVERY (8) seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from primordia.client.aio import AsyncClient
from primordia.client.answers import decode, ready
from primordia.host.shape import Shape
from primordia.host.soup import read_config
from primordia.probe.soak import Soak
from primordia.supervisor import engine_data
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.conditions import find
from primordia.wire.engine import MEMBERS, EngineStatus, SeatStatus
from primordia.wire.nodeconfig import Engine
from primordia.wire.resources import Context, Lifeform, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

LEADERS = int(os.environ.get("PRIMORDIA_FAULT_LEADERS", "2"))
EVERY_S = float(os.environ.get("PRIMORDIA_FAULT_EVERY", "8"))
AWAY_AT_MOST_S = 30.0
MAJORITY_AWAY_S = 15.0
SMALL_DISK_BYTES = 384 * 2**20


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 1)) as built:

        async def populate() -> None:
            async with built.client() as client:
                for node in built.names:
                    await client.wait(Node, node, ready, timeout_s=120)
                await running(client, *(lifeform(f"life-{node}", node=node) for node in built.names))

        asyncio.run(populate())
        yield built


@pytest.fixture
async def client(soup: Many) -> AsyncIterator[AsyncClient]:
    async with soup.client() as client:
        machines = soup.runs()
        yield client
        # Whatever was done to the engine, nobody's microVM has noticed.
        assert soup.runs() == machines
        assert all(one.status.restarts == 0 for one in (await client.list(Context)).items)


async def seats(client: AsyncClient) -> dict[str, SeatStatus]:
    found = decode(EngineStatus, await client.transport.request("GET", MEMBERS))
    return {seat.node: seat for seat in found.seats}


async def leader_of(client: AsyncClient) -> str:
    """The node whose engine server leads."""
    found = ""

    async def known() -> bool:
        nonlocal found
        found = next((name for name, seat in (await seats(client)).items() if seat.leader), "")
        return bool(found)

    await eventually("the engine has a leader", known)
    return found


async def all_well(client: AsyncClient) -> None:
    async def well() -> bool:
        found = (await seats(client)).values()
        return len(found) == 3 and all(seat.member and seat.answers and not seat.trouble for seat in found)

    await eventually("all three servers answer", well)


async def write(client: AsyncClient) -> None:
    await client.patch(Lifeform, "life-n1", {"metadata": {"annotations": {"touched": os.urandom(4).hex()}}})


async def told(client: AsyncClient, node: str, reason: str) -> str:
    """Wait until the node says that of its engine server, and so does `engine status`."""

    async def said() -> bool:
        condition = find((await client.get(Node, node)).status.conditions, "EngineServer")
        return condition is not None and (condition.status, condition.reason) == ("False", reason)

    await eventually(f"{node} says {reason}", said)
    return (await seats(client))[node].trouble


# ---------------------------------------------------------------- under load


async def test_leaders_die_and_freeze_and_the_majority_goes_and_nothing_else_notices(soup: Many, client: AsyncClient) -> None:
    """A minute of `make soak`, through the same code."""
    here = Soak(soup, client, print)
    async with here.unmoved():
        gaps = await here.leaders_killed(LEADERS, EVERY_S)
        gaps += await here.leader_frozen(1)
        await here.quorum_lost(MAJORITY_AWAY_S)
    assert max(gaps) < AWAY_AT_MOST_S


# ---------------------------------------------------------------- one server


async def test_a_frozen_member_is_told_and_comes_back(soup: Many, client: AsyncClient) -> None:
    with soup.frozen("n2", "engine"):
        await eventually("writes go on", lambda: _written(client))
        assert "does not answer" in await told(client, "n2", "NotAnswering")
        await write(client)
    await all_well(client)


async def _written(client: AsyncClient) -> bool:
    await write(client)
    return True


@contextlib.contextmanager
def small_disk(soup: Many, node: str) -> Iterator[Path]:
    """Put a node's server on a small disk of its own. At the end that disk is gone, with all that is on it."""
    folder = soup.paths(node).engine
    before = folder.with_name("engine-before")
    with soup.frozen(node, "engine"):  # a copy of a log that moves would be a broken one
        folder.rename(before)
        folder.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "none", str(folder)], check=True, timeout=20)
        shutil.copytree(before, folder, dirs_exist_ok=True)
        shutil.rmtree(before)
        soup.kill(node, "engine")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


async def test_a_disk_fills_up_and_then_is_lost(soup: Many, client: AsyncClient) -> None:
    with small_disk(soup, "n3") as folder:
        await all_well(client)
        ballast = folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        assert "disk of its engine server is full" in await told(client, "n3", "DiskFull")
        for _ in range(20):
            await eventually("the other servers write", lambda: _written(client))
        ballast.unlink()
        await all_well(client)
    assert engine_of(soup, "n3").initial_state == "new"
    soup.kill("n3", "engine")

    async def replaced() -> bool:
        return engine_of(soup, "n3").initial_state == "existing" and engine_data.has_data(soup.paths("n3").engine)

    await eventually("a new member takes its place", replaced)
    await all_well(client)
    await write(client)


def engine_of(soup: Many, node: str) -> Engine:
    """What the node is told of the engine."""
    return read_config(soup.paths(node).config).engine

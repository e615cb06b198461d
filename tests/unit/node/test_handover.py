"""The last of a volume's data: cut when nothing writes any more, on the next owner before it is said, and said once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.errors import TemporaryError
from primordia.node.live import Live
from primordia.testing.copies import CopyWorld, copy_world
from primordia.testing.volumes import content, put
from primordia.wire.resources import Volume
from primordia.wire.volumes import HandedOver, Handover, VolumeStatus, owned_by

BLOCK = 4096
FIRST, SECOND = Handover(to="n2", epoch=1, at="first"), Handover(to="n2", epoch=1, at="second")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopyWorld]:
    pools = {}
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
        pools[name] = MemoryVolumes(tmp_path / name)
    async with copy_world(pools, tmp_path) as made:
        yield made


async def write(world: CopyWorld, node: str, uid: str, text: bytes) -> None:
    await put(await world.nodes[node].pool.disk(uid), 0, text * BLOCK)


async def ask(world: CopyWorld, handover: Handover | None) -> None:
    await world.status(lambda status: msgspec.structs.replace(status, handover=handover, handed_over=None))


async def said(world: CopyWorld, holds: Callable[[VolumeStatus], Any]) -> VolumeStatus:
    async with asyncio.timeout(60):
        while not holds(status := (await world.seen()).status):
            await world.clock.sleep(0.01)
    return status


async def test_all_that_was_written_is_there_when_it_is_said(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await write(world, "n1", owned.uid, b"1")
    await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    await write(world, "n1", owned.uid, b"2")
    guest = cast(Live, SimpleNamespace(machine=object(), guest=None))
    owned.users.append(guest)
    await ask(world, FIRST)
    await world.clock.sleep(0.5)
    assert (await world.seen()).status.handed_over is None, "somebody still has the disk open"
    owned.users.remove(guest)
    status = await said(world, lambda status: status.handed_over)
    assert status.handed_over == HandedOver(to="n2", at="first", number=2)
    assert status.last_sync is not None
    assert (status.last_sync.number, status.last_sync.copies) == (2, ("n2",))
    await world.status(
        lambda status: msgspec.structs.replace(owned_by(status, "n2", 2), replicas=("n1",), handover=None, handed_over=None)
    )
    there = world.nodes["n2"]
    await world.until(lambda: owned.uid in there.keeper.owned and there.keeper.owned[owned.uid].here)
    assert (await there.pool.disk(owned.uid)).read_bytes()[:BLOCK] == b"2" * BLOCK
    await write(world, "n2", owned.uid, b"3")
    assert (await there.cutter.cut(there.keeper.owned[owned.uid])).number == 3
    await world.holds("n1", owned.uid, 3)
    assert (await content(world.nodes["n1"].pool, owned.uid, 3))[:BLOCK] == b"3" * BLOCK, "the old owner is a holder now"


async def test_a_wish_that_was_taken_back_says_nothing_of_the_next_one(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await write(world, "n1", owned.uid, b"1")
    await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    link = world.nodes["n1"].links["n2"]
    await link.cut()
    await write(world, "n1", owned.uid, b"2")
    await ask(world, FIRST)
    await world.until(lambda: owned.newest is not None and owned.newest.number == 2)
    await ask(world, None)
    await world.until(lambda: not owned.is_handed_over)
    await write(world, "n1", owned.uid, b"3")
    await ask(world, SECOND)
    await world.clock.sleep(0.2)
    assert (await world.seen()).status.handed_over is None
    link.mend()
    status = await said(world, lambda status: status.handed_over)
    assert status.handed_over == HandedOver(to="n2", at="second", number=3)


async def test_one_that_never_was_anything_needs_nothing_and_another_epoch_is_not_ours(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await world.nodes["n1"].pool.destroy(owned.uid)
    await ask(world, Handover(to="n2", epoch=7, at="other"))
    await world.clock.sleep(0.3)
    assert (await world.seen()).status.handed_over is None
    await world.status(lambda status: msgspec.structs.replace(status, size_bytes=0))
    await ask(world, FIRST)
    status = await said(world, lambda status: status.handed_over)
    assert status.handed_over == HandedOver(to="n2", at="first", number=0)
    assert status.last_sync is None


async def test_its_disk_is_not_opened_meanwhile(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await world.nodes["n1"].links["n2"].cut()
    await ask(world, FIRST)
    await world.until(lambda: owned.is_handed_over)
    volume: Volume = owned.volume
    spec = SimpleNamespace(volume_uid=owned.uid, volume=volume.metadata.name, epoch=1)
    live = cast(Live, SimpleNamespace(uid="x", spec=spec, machine=None))
    with pytest.raises(TemporaryError, match="handed over"):
        async with world.nodes["n1"].keeper.disk_for(live):
            pass

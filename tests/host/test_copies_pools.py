"""Copies between real btrfs pools over real TLS: right bit for bit, resumed after the holder's daemon was another, healed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from primordia.drivers.volumes_btrfs import ioctl
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.testing.copies import CopyWorld, copy_world
from primordia.testing.volumes import BLOCK, RealPool, content, put, real_pool, stream

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts pools, which needs root")

SIZE = 16 << 20


@pytest.fixture
async def pools(tmp_path: Path) -> AsyncIterator[dict[str, RealPool]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(real_pool(tmp_path / name)) for name in ("n1", "n2", "n3")}


@pytest.fixture
async def world(pools: dict[str, RealPool], tmp_path: Path) -> AsyncIterator[CopyWorld]:
    async with copy_world({name: pool.volumes for name, pool in pools.items()}, tmp_path) as made:
        yield made


def flip(pool: RealPool, uid: str, number: int, offset: int) -> None:
    """A bit of a snapshot is another, as a bad disk would have it."""
    snapshot = pool.point / "volumes" / uid / "snapshots" / f"{number:012d}"
    ioctl.set_readonly(snapshot, False)
    descriptor = os.open(snapshot / "disk", os.O_RDWR)
    try:
        (byte,) = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte ^ 1]), offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    ioctl.set_readonly(snapshot, True)


async def test_syncs_on_real_pools_and_healing(world: CopyWorld, pools: dict[str, RealPool]) -> None:
    owned = await world.volume(replicas=("n2", "n3"), size=SIZE, acks=2)
    node, chance = world.nodes["n1"], random.Random(1)
    disk = await node.pool.disk(owned.uid)
    took_ms = []
    for _ in range(12):
        for _ in range(8):
            await put(disk, chance.randrange(SIZE // BLOCK) * BLOCK, chance.randbytes(BLOCK))
        begun_s = world.clock.boottime()
        result = await node.copies.syncs.sync(owned, 60.0)
        took_ms.append((world.clock.boottime() - begun_s) * 1000)
        assert result.copies == ("n2", "n3")
    print("sync of 8 blocks, two copies, ms:", sorted(round(each) for each in took_ms))
    number = result.number
    for name in ("n2", "n3"):
        await world.holds(name, owned.uid, number)
        assert await content(world.nodes[name].pool, owned.uid, number) == disk.read_bytes()
    await asyncio.to_thread(flip, pools["n2"], owned.uid, number, 70000)
    found = {each.node: each for each in (await node.copies.scrubber.scrub(owned)).copies}
    assert (found["n2"].damaged, found["n2"].healed) == ((number,), (number,))
    assert not found["n1"].damaged
    assert not found["n3"].damaged
    assert await world.nodes["n2"].pool.verify(owned.uid, number) == ()


async def test_what_was_cut_off_survives_the_process(pools: dict[str, RealPool]) -> None:
    one, two = pools["n1"], pools["n2"]
    await one.volumes.create("a", SIZE)
    await put(await one.volumes.disk("a"), 0, random.Random(2).randbytes(12 << 20))
    await one.volumes.cut("a", epoch=1)
    delta = await one.volumes.changes("a", 1)
    pieces = await one.volumes.read("a", 1, delta.ranges)

    async def cut_off() -> AsyncIterator:  # type: ignore[type-arg]
        for piece in pieces[:9]:
            yield piece
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await two.volumes.accept(delta, cut_off())
    await two.volumes.close()
    two.volumes = await BtrfsVolumes.open(two.point)
    partial = await two.volumes.partial("a")
    assert partial is not None
    assert partial.bytes_done == sum(each.range.length for each in pieces[:9])
    assert await two.volumes.accept(delta, stream(pieces[9:]), begin=partial.bytes_done)
    await two.volumes.settle("a")
    assert await content(two.volumes, "a", 1) == await content(one.volumes, "a", 1)

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
from primordia.kit.errors import TemporaryError
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
    await world.holds("n2", owned.uid, number)  # healed is what it has for good; it is published a moment later
    assert await world.nodes["n2"].pool.verify(owned.uid, number) == ()


async def test_a_copy_takes_no_more_of_the_link_than_its_bandwidth(world: CopyWorld) -> None:
    limit = 1 << 20
    owned = await world.volume(replicas=("n2",), size=SIZE, bandwidth=str(limit))
    node, link = world.nodes["n1"], world.nodes["n1"].links["n2"]
    await put(await node.pool.disk(owned.uid), 0, BLOCK * b"x")
    await world.holds("n2", owned.uid, (await node.cutter.cut(owned)).number)
    await put(await node.pool.disk(owned.uid), 0, random.Random(4).randbytes(4 << 20))
    begun_s, before = world.clock.boottime(), link.carried
    await world.holds("n2", owned.uid, (await node.cutter.cut(owned)).number)
    taken_s, carried = world.clock.boottime() - begun_s, link.carried - before
    print(f"{carried} bytes in {taken_s:.2f} s: {carried / taken_s:.0f} a second, {limit} allowed")
    assert carried >= 4 << 20
    burst, last = limit / 4, 256 << 10
    assert carried - burst - last <= limit * 1.02 * taken_s


async def test_a_full_holder_says_so_and_heals_by_itself(world: CopyWorld, pools: dict[str, RealPool]) -> None:
    owned = await world.volume(replicas=("n2",), size=SIZE)
    node, holder = world.nodes["n1"], pools["n2"]
    disk, chance = await node.pool.disk(owned.uid), random.Random(5)
    await put(disk, 0, chance.randbytes(1 << 20))
    first = (await node.copies.syncs.sync(owned, 60.0)).number
    await world.holds("n2", owned.uid, first)
    before = await content(holder.volumes, owned.uid, first)
    filler = holder.point / "filler"
    await asyncio.to_thread(fill, filler, (await holder.volumes.pool()).room_bytes - (1 << 20))
    await put(disk, 0, chance.randbytes(12 << 20))
    with pytest.raises(TemporaryError) as caught:
        await node.copies.syncs.sync(owned, 3.0)
    assert "no room" in str(caught.value)
    (copy,) = (await world.seen()).status.copies
    assert copy.state == "Failed" and "no room" in copy.message, copy
    assert await holder.volumes.verify(owned.uid, first) == ()
    assert await content(holder.volumes, owned.uid, first) == before
    filler.unlink()
    number = (await node.copies.syncs.sync(owned, 120.0)).number
    await world.holds("n2", owned.uid, number)
    assert await content(holder.volumes, owned.uid, number) == disk.read_bytes()


def fill(file: Path, size: int) -> None:
    """Something else takes that much of a pool, for good."""
    with file.open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, size)
        os.fsync(filler.fileno())


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

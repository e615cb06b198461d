"""Pools on real loop devices: what is refused and how it is said, and a pool that runs full."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primordia.drivers.volumes_btrfs import pool as pools
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.kit.errors import AlreadyExistsError, CapacityError, ConflictError, InvalidError, TemporaryError
from primordia.testing.volumes import BLOCK, POOL_BYTES, RealPool, put, real_pool


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[RealPool]:
    async with real_pool(tmp_path / "pool") as made:
        yield made


async def test_refusals_and_mounts(pool: RealPool, tmp_path: Path) -> None:
    assert pool.file.stat().st_blocks * 512 >= POOL_BYTES  # a full host cannot hurt it
    with pytest.raises(AlreadyExistsError):
        await pools.make_loop_pool(pool.file, POOL_BYTES)
    with pytest.raises(InvalidError):
        await pools.make_loop_pool(tmp_path / pools.LOOP_FILE, 1 << 20)
    with pytest.raises(CapacityError):
        await pools.make_loop_pool(tmp_path / pools.LOOP_FILE, 1 << 60)
    with pytest.raises(InvalidError):
        await pools.make_device_pool(pool.file)
    await pools.mount_pool(pool.file, pool.point)  # it is already
    with pytest.raises(ConflictError, match="umount"):
        await pools.mount_pool(pool.file, tmp_path / "elsewhere")
    with pytest.raises(TemporaryError, match="Another process"):
        await BtrfsVolumes.open(pool.point)
    assert [each.point for each in pools.mounted_pools() if each.file == pool.file] == [pool.point]
    await pool.volumes.create("a", 1 << 20)
    descriptor = os.open(await pool.volumes.disk("a"), os.O_RDONLY)
    try:
        with pytest.raises(ConflictError, match="in use"):
            await pools.unmount_pool(pool.point)
    finally:
        os.close(descriptor)
    await pool.volumes.close()
    await pools.unmount_pool(pool.point)
    await pools.unmount_pool(pool.point)
    assert pool.file not in {each.file for each in pools.mounted_pools()}


async def test_a_pool_refuses_before_it_is_full(pool: RealPool) -> None:
    await pool.volumes.create("a", 224 << 20)
    disk = await pool.volumes.disk("a")
    await put(disk, 0, b"1" * BLOCK)
    first = await pool.volumes.cut("a", epoch=1)
    offset, room = BLOCK, (await pool.volumes.pool()).room_bytes
    while room > 0 and offset + (4 << 20) < 224 << 20:
        await put(disk, offset, os.urandom(4 << 20))
        offset += 4 << 20
        room = (await pool.volumes.pool()).room_bytes
    assert room == 0
    for refused in (
        pool.volumes.cut("a", epoch=1),
        pool.volumes.create("b", 1 << 20),
        pool.volumes.clone("a", "c"),
    ):
        with pytest.raises(CapacityError, match="no room"):
            await refused
    await put(disk, 0, b"2" * BLOCK)  # the reserve is the guest's
    assert await pool.volumes.verify("a", 1) == ()
    assert await pool.volumes.snapshots("a") == (first,)
    await pool.volumes.restore("a", 1, epoch=2)  # which frees what was written since
    assert (await pool.volumes.disk("a")).read_bytes()[: 2 * BLOCK] == b"1" * BLOCK + bytes(BLOCK)

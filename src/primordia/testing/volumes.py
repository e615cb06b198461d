"""Disks that tests write into, and deltas carried from one pool to another, whole or disturbed."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from primordia.domain.ranges import Range
from primordia.domain.snapshots import Delta
from primordia.drivers.volumes_btrfs import pool
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.kit import files
from primordia.ports.volumes import Piece, Volumes

BLOCK = 4096


def write(disk: Path, offset: int, data: bytes, *, flush: bool = True) -> None:
    """Write as a microVM does; `flush` is its flush command."""
    descriptor = os.open(disk, os.O_WRONLY)
    try:
        os.pwrite(descriptor, data, offset)
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def put(disk: Path, offset: int, data: bytes, *, flush: bool = True) -> None:
    """The same from a test that runs a loop."""
    await asyncio.to_thread(write, disk, offset, data, flush=flush)


async def stream(pieces: Iterable[Piece]) -> AsyncIterator[Piece]:
    """Pieces as they come from a connection."""
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def carry(source: Volumes, target: Volumes, volume: str, number: int, *, since: int = 0) -> Delta:
    """Bring one snapshot over and publish it."""
    delta = await source.changes(volume, number, since=since)
    assert await target.accept(delta, stream(await source.read(volume, number, delta.ranges)))
    published = await target.settle(volume)
    assert published == delta.manifest
    return delta


async def content(volumes: Volumes, volume: str, number: int) -> bytes:
    """All bytes of a small snapshot."""
    manifest = next(each for each in await volumes.snapshots(volume) if each.number == number)
    pieces = await volumes.read(volume, number, [Range(0, manifest.size_bytes)])
    return b"".join(piece.data or bytes(piece.range.length) for piece in pieces)


_libc = ctypes.CDLL(None, use_errno=True)
_PUNCH_HOLE_KEEP_SIZE = 0x03


def discard(disk: Path, offset: int, length: int) -> None:
    """What QEMU does with a guest's discard (fallocate(2), FALLOC_FL_PUNCH_HOLE)."""
    descriptor = os.open(disk, os.O_WRONLY)
    try:
        if _libc.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(descriptor)


POOL_BYTES = 256 << 20


@dataclass
class RealPool:
    """A pool of a test: mounted at `point`, out of `file`."""

    file: Path
    point: Path
    volumes: BtrfsVolumes

    async def cut_power(self) -> None:
        """What a power cut leaves: what the pool was told to keep, and no more. The pool is open again afterwards."""
        await self.become(await asyncio.to_thread(self.picture, "now"))

    def picture(self, name: str) -> Path:
        """What the disk holds at this moment, in a file of its own: taken before an unmount, which would write everything."""
        copy = self.file.with_name(f"picture-{name}")
        files.clone_file(self.file, copy)
        return copy

    async def become(self, picture: Path) -> None:
        """Go on from a picture; it is used up."""
        await self.volumes.close()
        await pool.unmount_pool(self.point)
        picture.replace(self.file)
        await pool.mount_pool(self.file, self.point)
        self.volumes = await BtrfsVolumes.open(self.point)


@asynccontextmanager
async def real_pool(folder: Path) -> AsyncIterator[RealPool]:
    """A new pool below `folder`, gone afterwards."""
    folder.mkdir(exist_ok=True)
    file, point = folder / pool.LOOP_FILE, folder / "mounted"
    await pool.make_loop_pool(file, POOL_BYTES)
    try:
        await pool.mount_pool(file, point)
        made = RealPool(file, point, await BtrfsVolumes.open(point))
        try:
            yield made
        finally:
            await made.volumes.close()
    finally:
        await pool.unmount_pool(point)
        for each in (file, *folder.glob("picture-*")):
            each.unlink(missing_ok=True)

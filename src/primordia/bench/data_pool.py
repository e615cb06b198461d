"""A pool of its own, in a file on this machine's disk, and what a node does with it: no guest, no network."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Progress
from primordia.drivers.volumes_btrfs import pool
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.wire.deltas import DeltaWriter, Part

ROUNDS = 20
BLOCK = 4096
DIRTY = 200
"""Blocks written before each cut."""
EXTENTS = 36_000
_VOLUME = 4 << 30
_CLONED = 10 << 30
_POOL = 12 << 30
_SEED = 4
_FLUSH_EVERY = 2000


async def measure(rounds: int, progress: Progress) -> list[Figure]:
    """Cuts of a fresh volume and of one in fragments, what a delta takes on the wire, and clones."""
    rounds = rounds or ROUNDS
    rng = random.Random(_SEED)
    async with _pool(progress) as volumes:
        await volumes.create("fresh", _VOLUME)
        progress("data: cut a fresh volume")
        anywhere = _VOLUME // BLOCK
        fresh, wire = await _cuts(volumes, "fresh", rounds, lambda: rng.sample(range(anywhere), DIRTY))
        progress(f"data: make a volume of {EXTENTS} extents")
        await volumes.create("fragmented", _VOLUME)
        scattered = list(range(0, 2 * EXTENTS, 2))
        rng.shuffle(scattered)
        await asyncio.to_thread(_write, await volumes.disk("fragmented"), scattered)
        progress("data: cut it")
        fragmented, _ = await _cuts(volumes, "fragmented", rounds, lambda: rng.sample(scattered, DIRTY))
        progress("data: clone a volume of 10 GiB")
        await volumes.create("large", _CLONED)
        await asyncio.to_thread(_write, await volumes.disk("large"), rng.sample(range(_CLONED // BLOCK), DIRTY))
        clones = [await _clone_ms(volumes, "large", f"clone-{number}") for number in range(rounds)]
        idle = await _look_ms(volumes, rounds)
    return [
        figure("cut_and_diff_fresh", "ms", fresh),
        figure("cut_and_diff_fragmented", "ms", fragmented),
        figure("clone", "ms", clones),
        figure("look_at_50_idle", "ms", idle),
        figure("wire_bytes_per_changed_byte", "ratio", wire),
    ]


async def _cuts(
    volumes: BtrfsVolumes, name: str, rounds: int, blocks: Callable[[], list[int]]
) -> tuple[list[float], list[float]]:
    """Milliseconds of each cut, after the first; and what its delta takes on the wire, uncompressed, by what was written."""
    disk, taken, wire = await volumes.disk(name), [], []
    await volumes.cut(name, epoch=1)
    for _ in range(rounds):
        await asyncio.to_thread(_write, disk, blocks())
        begun = time.perf_counter()
        made = await volumes.cut(name, epoch=1)
        taken.append((time.perf_counter() - begun) * 1000)
        wire.append(await _wire_bytes(volumes, name, made.number) / (DIRTY * BLOCK))
    return taken, wire


async def _wire_bytes(volumes: BtrfsVolumes, name: str, number: int) -> int:
    """The bytes of the stream of what one snapshot adds. What is written is random, and does not become smaller."""
    delta = await volumes.changes(name, number, since=number - 1)
    writer = DeltaWriter()
    size = len(writer.header(delta))
    for piece in await volumes.read(name, number, delta.ranges):
        size += len(writer.part(Part(piece.range, piece.data)))
    return size + len(writer.end())


async def _clone_ms(volumes: BtrfsVolumes, name: str, into: str) -> float:
    begun = time.perf_counter()
    await volumes.clone(name, into)
    taken = (time.perf_counter() - begun) * 1000
    await volumes.destroy(into)
    return taken


async def _look_ms(volumes: BtrfsVolumes, rounds: int) -> list[float]:
    """What a second costs in which fifty volumes did not change."""
    names = [f"idle-{number}" for number in range(50)]
    for name in names:
        await volumes.create(name, 1 << 20)
        await volumes.cut(name, epoch=1)
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        await volumes.touched(names)
        taken.append((time.perf_counter() - begun) * 1000)
    return taken


def _write(disk: Path, blocks: list[int]) -> None:
    """Random bytes into those blocks, and a flush, as a guest's."""
    descriptor = os.open(disk, os.O_WRONLY)
    try:
        for count, block in enumerate(blocks, start=1):
            os.pwrite(descriptor, os.urandom(BLOCK), block * BLOCK)
            if count % _FLUSH_EVERY == 0:
                os.fsync(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _pool(progress: Progress) -> AsyncIterator[BtrfsVolumes]:
    """A pool that is gone afterwards. Raises CapacityError when the disk has no room for it."""
    with tempfile.TemporaryDirectory(prefix="primordia-bench-", dir="/var/tmp") as name:
        file, point = Path(name) / pool.LOOP_FILE, Path(name) / "mounted"
        progress("data: make a pool")
        await pool.make_loop_pool(file, _POOL)
        try:
            await pool.mount_pool(file, point)
            volumes = await BtrfsVolumes.open(point)
            try:
                yield volumes
            finally:
                await volumes.close()
        finally:
            await pool.unmount_pool(point)

"""A volume's first copy, against what btrfs has for that; and how far copies are behind where a node writes fifty volumes.

`first_copy` is timed from the moment in which the soup has the volume until a sync says that its copy is durable on the other
node; the baseline, in the same run and between the same two pools once they are at rest, is `btrfs send | btrfs receive` and a
sync. Fifty volumes are nobody's: their disks are written by the benchmark itself, for fifty guests measure the processors.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from primordia.bench import lifeforms
from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Ground, Progress
from primordia.client.aio import AsyncClient
from primordia.kit import command, ids
from primordia.kit.errors import PrimordiaError
from primordia.wire.resources import Volume

MANY = 50
_ROUNDS = 2
_SIZE = 1 << 30
_ROOM = 3 * _SIZE
"""A whole content lies in the receiver's journal and in its snapshot, and then the baseline's copy does."""
_SMALL = 16 << 20
_BLOCK = 4096
_MB_PER_S = 5
_LAG_S = 20
_COPY_S = 600.0
_TURN_S = 0.1


async def measure(ground: Ground, progress: Progress) -> list[Figure]:
    """Nothing on one rack, and of the copy nothing where the pools have no room for it."""
    if len({node.rack for node in ground.soup.nodes}) < 2:
        return []
    found = []
    if min(_room(ground, node) for node in ground.nodes) >= _ROOM:
        ours, theirs = [], []
        for turn in range(_ROUNDS):
            progress(f"data: first copy of 1 GiB, {turn + 1}")
            async with _imported(ground, _SIZE, _SIZE) as volume:
                begun = time.perf_counter()
                await ground.client.sync(volume, timeout_s=_COPY_S)
                ours.append(_SIZE / 1e6 / (time.perf_counter() - begun))
                await _at_rest(ground, volume)
                theirs.append(_SIZE / 1e6 / await _sent_and_received_s(ground, volume))
                progress(f"data: first copy of 1 GiB: {ours[-1]:.0f} MB/s, btrfs {theirs[-1]:.0f} MB/s")
        found.append(figure("first_copy", "MB/s", ours, theirs))
    else:
        progress("data: the pools have no room for a first copy of 1 GiB")
    found.append(figure("replication_lag_50_volumes", "s", await _lag(ground, progress)))
    return found


def _room(ground: Ground, node: str) -> int:
    seen = os.statvfs(ground.paths_of(node).volumes)
    return seen.f_bavail * seen.f_frsize


@contextlib.asynccontextmanager
async def _imported(ground: Ground, size: int, random_bytes: int) -> AsyncIterator[str]:
    """A new volume on the first node which begins with so many random bytes, gone afterwards."""
    name = f"bench-{ids.suffix()}"
    with tempfile.TemporaryDirectory(prefix="primordia-bench-", dir="/var/tmp") as folder:
        file = Path(folder) / "image"
        await asyncio.to_thread(_fill, file, size, random_bytes)
        try:
            await ground.client.import_volume(file, name, node=ground.node)
            file.unlink()
            yield name
        finally:
            await lifeforms.destroy(ground.client, name)


def _fill(file: Path, size: int, random_bytes: int) -> None:
    with file.open("wb") as image:
        for _ in range(0, random_bytes, 1 << 20):
            image.write(os.urandom(min(1 << 20, random_bytes)))
        image.truncate(size)


async def _at_rest(ground: Ground, name: str) -> None:
    """Until what was acknowledged is published too: what runs beside the baseline would flatter us."""
    volume = await ground.client.get(Volume, name)
    waits = [ground.paths_of(node).volumes / "volumes" / volume.metadata.uid / "pending" for node in volume.status.replicas]
    for _ in range(int(_COPY_S / _TURN_S)):
        if not any(each.exists() for each in waits):
            return
        await asyncio.sleep(_TURN_S)


async def _sent_and_received_s(ground: Ground, name: str) -> float:
    """Seconds that btrfs takes for the same snapshot, from the owner's pool into that of the node that has the copy."""
    volume = await ground.client.get(Volume, name)
    synced = volume.status.last_sync
    assert synced is not None
    snapshot = f"{synced.number:012d}"
    source = ground.paths_of(volume.status.node).volumes / "volumes" / volume.metadata.uid / "snapshots" / snapshot
    into = ground.paths_of(volume.status.replicas[0]).volumes / f"bench-{ids.suffix()}"
    into.mkdir(mode=0o700)
    try:
        begun = time.perf_counter()
        script = 'set -o pipefail; btrfs send -q "$0" | btrfs receive -q "$1" && sync -f "$1"'
        await command.run(["bash", "-c", script, str(source), str(into)], timeout_s=_COPY_S)
        return time.perf_counter() - begun
    finally:
        for each in into.iterdir():
            await command.run(["btrfs", "subvolume", "delete", str(each)])
        into.rmdir()


async def _lag(ground: Ground, progress: Progress) -> list[float]:
    """Seconds that the copy furthest behind of any of the volumes is behind, while all of them are written."""
    client = ground.client
    async with contextlib.AsyncExitStack() as stack:
        names = []
        for number in range(MANY):
            progress(f"data: make {MANY} volumes, {number + 1}")
            names.append(await stack.enter_async_context(_imported(ground, _SMALL, _BLOCK)))
        for name in names:
            await client.sync(name, timeout_s=_COPY_S)
        progress(f"data: write {_MB_PER_S} MB a second to {MANY} volumes")
        disks = [await _disk(ground, client, name) for name in names]
        writing = asyncio.ensure_future(_write(disks))
        samples = []
        try:
            while not writing.done():
                await asyncio.wait([writing], timeout=0.5)
                volumes = [each for each in (await client.list(Volume)).items if each.metadata.name in names]
                samples.append(max((copy.lag_seconds for each in volumes for copy in each.status.copies), default=0.0))
            await writing
        finally:
            writing.cancel()
    return samples


async def _disk(ground: Ground, client: AsyncClient, name: str) -> Path:
    volume = await client.get(Volume, name)
    disk = ground.paths_of(volume.status.node).volumes / "volumes" / volume.metadata.uid / "live" / "disk"
    if not disk.exists():
        raise PrimordiaError(f"Volume {name} has no disk where one was expected.")
    return disk


async def _write(disks: list[Path]) -> None:
    """Random blocks at random places of all of them in turns."""
    chance, blocks = random.Random(1), _SMALL // _BLOCK
    each_turn = int(_MB_PER_S * 1_000_000 * _TURN_S) // _BLOCK
    descriptors = [os.open(disk, os.O_WRONLY) for disk in disks]
    try:
        begun, at = time.monotonic(), 0
        for turn in range(round(_LAG_S / _TURN_S)):
            for _ in range(each_turn):
                at = (at + 1) % len(descriptors)
                os.pwrite(descriptors[at], os.urandom(_BLOCK), chance.randrange(blocks) * _BLOCK)
            await asyncio.sleep(max(0.0, begun + (turn + 1) * _TURN_S - time.monotonic()))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)

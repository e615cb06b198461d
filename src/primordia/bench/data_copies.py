"""What copies on other racks cost: how long a sync takes, and how far copies are behind a guest that writes all the time.

A sync is timed from the client's call to its answer: over the API to the owner's node, the guest's own flush, the cut, the
delta to both other racks, durable there, the record in the store. The blocks are written before, and lie in the guest's memory.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from primordia.bench import lifeforms
from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Ground, Progress
from primordia.client.aio import AsyncClient
from primordia.kit.errors import PrimordiaError
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import Data, Layout, Replication

ROUNDS = 20
FEW, MANY = 8, 200
_COPIES = 2
_SYNC_S = 60.0
_IN_SYNC_S = 120.0
_LAG_S = 20
_MB_PER_S = 5
_WRITE = """
import os, random, sys, time
count, seconds = int(sys.argv[1]), int(sys.argv[2])
fd = os.open('/data/blocks', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 64 << 20)
rng = random.Random()
begun = time.monotonic()
for turn in range(max(1, seconds * 10)):
    for _ in range(count):
        os.pwrite(fd, os.urandom(4096), rng.randrange(16384) * 4096)
    time.sleep(max(0, begun + (turn + 1) / 10 - time.monotonic()) if seconds else 0)
"""


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """Nothing on fewer than three racks: the copies have no place there."""
    if len({node.rack for node in ground.soup.nodes}) <= _COPIES:
        return []
    client = ground.client
    progress("data: start a guest with two copies")
    async with lifeforms.with_data(client, _lifeform()) as (name, volume):
        await _write(client, name, MANY)
        await client.sync(volume, timeout_s=_IN_SYNC_S)  # the first one waits until all of it is there
        taken: dict[int, list[float]] = {FEW: [], MANY: []}
        for turn in range(rounds or ROUNDS):
            progress(f"data: sync, {turn + 1}")
            for count, samples in taken.items():
                await _write(client, name, count)
                begun = time.perf_counter()
                await client.sync(volume, timeout_s=_SYNC_S)
                samples.append((time.perf_counter() - begun) * 1000)
        progress(f"data: write {_MB_PER_S} MB a second")
        lag = await _lag(client, name, volume)
    return [
        figure("sync_small", "ms", taken[FEW]),
        figure("sync_200", "ms", taken[MANY]),
        figure("replication_lag", "s", lag),
    ]


async def _write(client: AsyncClient, name: str, count: int, seconds: int = 0) -> None:
    """So many blocks at random places, or for some seconds so many each tenth of a second."""
    result = await client.exec(name, ["python3", "-c", _WRITE, str(count), str(seconds)])
    if result.code:
        raise PrimordiaError(f"The guest could not write: {result.stderr.decode(errors='replace')[-300:]}")


async def _lag(client: AsyncClient, name: str, volume: str) -> list[float]:
    """Seconds that the copy furthest behind is behind, as the volume's status tells it, while the guest writes."""
    per_tenth = _MB_PER_S * 1_000_000 // 4096 // 10
    writing = asyncio.ensure_future(_write(client, name, per_tenth, _LAG_S))
    samples = []
    try:
        while not writing.done():
            await asyncio.wait([writing], timeout=0.5)
            copies = (await client.get(Volume, volume)).status.copies
            samples.append(max((each.lag_seconds for each in copies), default=0.0))
        await writing
    finally:
        writing.cancel()
    return samples


def _lifeform() -> Lifeform:
    """A guest whose syncs wait for copies on both other racks."""
    plain = lifeforms.manifest("x")
    context = msgspec.structs.replace(plain.spec.contexts[0], image="python", data=Data(size="128Mi"))
    copies = Replication(layout=Layout(mirror=_COPIES), acks=_COPIES)
    return msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, contexts=(context,), replication=copies))

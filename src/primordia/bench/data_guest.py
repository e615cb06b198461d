"""What a guest notices of its volume being cut every second: against a twin whose volume is not cut, in turns."""

from __future__ import annotations

from contextlib import AsyncExitStack

import msgspec

from primordia.bench import data_load, lifeforms
from primordia.bench.figures import Figure, figure, paired
from primordia.bench.ground import Ground, Progress
from primordia.kit.errors import PrimordiaError
from primordia.wire.resources import Lifeform
from primordia.wire.volumes import Data, Layout, Replication, SnapshotPolicy

ROUNDS = 5
_SECONDS = 4.0
"""A turn holds several cuts."""
_NEVER = "24h"


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """Ratios are of what the guest gets done with cuts, by what it gets done without."""
    rounds = min(rounds or ROUNDS, ROUNDS)
    taken: dict[str, list[float]] = {f"{part}-{every}": [] for part in _PARTS for every in ("1s", _NEVER)}
    async with AsyncExitStack() as stack:
        twins = {}
        for every in ("1s", _NEVER):
            progress("data: start a guest with a volume")
            twins[every], _ = await stack.enter_async_context(lifeforms.with_data(ground.client, _lifeform(every)))
        for turn in range(rounds):
            progress(f"data: load, {turn + 1} of {rounds}")
            for every in ("1s", _NEVER) if turn % 2 else (_NEVER, "1s"):
                for part, value in (await _load(ground, twins[every])).items():
                    taken[f"{part}-{every}"].append(value)
    return [
        figure("guest_pause", "ms", taken["stall-1s"], taken[f"stall-{_NEVER}"]),
        paired("guest_throughput", "MB/s", taken["write-1s"], taken[f"write-{_NEVER}"]),
        paired("guest_fsync", "1/s", taken["fsync-1s"], taken[f"fsync-{_NEVER}"]),
    ]


_PARTS = ("fsync", "write", "stall")


async def _load(ground: Ground, name: str) -> dict[str, float]:
    result = await ground.client.exec(name, data_load.argv("python3", "/data", _SECONDS, *_PARTS))
    if result.code:
        raise PrimordiaError(f"The load in {name} failed: {result.stderr.decode(errors='replace')[-300:]}")
    return data_load.results(result.stdout)


def _lifeform(interval: str) -> Lifeform:
    """A guest that waits, with a volume that is cut so often and copied to nobody."""
    plain = lifeforms.manifest("x")
    data = Data(size="128Mi", snapshots=SnapshotPolicy(interval=interval))
    context = msgspec.structs.replace(plain.spec.contexts[0], image="python", data=data)
    copies = Replication(layout=Layout(mirror=0))
    return msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, contexts=(context,), replication=copies))

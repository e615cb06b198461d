"""What a lifeform's data costs: cutting and cloning its volume, and what its guest notices of that.

`cut_and_diff` is all of a snapshot: the kernel's, the list of what changed, its hashes, the manifest, durable; of 200 random
blocks of 4 KiB in a volume of 4 GiB. `guest_*` are of a lifeform on a soup, whose volume is cut every second, against its twin
whose volume is not cut, in turns. Copies (`sync_*`, `replication_lag*`, `first_copy`) are measured where there are three racks.
"""

from __future__ import annotations

from primordia.bench import data_copies, data_first, data_guest, data_pool
from primordia.bench.figures import Figure
from primordia.bench.ground import Ground, Progress


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """The figures of one node's pool, of its guests, and of copies."""
    return [
        *await data_pool.measure(rounds, progress),
        *await data_guest.measure(ground, rounds, progress),
        *await data_copies.measure(ground, rounds, progress),
        *await data_first.measure(ground, progress),
    ]

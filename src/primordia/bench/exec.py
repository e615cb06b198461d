"""How long a command in a running context takes, from the client's call to its exit code: on a quiet node, and beside a
neighbour that floods the daemon with its output.
"""

from __future__ import annotations

from primordia.bench import flood, lifeforms
from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Ground, Progress

ROUNDS = 100


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """The figures exec_round_trip, exec_beside_flood and flood_rate."""
    progress("exec: boot a context")
    async with lifeforms.running(ground.client) as name:
        await flood.round_trips(ground.client, name, 5)
        progress(f"exec: {rounds or ROUNDS} times")
        taken = await flood.round_trips(ground.client, name, rounds or ROUNDS)
        beside = await flood.measure(ground, name, rounds, progress)
    return [figure("exec_round_trip", "ms", taken), *beside]

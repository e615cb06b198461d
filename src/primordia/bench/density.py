"""How many forks fit on a node, and what each costs: paused in the pool, after its first command, and idle.

Memory is PSS, which divides what forks share by how many share it; so it is measured on many at once. The pool's figures are of
QEMU's processes, found by the node's cgroup of microVMs. All that fit is told by the node's own limits: boxes are claimed
until it refuses one.
"""

from __future__ import annotations

import asyncio
import time

from primordia.bench import idle, templates
from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Ground, Progress
from primordia.bench.templates import BUSYBOX
from primordia.client.boxes import Box
from primordia.kit import cgroup
from primordia.kit.errors import CapacityError

FORKS = 20
_WINDOWS = 3
_WINDOW_S = 5.0
_SETTLE_S = 5.0
_AT_ONCE = 4
_MOST = 1000


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """The figures of density; `rounds` bounds how many forks are made at all, where it is not 0."""
    most = rounds or _MOST
    count = min(FORKS, most)
    boxes: list[Box] = []
    progress("density: prepare the image")
    async with templates.made(ground.client, BUSYBOX) as template:
        try:
            progress(f"density: {count} forks that wait")
            await templates.keep_waiting(ground.client, template, BUSYBOX, count)
            paused = await _pss_mb(ground)
            boxes += [await ground.client.box(template) for _ in range(count)]
            await templates.keep_waiting(ground.client, template, BUSYBOX, 0)
            for box in boxes:
                await box.run(["/bin/true"])
            progress("density: used")
            await asyncio.sleep(_SETTLE_S)
            used = await _pss_mb(ground)
            cores = await _idle_cores(ground, count)
            progress("density: as many as fit")
            refusal = await _fill(ground, template, boxes, most)
            fitting = len(boxes)
            progress(f"density: {fitting} fit. {refusal}")
        finally:
            await _kill_all(boxes)
    return [
        figure("forks_fitting", "forks", [float(fitting)]),
        figure("pss_paused_mb", "MB", paused),
        figure("pss_used_mb", "MB", used),
        figure("idle_cpu_cores_per_fork", "cores", cores),
    ]


def _machines(ground: Ground) -> list[frozenset[int]]:
    """The processes of each of the node's microVMs."""
    top = f"primordia/{ground.soup.name}/{ground.node}/vm"
    return [frozenset({pid}) for pid in cgroup.pids(top)]


async def _pss_mb(ground: Ground) -> list[float]:
    return await asyncio.to_thread(lambda: [idle.pss_mb(each) for each in _machines(ground)])


async def _idle_cores(ground: Ground, count: int) -> list[float]:
    """What one of so many takes that do nothing, by window."""
    pids = frozenset().union(*_machines(ground))
    samples = []
    before, since = idle.cpu_seconds(pids), time.monotonic()
    for _ in range(_WINDOWS):
        await asyncio.sleep(_WINDOW_S)
        now, then = idle.cpu_seconds(pids), time.monotonic()
        samples.append((now - before) / (then - since) / count)
        before, since = now, then
    return samples


async def _fill(ground: Ground, template: str, boxes: list[Box], most: int) -> str:
    """Claim, several at once, until the node refuses, or there are so many. Returns the words with which it refused."""
    left = iter(range(most - len(boxes)))
    refusals: list[str] = []

    async def claim() -> None:
        for _ in left:
            if refusals:
                return
            try:
                boxes.append(await ground.client.box(template))
            except CapacityError as error:
                refusals.append(str(error))

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(claim(), name="fill")
    return refusals[0] if refusals else f"{most} were all that was asked for."


async def _kill_all(boxes: list[Box]) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def kill(box: Box) -> None:
        async with gate:
            await box.kill()

    await asyncio.gather(*(kill(box) for box in boxes))

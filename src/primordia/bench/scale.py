"""How far one leader and one node reach: the real controllers over a store and nodes that are simulated, and the real node
over microVMs, a network and images that are.

Throughput and costs are CPU time of this one-threaded process: what they would be by the clock on a machine that has
nothing else to do. A placement is a lifeform's whole way from the user's write to its contexts, through every write and
every event in between. An event's cost is what the controllers spend from hearing of a context's new status to having
written the lifeform's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable

import msgspec

from primordia.bench import rack_loss, scale_node
from primordia.bench.figures import Figure, figure, percentile
from primordia.bench.ground import Progress
from primordia.control.main import Controllers
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import SystemClock
from primordia.kit.tasks import TaskSet
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform, make_node
from primordia.wire.resources import Context, Lifeform

NODES = 1_000
LIFEFORMS = 100_000
FEW = 1_000
ROUNDS = 10
BATCH = 5_000
EVENTS = 1_000
_HISTORY = 2_000
_POLL_S = 0.005


class Soup:
    """A thousand nodes, some lifeforms, and the controllers that look after them."""

    def __init__(self, seed: int) -> None:
        self.clock = SystemClock()
        self.store = MemoryStore(self.clock, history=_HISTORY)
        self.registry = Registry(self.store, self.clock)
        self.informers = Informers(self.registry)
        self.events = EventRecorder(self.registry, "controller", "bench")
        self.controllers = Controllers(self.registry, self.informers, self.clock, self.events)
        self._lifeforms = self.informers.of(Lifeform)
        self._contexts = self.informers.of(Context)
        self._rng = random.Random(seed)
        self.lifeforms = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Nodes are there and controllers run."""
        for number in range(NODES):
            name = f"n{number:04}"
            rack, segment = f"r{number % 40}", f"s{number % 4}"
            await self.registry.create(make_node(name, cpu="256", memory="64Gi", contexts=5000, rack=rack, segment=segment))
        tasks = TaskSet("scale")
        for part in (self.informers.run(), self.events.run(), self.controllers.run()):
            tasks.start(part, name="part")
        try:
            await self.informers.synced()
            yield
        finally:
            await tasks.close()
            await self.store.close()

    async def place(self, count: int) -> float:
        """Add so many lifeforms; the CPU seconds until each has its contexts and the controllers rest."""
        for number in range(self.lifeforms, self.lifeforms + count):
            await self.registry.create(make_lifeform(f"l{number:06}", memory="128Mi", cpu="100m"))
        self.lifeforms += count
        begun = time.process_time()
        await self._rest(lambda: self._contexts.count == self.lifeforms)
        return time.process_time() - begun

    async def tell(self, count: int, round_number: int) -> float:
        """New status of so many contexts, at random; the CPU seconds that the controllers spend on one."""
        await self.events.flush()
        chosen = self._rng.sample(range(self.lifeforms), count)
        for number in chosen:
            context = self._contexts.get(f"l{number:06}.main", "default")
            assert context is not None
            status = msgspec.structs.replace(context.status, phase="Running", ready=True, restarts=round_number)
            await self.registry.amend(context, msgspec.structs.replace(context, status=status), status=True)
        begun = time.process_time()
        await self._rest(lambda: self._all_show(chosen, round_number))
        return (time.process_time() - begun) / count

    def _all_show(self, waiting: list[int], round_number: int) -> bool:
        """Whether each lifeform's status tells of the round. Those that do leave the list, so that no look costs much."""
        while waiting and self._shown(waiting[-1]) == round_number:
            waiting.pop()
        return not waiting

    def _shown(self, number: int) -> int:
        """The round that a lifeform's status tells of."""
        lifeform = self._lifeforms.get(f"l{number:06}", "default")
        return max((summary.restarts for summary in lifeform.status.contexts), default=0) if lifeform is not None else 0

    async def take_over(self) -> tuple[float, float]:
        """Another leader begins: CPU seconds until its caches and its ledger are full, and the memory of it all in MB."""
        gc.collect()
        begun = time.process_time()
        async with self._successor():
            taken_s = time.process_time() - begun
        gc.collect()
        tracemalloc.start()
        try:
            async with self._successor():
                return taken_s, tracemalloc.get_traced_memory()[0] / 1e6
        finally:
            tracemalloc.stop()

    @contextlib.asynccontextmanager
    async def _successor(self) -> AsyncIterator[None]:
        informers = Informers(self.registry)
        controllers = Controllers(self.registry, informers, self.clock, self.events)
        tasks = TaskSet("successor")
        tasks.start(informers.run(), name="informers")
        try:
            await informers.synced()
            controllers.scheduler.recall()
            yield
        finally:
            await tasks.close()

    async def _rest(self, is_done: Callable[[], bool]) -> None:
        """Wait until it is done, nothing waits and nothing more is written."""
        before = 0
        while True:
            now = self.store.revision
            if now == before and is_done() and self.controllers.queue.idle:
                return
            before = now
            await asyncio.sleep(_POLL_S)


async def measure(rounds: int, progress: Progress) -> list[Figure]:
    """The figures of the controllers, and those of the node."""
    rounds = rounds or ROUNDS
    # The node first: its memory is told by what the process grows, and later there would be old memory to grow into.
    of_the_node = await scale_node.measure(rounds, progress)
    few, many = Soup(1), Soup(2)
    async with few.running(), many.running():
        await few.place(FEW)
        per_s = []
        while many.lifeforms < LIFEFORMS:
            progress(f"scale: place {LIFEFORMS} lifeforms on {NODES} nodes, {many.lifeforms} done")
            per_s.append(BATCH / await many.place(BATCH))
        progress(f"scale: {rounds} rounds of {EVENTS} events")
        costs, costs_few = [], []
        for number in range(1, rounds + 1):
            costs_few.append(await few.tell(min(EVENTS, FEW), number))
            costs.append(await many.tell(EVENTS, number))
        progress("scale: another leader takes over")
        taken_s, memory_mb = await many.take_over()
    plan = rack_loss.measure(NODES, LIFEFORMS, rounds, progress)
    base = percentile(costs_few, 50)
    return [
        figure("placements_per_s", "1/s", per_s),
        figure("controller_memory_mb", "MB", [memory_mb]),
        figure("controller_takeover", "s", [taken_s]),
        figure("event_cost", "s", costs, costs_few),
        figure("event_cost_ratio", "ratio", [cost / base for cost in costs], [1.0]),
        plan,
        *of_the_node,
    ]

"""The world of one seed: a soup with its users and its faults, from the first lifeform to rest.

Everything that decides is the product's own code over the memory store; what is simulated is time, nodes, users and harm.
A run has two parts: for a while everything happens at once; then all harm ends, and the world is given time to come to
rest. The checkers judge every revision of the first part and of the second, and then what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from primordia.drivers.store_memory import MemoryStore
from primordia.ports.store import Store
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.sim import counting
from primordia.sim.checkers import Checker, Violation, checkers
from primordia.sim.controller import ControllerProcess
from primordia.sim.data_checkers import Copies, Kept, Owners, Together
from primordia.sim.faults import Fault, Kind, schedule
from primordia.sim.history import History
from primordia.sim.node import SimNode, SimNodes
from primordia.sim.objects import make_node
from primordia.sim.rest import problems_at_rest
from primordia.sim.store import FaultyStore
from primordia.sim.virtual import VirtualClock, run_virtual
from primordia.sim.workload import User
from primordia.wire.resources import Node

_QUIET_S = 90.0
_NO_REST_S = 3600.0
_RESTART_S = 0.5


@dataclass(frozen=True)
class Profile:
    """The size of a world. `act_every_s` and `harm_every_s` are averages."""

    nodes: int = 9
    racks: int = 3
    segments: int = 2
    contenders: int = 2
    lifeforms: int = 50
    duration_s: float = 300.0
    act_every_s: float = 0.6
    harm_every_s: float = 8.0
    kinds: tuple[Kind, ...] = tuple(Kind)
    latency_s: float = 0.02


@dataclass(frozen=True)
class Result:
    """What became of one seed. Equal fingerprints mean the same run."""

    seed: int
    fingerprint: str
    commits: int
    virtual_s: float
    terms: int
    faults: Counter[str]
    deeds: Counter[str]
    violations: tuple[Violation, ...]


@dataclass
class _Harm:
    """What is going on now; faults of one kind may overlap."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    stalled: Counter[str] = field(default_factory=Counter)
    hung: Counter[str] = field(default_factory=Counter)


class World:
    """One seed's. `live` is its whole story."""

    def __init__(self, seed: int, profile: Profile) -> None:
        self.seed = seed
        self.profile = profile
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.history = History(self.clock)
        kept = Kept()
        self.checkers: list[Checker] = [*checkers(), Owners(), Together(), Copies(), kept]
        for checker in self.checkers:
            self.history.listen(checker)
        self.memory = MemoryStore(self.clock, observe=self.history.observe)
        self._uids = self._dice()
        self._stores = [FaultyStore(self.memory, self._dice()) for _ in range(1 + profile.contenders)]
        for store in self._stores:
            store.latency_s = profile.latency_s
        self.registry = self._registry(self.memory)
        self.contenders = [
            ControllerProcess(f"c{number}", store, self.clock, self._new_uid, self._dice())
            for number, store in enumerate(self._stores[1:])
        ]
        node_registry = self._registry(self._stores[0])
        self.nodes = SimNodes(node_registry, Informers(node_registry, rng=self._dice()), self._dice())
        self.user = User(self.registry, self._dice(), most=profile.lifeforms, racks=profile.racks, segments=profile.segments)
        self.user.destroying = kept.asked.add
        self.plan = schedule(self._dice(), profile.duration_s, profile.harm_every_s, profile.kinds)
        self.faults: Counter[str] = Counter()
        self._harm = _Harm()

    async def live(self) -> Result:
        """The whole story."""
        begin_s = self.clock.boottime()
        async with self._populated():
            async with asyncio.TaskGroup() as group:
                group.create_task(self.user.run(self.profile.duration_s, self.profile.act_every_s))
                for fault in self.plan:
                    group.create_task(self._suffer(fault))
            problems = [] if await self._rest() else [("Rest", "There is no end of changes.")]
            problems += problems_at_rest(self.history.state)
            problems += [("Disks", message) for message in self.nodes.problems()]
        now_s = self.clock.boottime()
        found = [violation for checker in self.checkers for violation in checker.violations]
        found += [Violation(name, now_s, self.history.commits, message) for name, message in problems]
        return Result(
            self.seed,
            self.history.fingerprint,
            self.history.commits,
            now_s - begin_s,
            self.history.terms,
            self.faults,
            Counter(self.user.done),
            tuple(sorted(found, key=lambda violation: violation.revision)),
        )

    # ------------------------------------------------------------ the parts

    @contextlib.asynccontextmanager
    async def _populated(self) -> AsyncIterator[None]:
        for number in range(self.profile.nodes):
            await self._make_node(number)
        nodes = asyncio.get_running_loop().create_task(self.nodes.run(), name="sim/nodes")
        keepers = [asyncio.get_running_loop().create_task(self._keep(each), name=each.name) for each in self.contenders]
        try:
            yield
        finally:
            for task in (nodes, *keepers):
                task.cancel()
            await asyncio.wait({nodes, *keepers})
            for contender in self.contenders:
                await contender.kill()
            for store in self._stores:
                await store.close()
            await self.memory.close()

    async def _make_node(self, number: int) -> None:
        memory = self.rng.choice(("2Gi", "4Gi", "8Gi"))
        node = make_node(
            f"n{number}",
            cpu=self.rng.choice(("4", "8")),
            memory=memory,
            contexts=self.rng.choice((8, 50)),
            rack=f"r{number % self.profile.racks}",
            segment=f"s{number % self.profile.segments}",
            pool=self.rng.choice(("", "8Gi", "16Gi", "16Gi")),
        )
        await self.registry.create(node)
        self.nodes.add(node.metadata.name, counting.of_capacity(node.status.capacity))

    async def _keep(self, contender: ControllerProcess) -> None:
        """A supervisor: what has died is started again."""
        while True:
            if not contender.runs and not self._harm.down[contender.name]:
                contender.start()
            await contender.died.wait()
            await self.clock.sleep(_RESTART_S)

    async def _rest(self) -> bool:
        """Wait until nothing has changed for a while; whether that came."""
        begin_s = self.clock.boottime()
        while self.clock.boottime() - begin_s < _NO_REST_S:
            quiet_s = self.clock.boottime() - max(begin_s, self.history.last_change_s)
            if quiet_s >= _QUIET_S:
                return True
            await self.clock.sleep(_QUIET_S - quiet_s)
        return False

    # ------------------------------------------------------------ harm

    async def _suffer(self, fault: Fault[Kind]) -> None:
        await self.clock.sleep(fault.at_s)
        self.faults[fault.kind] += 1
        bodies: dict[Kind, Callable[[Fault[Kind]], Awaitable[None]]] = {
            Kind.WATCHES_CUT: self._cut_watches,
            Kind.COMPACTION: self._compact,
            Kind.CONTROLLER_CRASH: self._crash_controller,
            Kind.CONTROLLER_CUT: self._cut_controller,
            Kind.CONTROLLER_STALL: self._stall_controller,
            Kind.CONTROLLER_RESTART: self._restart_controller,
            Kind.NODE_CRASH: self._crash_node,
            Kind.NODE_HANG: self._hang_node,
            Kind.NODE_CORDON: self._cordon_node,
            Kind.NODE_SHRINK: self._shrink_node,
        }
        await bodies.get(fault.kind, self._hurt_stores)(fault)

    async def _hurt_stores(self, fault: Fault[Kind]) -> None:
        """Away, lossy, late or repeating: for as long as one of that kind lasts."""
        self._harm.kinds[fault.kind] += 1
        self._set_stores()
        await self.clock.sleep(fault.for_s)
        self._harm.kinds[fault.kind] -= 1
        self._set_stores()

    def _set_stores(self) -> None:
        now = self._harm.kinds
        for store in self._stores:
            store.away = now[Kind.STORE_AWAY] > 0
            store.late_s = 5.0 if now[Kind.WATCHES_LATE] else 0.0
            store.repeat = 0.5 if now[Kind.WATCHES_REPEAT] else 0.0
            store.lose = self._lose if now[Kind.ANSWERS_LOST] else (lambda: False)

    def _lose(self) -> bool:
        return self.rng.random() < 0.3

    async def _cut_watches(self, fault: Fault[Kind]) -> None:
        for store in self._stores:
            store.cut_watches()

    async def _compact(self, fault: Fault[Kind]) -> None:
        """History goes while nobody can watch it: who comes back has to list again."""
        await self._cut_watches(fault)
        await self.memory.compact((await self.memory.status()).revision)

    async def _crash_controller(self, fault: Fault[Kind]) -> None:
        contender = self._contender(fault)
        self._harm.down[contender.name] += 1
        await contender.kill()
        await self.clock.sleep(fault.for_s)
        self._harm.down[contender.name] -= 1

    async def _cut_controller(self, fault: Fault[Kind]) -> None:
        """It dies in one of its next calls, before or after that is done."""
        store = self._contender(fault).store
        store.cut_at = store.calls + 1 + int(fault.dice * 1000 % 40)
        store.cut_after = fault.dice * 1000 % 2 >= 1

    async def _stall_controller(self, fault: Fault[Kind]) -> None:
        """Nothing reaches it and nothing leaves it, long enough for another to lead; then all of it does."""
        contender = self._contender(fault)
        self._harm.stalled[contender.name] += 1
        contender.store.stall(True)
        await self.clock.sleep(fault.for_s)
        self._harm.stalled[contender.name] -= 1
        contender.store.stall(self._harm.stalled[contender.name] > 0)

    async def _restart_controller(self, fault: Fault[Kind]) -> None:
        """It resigns and comes again."""
        await self._contender(fault).stop()

    def _contender(self, fault: Fault[Kind]) -> ControllerProcess:
        """Mostly the one that leads."""
        leading = [each for each in self.contenders if each.leads]
        if leading and fault.dice < 0.7:
            return leading[0]
        return self.contenders[int(fault.dice * 1000) % len(self.contenders)]

    def _victim(self, fault: Fault[Kind]) -> SimNode:
        return self.nodes.nodes[f"n{int(fault.dice * self.profile.nodes)}"]

    async def _crash_node(self, fault: Fault[Kind]) -> None:
        """Its lease runs out, and the controllers notice; it comes back with an empty table."""
        node = self._victim(fault)
        self._harm.down[node.name] += 1
        node.lose_power()
        await self.clock.sleep(fault.for_s)
        self._harm.down[node.name] -= 1
        if not self._harm.down[node.name]:
            node.up = True
            node.wake()

    async def _hang_node(self, fault: Fault[Kind]) -> None:
        node = self._victim(fault)
        self._harm.hung[node.name] += 1
        node.hung = True
        await self.clock.sleep(fault.for_s)
        self._harm.hung[node.name] -= 1
        node.hung = self._harm.hung[node.name] > 0
        node.wake()

    async def _cordon_node(self, fault: Fault[Kind]) -> None:
        """Half of those that are cordoned stay so."""
        name = self._victim(fault).name
        await self._change_node(name, unschedulable=True)
        await self.clock.sleep(fault.for_s)
        if fault.dice * 1000 % 2 >= 1:
            await self._change_node(name, unschedulable=False)

    async def _shrink_node(self, fault: Fault[Kind]) -> None:
        """It may promise half of its memory; it takes a while until it has all of it again."""
        name = self._victim(fault).name
        await self._change_node(name, memory_share=0.5)
        await self.clock.sleep(fault.for_s)
        if fault.dice * 1000 % 2 >= 1:
            await self._change_node(name, memory_share=1.0)

    async def _change_node(self, name: str, *, unschedulable: bool | None = None, memory_share: float = 0.0) -> None:
        def changed(node: Node) -> Node:
            after = node.status
            if memory_share:
                memory = str(int(counting.of_capacity(after.capacity).memory * memory_share))
                after = msgspec.structs.replace(after, allocatable=msgspec.structs.replace(after.allocatable, memory=memory))
            spec = node.spec
            if unschedulable is not None:
                spec = msgspec.structs.replace(spec, unschedulable=unschedulable)
            return msgspec.structs.replace(node, spec=spec, status=after)

        if unschedulable is None:
            await self.registry.mutate(Node, name, "", changed, status=True)
        else:
            await self.registry.mutate(Node, name, "", changed)

    # ------------------------------------------------------------ chance

    def _registry(self, store: Store) -> Registry:
        return Registry(store, self.clock, new_uid=self._new_uid)

    def _new_uid(self) -> str:
        return str(uuid.UUID(int=self._uids.getrandbits(128), version=4))

    def _dice(self) -> random.Random:
        return random.Random(self.rng.getrandbits(64))


def simulate(seed: int, profile: Profile | None = None) -> Result:
    """Live through one seed under virtual time."""

    async def story() -> Result:
        return await World(seed, profile or Profile()).live()

    return run_virtual(story())

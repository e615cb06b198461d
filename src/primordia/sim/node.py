"""A node that runs nothing and behaves like one: it takes the contexts bound to it, needs time, tells, and can fail.

Its microVMs are entries of a table; they outlive its daemon and not its machine. It believes its cache, which may be late,
and its own memory, which is why a promise too many shows here as a context that cannot be started. It holds a lease, and
asks the real guard before each start.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from primordia.control.blueprint import CONTEXT_FINALIZER
from primordia.domain.lease import lease_key
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.ports.store import Compare, Put
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.registry.ownership import NodeLife, StartGuard
from primordia.registry.registry import Registry
from primordia.sim import counting
from primordia.sim.counting import Sum
from primordia.sim.disks import SimDisks
from primordia.wire.resources import Context, ContextStatus, Node, Volume

BY_NODE = "node"
BY_NEXT = "next"
_RETRY_S = 1.0
_LEASE_TTL_S = 6


@dataclass(frozen=True)
class Pace:
    """How long things take, as (shortest, longest) in seconds. `program_s` is how long a job runs."""

    start_s: tuple[float, float] = (0.2, 4.0)
    stop_s: tuple[float, float] = (0.05, 2.0)
    program_s: tuple[float, float] = (5.0, 60.0)


@dataclass
class Vm:
    """A microVM: `print` is what it was started from. It runs from `runs_s` on; at `stops_s`, if set, it is gone."""

    print: str
    size: Sum
    runs_s: float
    ends_s: float
    stops_s: float | None = None
    volume_uid: str = ""


class SimNode:
    """One node. `up` and `hung` are set from outside, then `wake`."""

    def __init__(self, name: str, room: Sum, registry: Registry, informers: Informers, rng: random.Random) -> None:
        self.name = name
        self.up = True
        self.hung = False
        self.vms: dict[str, Vm] = {}
        self.refused = 0
        self.pace = Pace()
        self.on_start: Callable[[SimNode, Context], None] = lambda node, context: None
        self._room = room
        self._ended: dict[str, str] = {}
        self._expected: tuple[str, ...] = ()
        self._lease = 0
        self._life: NodeLife | None = None
        self._guard = StartGuard(registry.store, name, lambda: self._life)
        self._registry = registry
        self._contexts = informers.of(Context)
        self.disks = SimDisks(name, registry, informers)
        self._rng = rng
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something has changed: look."""
        self._wake.set()

    def lose_power(self) -> None:
        """The machine goes down with all it runs; what is on its disk stays."""
        self.up = False
        self.vms.clear()

    async def run(self) -> None:
        """Serve, and hold the node's lease, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_contexts(), name=f"{self.name}/contexts")
            group.create_task(self._keep_lease(), name=f"{self.name}/lease")

    async def _keep_lease(self) -> None:
        """What a supervisor does. It outlives a daemon that hangs, and not the machine."""
        while True:
            with contextlib.suppress(PrimordiaError):
                if self.up:
                    await self._renew()
            await self._registry.clock.sleep(_RETRY_S)

    async def _renew(self) -> None:
        """Keep the lease, or take a new one; a node's life begins where its key does. Raises PrimordiaError."""
        store, key = self._registry.store, lease_key(self.name)
        if not await store.keep_alive(self._lease):
            self._life = None
            self._lease = await store.grant(_LEASE_TTL_S)
        if self._life is None:
            await store.txn([Compare(key, "create", 0)], [Put(key, b"{}", self._lease)])
            found = await store.get(key)
            if found is not None and found.lease == self._lease:
                self._life = NodeLife(key, found.create_revision)

    async def _serve_contexts(self) -> None:
        clock = self._registry.clock
        while True:
            self._wake.clear()
            pause_s = None
            if self.up and not self.hung:
                pause_s = await self._look(clock)
            await wait_event(clock, self._wake, pause_s)

    # ------------------------------------------------------------ one look

    async def _look(self, clock: Clock) -> float | None:
        """Take every context one step further; the seconds until something is due, if anything is."""
        due: list[float] = []
        bound = {context.metadata.uid: context for context in self._contexts.by_index(BY_NODE, self.name)}
        for uid in [uid for uid in self.vms if uid not in bound]:
            del self.vms[uid]
        for context in bound.values():
            try:
                again_s = await self._serve(context, clock.boottime())
            except PrimordiaError:
                again_s = clock.boottime() + _RETRY_S
            if again_s is not None:
                due.append(again_s)
            if not self.up or self.hung:
                return None
        if not await self._expect():
            due.append(clock.boottime() + _RETRY_S)
        if await self.disks.serve({vm.volume_uid for vm in self.vms.values()}):
            due.append(clock.boottime() + _RETRY_S)
        return max(0.001, min(due) - clock.boottime()) if due else None

    async def _expect(self) -> bool:
        """Say which contexts may come; whether that is said."""
        uids = tuple(sorted(each.metadata.uid for each in self._contexts.by_index(BY_NEXT, self.name)))
        if uids == self._expected:
            return True

        def told(stored: Node) -> Node:
            return msgspec.structs.replace(stored, status=msgspec.structs.replace(stored.status, expecting=uids))

        with contextlib.suppress(PrimordiaError):
            await self._registry.mutate(Node, self.name, "", told, status=True)
            self._expected = uids
            return True
        return False

    async def _serve(self, context: Context, now_s: float) -> float | None:
        """The next step for one context; when to come again, if not by a change. Raises PrimordiaError."""
        uid = context.metadata.uid
        if context.metadata.deletion_timestamp is not None:
            if self._stopped(uid, now_s):
                await self._let_go(context)
                return None
        elif context.spec.wanted == "Stopped":
            if self._stopped(uid, now_s):
                self._ended.pop(uid, None)
                await self._tell(context, "Stopped")
                return None
        else:
            return await self._keep_running(context, now_s)
        return self.vms[uid].stops_s

    async def _keep_running(self, context: Context, now_s: float) -> float | None:
        uid, print_ = context.metadata.uid, _print_of(context)
        if self._ended.get(uid) == print_:
            await self._tell(context, "Succeeded")
            return None
        vm = self.vms.get(uid)
        if vm is None:
            await self._guard.permit(context.spec.lifeform_uid, context.spec.epoch)
            if context.spec.volume:
                await self.disks.open(context)
                if any(each.volume_uid == context.spec.volume_uid for each in self.vms.values()):
                    raise TemporaryError(f"{context.spec.volume} is in use.")
            vm = self._start(context, print_, now_s)
            if vm is None:
                await self._tell(context, "BackOff", "The node has not enough memory.")
                return now_s + _RETRY_S
        if vm.stops_s is not None or vm.print != print_:
            return now_s if self._stopped(uid, now_s) else vm.stops_s
        if now_s < vm.runs_s:
            await self._tell(context, "Booting")
            return vm.runs_s
        if context.spec.restart_policy == "Never" and now_s >= vm.ends_s:
            self._ended[uid] = print_
            del self.vms[uid]
            return now_s
        await self._tell(context, "Running")
        return vm.ends_s if context.spec.restart_policy == "Never" else None

    def _start(self, context: Context, print_: str, now_s: float) -> Vm | None:
        size = counting.of_template(context.spec.template)
        if counting.total([size, *(vm.size for vm in self.vms.values())]).memory > self._room.memory:
            self.refused += 1
            return None
        runs_s = now_s + self._rng.uniform(*self.pace.start_s)
        vm = Vm(print_, size, runs_s, runs_s + self._rng.uniform(*self.pace.program_s), volume_uid=context.spec.volume_uid)
        self.vms[context.metadata.uid] = vm
        self.on_start(self, context)
        return vm

    def _stopped(self, uid: str, now_s: float) -> bool:
        """Whether there is no microVM; begins to stop one that is there."""
        vm = self.vms.get(uid)
        if vm is None:
            return True
        if vm.stops_s is None:
            vm.stops_s = now_s + self._rng.uniform(*self.pace.stop_s)
        if now_s >= vm.stops_s:
            del self.vms[uid]
            return True
        return False

    # ------------------------------------------------------------ telling

    async def _tell(self, context: Context, phase: str, message: str = "") -> None:
        generation = context.metadata.generation
        status = ContextStatus(phase=phase, ready=phase == "Running", message=message, observed_generation=generation)
        if context.status == status:
            return

        def told(stored: Context) -> Context | None:
            return msgspec.structs.replace(stored, status=status) if stored.metadata.uid == context.metadata.uid else None

        await self._registry.mutate(Context, context.metadata.name, context.metadata.namespace, told, status=True)

    async def _let_go(self, context: Context) -> None:
        def freed(stored: Context) -> Context | None:
            meta = stored.metadata
            if meta.uid != context.metadata.uid or CONTEXT_FINALIZER not in meta.finalizers:
                return None
            return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(meta, finalizers=()))

        await self._registry.mutate(Context, context.metadata.name, context.metadata.namespace, freed)


def _print_of(context: Context) -> str:
    return repr((context.spec.template, context.spec.epoch))


class SimNodes:
    """All nodes of a world. They share one cache, because a world is one process."""

    def __init__(self, registry: Registry, informers: Informers, rng: random.Random) -> None:
        self._registry = registry
        self._informers = informers
        self._rng = rng
        self._contexts = informers.of(Context)
        self._contexts.index(BY_NODE, lambda context: context.spec.node)
        self._contexts.index(BY_NEXT, lambda context: context.spec.next_node or None)
        self._contexts.subscribe(self._on_context)
        informers.of(Volume).subscribe(self._on_volume)
        self.nodes: dict[str, SimNode] = {}
        self._twice: list[str] = []

    def add(self, name: str, room: Sum) -> SimNode:
        """One more node, that may hold so much."""
        node = SimNode(name, room, self._registry, self._informers, random.Random(self._rng.getrandbits(64)))
        node.on_start = self._on_start
        self.nodes[name] = node
        return node

    def problems(self) -> list[str]:
        """Disks that two microVMs had open at one time, that were looked for in vain, or that were left behind."""
        lost = [f"The data of {name} was not on {node.name}." for node in self.nodes.values() for name in node.disks.lost]
        known = {volume.metadata.uid for volume in self._informers.of(Volume).items()}
        left = [
            f"{node.name} still has {uid}, which is no more."
            for node in self.nodes.values()
            for uid in node.disks.held
            if uid not in known
        ]
        return [*self._twice, *lost, *left]

    def _on_start(self, node: SimNode, context: Context) -> None:
        uid = context.spec.volume_uid
        having = [each.name for each in self.nodes.values() for vm in each.vms.values() if uid and vm.volume_uid == uid]
        if len(having) > 1:
            self._twice.append(f"{context.spec.volume} is open on {', '.join(having)}.")

    async def run(self) -> None:
        """Serve on all nodes until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informers.run())
            for node in self.nodes.values():
                group.create_task(node.run(), name=f"sim/{node.name}")

    def _on_context(self, change: Change[Context]) -> None:
        seen = [context.spec for context in (change.old, change.new) if context is not None]
        for name in sorted({spec.node for spec in seen} | {spec.next_node for spec in seen}):
            with contextlib.suppress(KeyError):
                self.nodes[name].wake()

    def _on_volume(self, change: Change[Volume]) -> None:
        about = change.new or change.old
        if about is None:
            return
        holders = {name for each in (change.old, change.new) if each is not None for name in _holders(each)}
        for node in self.nodes.values():
            if node.name in holders:
                node.disks.look_at((about.metadata.namespace, about.metadata.name))
                node.wake()


def _holders(volume: Volume) -> list[str]:
    held = [name.partition("/")[2] for name in volume.metadata.finalizers]
    return [volume.status.node, *volume.status.replicas, *held]

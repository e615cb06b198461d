"""A soup's controllers over the memory store, with nodes that only pretend to run contexts, and ways to hurt them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from primordia.control.blueprint import CONTEXT_FINALIZER
from primordia.control.main import Controllers
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError
from primordia.ports.store import StoreUnavailableError
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.sim.objects import make_node
from primordia.sim.store import CutError, FaultyStore
from primordia.sim.virtual import VirtualClock
from primordia.testing.virtual import run_virtual
from primordia.wire.resources import Context, Event, Lifeform, Node, Volume
from primordia.wire.volumes import CopyState, HandedOver, LastSync, VolumeCopy


class PretendNodes:
    """Does for every Context what a node would tell the registry: runs, stops, lets go."""

    def __init__(self, registry: Registry, informers: Informers) -> None:
        self._registry = registry
        self._wake = asyncio.Event()
        self._contexts = informers.of(Context)
        self._contexts.subscribe(lambda _: self._wake.set())
        self.hold_finalizers = False
        self.silent: set[str] = set()

    def look(self) -> None:
        """Something that is not in the store has changed."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for context in self._contexts.items():
                if context.spec.node in self.silent:
                    continue
                with contextlib.suppress(NotFoundError, ConflictError, StoreUnavailableError):
                    await self._serve(context)

    async def _expect(self, context: Context) -> None:
        """What the node does to which a context is about to be moved."""
        uid, name = context.metadata.uid, context.spec.next_node

        def expecting(node: Node) -> Node | None:
            known = node.status.expecting
            status = msgspec.structs.replace(node.status, expecting=(*known, uid))
            return None if uid in known else msgspec.structs.replace(node, status=status)

        await self._registry.mutate(Node, name, "", expecting, status=True)

    async def _serve(self, context: Context) -> None:
        meta = context.metadata
        if context.spec.next_node and context.spec.next_node not in self.silent:
            await self._expect(context)
        if meta.deletion_timestamp is not None:
            if self.hold_finalizers or CONTEXT_FINALIZER not in meta.finalizers:
                return
            free = msgspec.structs.replace(context, metadata=msgspec.structs.replace(meta, finalizers=()))
            await self._registry.update(free)
            return
        phase = "Running" if context.spec.wanted == "Running" else "Stopped"
        status = msgspec.structs.replace(
            context.status, phase=phase, ready=phase == "Running", observed_generation=meta.generation
        )
        if context.status.phase not in ("Succeeded", "Failed") and status != context.status:
            await self._registry.update_status(msgspec.structs.replace(context, status=status))


class PretendDisks:
    """Does for every Volume what its owner's daemon would tell: makes the disk, feeds the copies, hands over.

    `stuck` are nodes that no copy reaches. `deeds` tells in order which copies became whole and what was handed over.
    """

    def __init__(self, registry: Registry, informers: Informers) -> None:
        self._registry = registry
        self._wake = asyncio.Event()
        self._volumes = informers.of(Volume)
        self._volumes.subscribe(lambda _: self._wake.set())
        self.stuck: set[str] = set()
        self.deeds: list[tuple[str, str]] = []

    def look(self) -> None:
        """Something that is not in the store has changed."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for volume in self._volumes.items():
                with contextlib.suppress(NotFoundError, ConflictError, StoreUnavailableError):
                    await self._serve(volume)

    async def _serve(self, volume: Volume) -> None:
        status = volume.status
        if not status.node:
            return
        copies = tuple(VolumeCopy(node=each, number=1, state=self._state(each)) for each in status.replicas)
        told = msgspec.structs.replace(status, size_bytes=1, number=1, copies=copies)
        handover = status.handover
        if handover is not None and handover.epoch == status.epoch and self._state(handover.to) == "InSync":
            handed = HandedOver(to=handover.to, at=handover.at, number=1)
            synced = LastSync(epoch=status.epoch, number=1, copies=(handover.to,))
            told = msgspec.structs.replace(told, handed_over=handed, last_sync=synced)
        if told == status:
            return
        self.deeds += [("whole", each.node) for each in copies if each not in status.copies and each.state == "InSync"]
        if told.handed_over != status.handed_over and told.handed_over is not None:
            self.deeds.append(("handed over", told.handed_over.to))
        await self._registry.update_status(msgspec.structs.replace(volume, status=told))

    def _state(self, node: str) -> CopyState:
        return "Unreachable" if node in self.stuck else "InSync"


class ControlWorld:
    """Controllers that may be killed and started anew, over a store that stays."""

    def __init__(self, seed: int = 0) -> None:
        self.clock: Clock = VirtualClock()
        self.rng = random.Random(seed)
        self.memory = MemoryStore(self.clock)
        self.store = FaultyStore(self.memory)
        self.sure = Registry(self.memory, self.clock)
        self.controllers: Controllers | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._side: list[asyncio.Task[Any]] = []
        self.died = asyncio.Event()

    async def begin(self) -> None:
        """Start the pretended nodes, and know the disks."""
        informers = Informers(self.sure)
        self.nodes = PretendNodes(self.sure, informers)
        self.disks = PretendDisks(self.sure, informers)
        self._side = [asyncio.create_task(informers.run()), asyncio.create_task(self.nodes.run())]

    def pretend_disks(self) -> None:
        """Have volumes served from now on; without, a story tells itself what daemons would."""
        self._side.append(asyncio.create_task(self.disks.run()))

    async def start(self) -> None:
        """Start controllers as a fresh process would."""
        self.died.clear()
        registry = Registry(self.store, self.clock)
        informers = Informers(registry)
        events = EventRecorder(self.sure, "controller", "test", rng=random.Random(self.rng.random()))
        self.controllers = Controllers(registry, informers, self.clock, events, rng=random.Random(self.rng.random()))
        self._tasks = [
            asyncio.create_task(events.run()),
            asyncio.create_task(self._guarded(informers, self.controllers)),
        ]

    async def _guarded(self, informers: Informers, controllers: Controllers) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(informers.run())
                group.create_task(controllers.run())
        except BaseExceptionGroup as group:
            if group.subgroup(CutError) is None:
                raise
        finally:
            self.died.set()

    async def kill(self) -> None:
        """The process ends in the middle of whatever it does."""
        await _end(self._tasks)

    async def close(self) -> None:
        await _end(self._tasks + self._side)
        await self.memory.close()

    async def until(self, condition: Callable[[], Any], *, within_s: float = 120.0) -> None:
        """Let time pass until the (async) condition holds."""
        async with asyncio.timeout(within_s):
            while not await condition():
                await self.clock.sleep(0.1)

    async def lifeform(self, name: str) -> Lifeform | None:
        with contextlib.suppress(NotFoundError):
            return await self.sure.get(Lifeform, name, "default")
        return None

    async def contexts(self) -> dict[str, Context]:
        return {context.metadata.name: context for context in (await self.sure.list(Context)).items}

    async def events(self) -> list[tuple[str, str]]:
        """Reasons and messages, once the recorder has had time to write them."""
        await self.clock.sleep(1)
        return [(event.reason, event.message) for event in (await self.sure.list(Event)).items]


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, CutError):
            await task


Story = Callable[[ControlWorld], Awaitable[None]]


def play(story: Story, *, nodes: tuple[Node, ...] = (), seed: int = 0) -> None:
    """Play a story in a world of its own, under virtual time; without `nodes` it has one, n1."""

    async def main() -> None:
        world = ControlWorld(seed)
        try:
            await world.begin()
            for node in nodes or (make_node("n1"),):
                await world.sure.create(node)
            await world.start()
            await story(world)
        finally:
            await world.close()

    run_virtual(main())


def phase_is(world: ControlWorld, name: str, phase: str) -> Callable[[], Awaitable[bool]]:
    """Whether the lifeform has got there, to wait for."""

    async def check() -> bool:
        lifeform = await world.lifeform(name)
        return lifeform is not None and lifeform.status.phase == phase

    return check

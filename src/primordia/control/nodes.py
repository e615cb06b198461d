"""Which nodes live, by their leases: a Node's Ready becomes Unknown when its lease ends, and True when it is back.

Nobody asks the nodes: the lease keys are watched. Each verdict is written by a transaction that compares the lease's key
with what the verdict rests on, so a watch that is late can delay a verdict but not make a false one. Nothing is
written while nothing changes, and nothing is judged while the store is away.

What the node itself has to say (Ready is False where no microVM can be started) it says once it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random

import msgspec

from primordia.control.queue import WorkQueue
from primordia.domain.conditions import Verdict
from primordia.domain.lease import LEASES, lease_key
from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError
from primordia.ports.store import CompactedError, Compare, WatchBatch
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.guarded import GuardedStore, GuardError
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.wire.conditions import find, is_silent, merge
from primordia.wire.meta import Condition
from primordia.wire.resources import Node

log = logging.getLogger(__name__)

_RETRY_S = 1.0


def judge(conditions: tuple[Condition, ...], alive: bool) -> Verdict | None:
    """The Ready condition that a node must get, None when it may keep what it has."""
    if alive:
        return Verdict("Ready", "True", "NodeReady") if is_silent(conditions) else None
    if is_silent(conditions):
        return None
    return Verdict("Ready", "Unknown", "NodeLeaseExpired", "Its lease has ended: nothing is known of it and what it runs.")


class NodeMonitor:
    """Keeps the Ready conditions of all nodes. For the leader; its registry's store must refuse a deposed one."""

    def __init__(
        self, registry: Registry, informers: Informers, clock: Clock, events: EventRecorder, *, rng: random.Random | None = None
    ) -> None:
        self._registry = registry
        self._nodes = informers.of(Node)
        self._clock = clock
        self._events = events
        self._lives: dict[str, int] = {}
        self._queue: WorkQueue[str] = WorkQueue(clock, rng or random.Random())

    async def run(self) -> None:
        """Judge until cancelled."""
        await self._nodes.synced()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._queue.run_timers(), name="nodes/timers")
                group.create_task(self._follow(), name="nodes/leases")
                await self._work()
        finally:
            self._nodes.unsubscribe(self._on_node)

    # ------------------------------------------------------------ following

    async def _follow(self) -> None:
        revision = 0
        while True:
            try:
                if not revision:
                    revision = await self._list()
                async with self._registry.store.watch(LEASES, after_revision=revision) as batches:
                    async for batch in batches:
                        self._take(batch)
                        revision = batch.revision
            except CompactedError:
                revision = 0
            except PrimordiaError as error:
                log.warning("the nodes' leases: %s", error)
            await self._clock.sleep(_RETRY_S)

    async def _list(self) -> int:
        listing = await self._registry.store.list(LEASES)
        self._lives = {item.key.removeprefix(LEASES): item.create_revision for item in listing.items}
        # Subscribing tells of every node there is; only now can they be judged.
        self._nodes.unsubscribe(self._on_node)
        self._nodes.subscribe(self._on_node)
        return listing.revision

    def _take(self, batch: WatchBatch) -> None:
        for event in batch.events:
            name = event.key.removeprefix(LEASES)
            if event.value is None:
                self._lives.pop(name, None)
            else:
                self._lives[name] = event.create_revision
            self._queue.add(name)

    def _on_node(self, change: Change[Node]) -> None:
        if change.new is not None:
            self._queue.add(change.new.metadata.name)

    # ------------------------------------------------------------ judging

    async def _work(self) -> None:
        while True:
            name = await self._queue.take()
            try:
                await self._look(name)
                self._queue.forget(name)
            except NotFoundError:
                self._queue.forget(name)
            except (ConflictError, GuardError) as error:
                log.debug("node %s: %s", name, error)
                self._queue.retry(name)
            except PrimordiaError as error:
                log.warning("node %s: %s", name, error)
                self._queue.retry(name)
            finally:
                self._queue.done(name)

    async def _look(self, name: str) -> None:
        node, life = self._nodes.get(name), self._lives.get(name, 0)
        if node is None or judge(node.status.conditions, bool(life)) is None:
            return
        now = timestamp(self._clock.wall())
        guarded = GuardedStore(self._registry.store, [Compare(lease_key(name), "create", life)])
        told: list[Verdict] = []

        def judged(stored: Node) -> Node | None:
            told.clear()
            verdict = judge(stored.status.conditions, bool(life))
            if verdict is None:
                return None
            told.append(verdict)
            before = stored.status.conditions
            others = tuple(each for each in before if each.type != "Ready")
            ready = find(merge(before, [verdict], now), "Ready")
            assert ready is not None
            status = msgspec.structs.replace(stored.status, conditions=(ready, *others))
            return msgspec.structs.replace(stored, status=status)

        await Registry(guarded, self._clock).mutate(Node, name, "", judged, status=True)
        for verdict in told:
            log.warning("node %s: Ready is %s (%s)", name, verdict.status, verdict.reason)
            message = verdict.message or "Its lease is there."
            self._events.record(node, verdict.reason, message, warning=verdict.status == "Unknown")

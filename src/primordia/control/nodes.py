"""Which nodes live, by their leases: a Node's Ready becomes Unknown when its lease ends, False once it is known to be dead,
and True when it is back.

Nobody asks the nodes: the lease keys are watched. Each verdict is written by a transaction that compares the lease's key
with what the verdict rests on, so a watch that is late can delay a verdict but not make a false one. Nothing is
written while nothing changes, and nothing is judged while the store is away.

What the node itself has to say (Ready is False where no microVM can be started) it says once it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec

from primordia.control.lifebook import LifeBook, Page
from primordia.control.queue import WorkQueue
from primordia.domain.conditions import Verdict
from primordia.domain.lease import lease_key
from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError
from primordia.ports.store import Compare
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.guarded import GuardedStore, GuardError
from primordia.registry.informers import Informers
from primordia.registry.lives import dead_guards
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.wire.conditions import FAILOVER_HELD, NODE_DEAD, find, is_silent, merge
from primordia.wire.meta import Condition
from primordia.wire.resources import Node

log = logging.getLogger(__name__)


def judge(conditions: tuple[Condition, ...], page: Page | None, held: str = "") -> Verdict | None:
    """The Ready condition that a node must get, None when it may keep what it has.

    `held` says why its death is not declared.
    """
    if page is not None and page.present:
        return Verdict("Ready", "True", "NodeReady") if is_silent(conditions) else None
    wanted = Verdict("Ready", "Unknown", "NodeLeaseExpired", "Its lease has ended: nothing is known of it and what it runs.")
    if page is not None and page.dead and page.death is not None:
        who = "It said so itself" if page.death.by == "node" else page.death.reason.rstrip(".")
        wanted = Verdict("Ready", "False", NODE_DEAD, f"Its life {page.life} is over: nothing of it runs any more. {who}.")
    elif held:
        wanted = Verdict("Ready", "Unknown", FAILOVER_HELD, held)
    ready = find(conditions, "Ready")
    same = ready is not None and (ready.status, ready.reason) == (wanted.status, wanted.reason)
    return None if same else wanted


class NodeMonitor:
    """Keeps the Ready conditions of all nodes. For the leader; its registry's store must refuse a deposed one.

    `book` is run by its owner; `held` tells why the death of a node is not declared, empty where that is not so.
    """

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        book: LifeBook,
        clock: Clock,
        events: EventRecorder,
        *,
        held: Callable[[str], str] = lambda node: "",
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._nodes = informers.of(Node)
        self._book = book
        self._clock = clock
        self._events = events
        self._held = held
        self._queue: WorkQueue[str] = WorkQueue(clock, rng or random.Random())

    async def run(self) -> None:
        """Judge until cancelled."""
        await self._nodes.synced()
        await self._book.filled()
        self._book.subscribe(self._queue.add)
        # Subscribing tells of every node there is; only now can they be judged.
        self._nodes.subscribe(self._on_node)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._queue.run_timers(), name="nodes/timers")
                await self._work()
        finally:
            self._nodes.unsubscribe(self._on_node)
            self._book.unsubscribe(self._queue.add)

    def look_at(self, name: str) -> None:
        """Something that is said of the node has changed."""
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
        node, page, held = self._nodes.get(name), self._book.get(name), self._held(name)
        if node is None or judge(node.status.conditions, page, held) is None:
            return
        now = timestamp(self._clock.wall())
        guarded = GuardedStore(self._registry.store, _guards(name, page))
        told: list[Verdict] = []

        def judged(stored: Node) -> Node | None:
            told.clear()
            verdict = judge(stored.status.conditions, page, held)
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
            self._events.record(node, verdict.reason, message, warning=verdict.status != "True")


def _guards(name: str, page: Page | None) -> list[Compare]:
    """What the verdict rests on."""
    if page is not None and page.dead:
        return list(dead_guards(name, page.life))
    return [Compare(lease_key(name), "create", page.lease_revision if page is not None else 0)]

"""The controllers of a soup: a queue of lifeforms that want a look and a few workers that look; small ones of boxes, volumes.

Every event about a lifeform, its contexts or the nodes puts keys into the queue in constant time; the looks themselves
read caches only. A failure of one look never disturbs another: the key comes again with back-off.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from primordia.control.boxes import BoxController
from primordia.control.deaths import BY_NODE, DeathWatch
from primordia.control.failover import FailoverController
from primordia.control.lifeforms import LifeformController
from primordia.control.queue import WorkQueue
from primordia.control.scheduler import Key, Scheduler, index_key
from primordia.control.volumes import VolumeController
from primordia.domain.timings import Timings
from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.conditions import NODE_DEAD, find
from primordia.wire.resources import Context, Lifeform, Node

log = logging.getLogger(__name__)

BY_TARGET = "target"
Look = Callable[[Key], Awaitable[None]]


class Controllers:
    """Everything that one leader does for the soup. `informers` must be run by the owner, and so must `deaths`, without
    which nothing is failed over."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        clock: Clock,
        events: EventRecorder,
        *,
        workers: int = 4,
        rng: random.Random | None = None,
        deaths: DeathWatch | None = None,
        timings: Timings = Timings(),  # noqa: B008 (frozen)
    ) -> None:
        self._informers = informers
        self._lifeforms = informers.of(Lifeform)
        self._contexts = informers.of(Context)
        self._workers = workers
        rng = rng or random.Random()
        self.queue: WorkQueue[Key] = WorkQueue(clock, rng)
        self.scheduler = Scheduler(informers, self.queue.add)
        self.boxes = BoxController(registry, informers, self.scheduler.ledger, WorkQueue(clock, rng))
        self.volumes = VolumeController(registry, informers, WorkQueue(clock, rng), self.queue.add, events, clock, timings)
        self._controller = LifeformController(registry, informers, self.scheduler, events, clock, self.queue.add_after)
        self.failover = (
            FailoverController(registry, informers, self.scheduler, deaths, events, self.queue.add)
            if deaths is not None
            else None
        )
        self._deaths = deaths
        self._nodes = informers.of(Node)
        self._lifeforms.subscribe(self._on_lifeform)
        self._contexts.subscribe(self._on_context)
        self._lifeforms.index(BY_NODE, lambda lifeform: lifeform.status.node or None)
        self._lifeforms.index(BY_TARGET, lambda lifeform: lifeform.status.moving.to if lifeform.status.moving else None)
        self._nodes.subscribe(self._on_node)

    async def run(self) -> None:
        """Work until cancelled. Begins once the caches are filled: half a picture is not acted upon."""
        await self._informers.synced()
        self.scheduler.recall()
        self.boxes.recall()
        boxes, volumes = self.boxes.queue, self.volumes.queue
        async with asyncio.TaskGroup() as group:
            group.create_task(self.queue.run_timers(), name="controllers/timers")
            group.create_task(boxes.run_timers(), name="controllers/box-timers")
            group.create_task(self._work(boxes, self.boxes.look), name="controllers/boxes")
            group.create_task(volumes.run_timers(), name="controllers/volume-timers")
            group.create_task(self._work(volumes, self.volumes.look), name="controllers/volumes")
            if self.failover is not None:
                group.create_task(self.failover.run(), name="controllers/failover")
            for number in range(self._workers):
                group.create_task(self._work(self.queue, self._controller.look), name=f"controllers/worker-{number}")

    def close(self) -> None:
        """Leave the caches: the next leader's controllers in this process begin anew."""
        self.scheduler.close()
        self.volumes.close()
        self._lifeforms.unsubscribe(self._on_lifeform)
        self._contexts.unsubscribe(self._on_context)
        self._nodes.unsubscribe(self._on_node)

    async def look(self, key: Key) -> None:
        """One look at a lifeform; its failure is logged and the key comes again."""
        await self._look(self.queue, self._controller.look, key)

    async def _look(self, queue: WorkQueue[Key], look: Look, key: Key) -> None:
        try:
            await look(key)
        except (ConflictError, NotFoundError) as error:  # the caches are behind
            log.debug("%s/%s: %s", *key, error)
            queue.retry(key)
        except PrimordiaError as error:
            log.warning("%s/%s: %s", *key, error)
            queue.retry(key)
        except Exception:
            log.exception("%s/%s: the look failed", *key)
            queue.retry(key)
        else:
            queue.forget(key)

    async def _work(self, queue: WorkQueue[Key], look: Look) -> None:
        while True:
            key = await queue.take()
            try:
                await self._look(queue, look, key)
            finally:
                queue.done(key)

    def _on_lifeform(self, change: Change[Lifeform]) -> None:
        about = change.new or change.old
        if about is None:
            return
        key = (about.metadata.namespace, about.metadata.name)
        self.volumes.on_lifeform(change)
        if change.new is not None:
            self._expect(change.new.status.node)
        if change.old is not None and (change.new is None or change.new.metadata.uid != change.old.metadata.uid):
            self.scheduler.recount(key, change.old.metadata.uid)
        self.queue.add(key)

    def _on_node(self, change: Change[Node]) -> None:
        """A node that fell silent, or came back, changes what is known of all that it runs."""
        self.boxes.on_node(change)
        self.volumes.on_node(change)
        old, new = change.old, change.new
        about = new or old
        if about is None:
            return
        if new is None:
            self._expect(about.metadata.name)
        if new is None or old is None or _outlook(old) != _outlook(new):
            for lifeform in self._lifeforms.by_index(BY_TARGET, about.metadata.name):
                self.queue.add((lifeform.metadata.namespace, lifeform.metadata.name))
        if new is None or _said(new) != _said(old):
            for lifeform in self._lifeforms.by_index(BY_NODE, about.metadata.name):
                self.queue.add((lifeform.metadata.namespace, lifeform.metadata.name))

    def _expect(self, node: str) -> None:
        """Lifeforms of a node that is not there any more do not wait for it."""
        if node and self._deaths is not None and self._nodes.get(node) is None:
            self._deaths.book.expect(node)

    def _on_context(self, change: Change[Context]) -> None:
        about = change.new or change.old
        if about is None:
            return
        self.boxes.on_context(change)
        key, owner = index_key(about), about.spec.lifeform_uid
        if key is None:
            return
        lifeform = self._lifeforms.get(about.spec.lifeform, about.metadata.namespace)
        if lifeform is None or lifeform.metadata.uid != owner:
            self.scheduler.recount(key, owner)
        self.queue.add(key)


def _said(node: Node | None) -> tuple[str, str]:
    """What is said of a node's life."""
    ready = find(node.status.conditions, "Ready") if node is not None else None
    silent = ready is not None and (ready.status == "Unknown" or ready.reason == NODE_DEAD)
    return (ready.reason, ready.message) if ready is not None and silent else ("", "")


def _outlook(node: Node) -> object:
    """What of a node matters to those that are to be moved there."""
    return node.status.conditions, node.status.expecting, node.status.allocatable

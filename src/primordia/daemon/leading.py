"""What one node does for the whole soup while it leads, and nobody else meanwhile.

All of it writes through a store whose every transaction compares the leadership's key, so that a leader that was deposed
without knowing it writes nothing. It begins with caches that are as new as the leadership: the last leader's writes came
before it, and a placement that was not seen would be made twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable

from primordia.control.deaths import DeathWatch
from primordia.control.lifebook import LifeBook
from primordia.control.main import Controllers
from primordia.control.nodes import NodeMonitor
from primordia.control.owners import settle_owners
from primordia.control.readings import LeaseReadings
from primordia.domain.contact import Contact, fit_to_lead, why_unsure
from primordia.domain.lease import lease_key
from primordia.domain.timings import Timings
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.kit.ids import new_uid
from primordia.ports.store import Compare, Store
from primordia.registry.events import EventRecorder
from primordia.registry.guarded import GuardedStore
from primordia.registry.informers import Informers
from primordia.registry.leader import Leader
from primordia.registry.registry import Registry
from primordia.wire.resources import Context, Lifeform, Node, Volume

OFFICE = "controllers"
_RETRY_S = 0.5

log = logging.getLogger(__name__)


class Leading:
    """This node's part in the soup's leadership. The owner runs `informers` and `events`.

    `incarnation` tells this node's run folder and boot from any other, empty where it is not known. `new_uid` and `rng` are
    for those who want a run to be repeatable. `contact` is the node's with the engine (`domain/contact.py`), which
    a declaration of death rests on; without one everybody is trusted, as in a test.
    """

    def __init__(  # noqa: PLR0913 (a composition: each is a port or a part that the owner shares)
        self,
        store: Store,
        informers: Informers,
        clock: Clock,
        events: EventRecorder,
        node: str,
        incarnation: str,
        *,
        timings: Timings = Timings(),  # noqa: B008 (frozen)
        contact: Callable[[], Contact | None] | None = None,
        new_uid: Callable[[], str] = new_uid,
        rng: random.Random | None = None,
    ) -> None:
        self._timings = timings
        self._contact = contact
        self._new_uid = new_uid
        self._rng = rng or random.Random()
        self._store = store
        self._informers = informers
        self._page_changed = asyncio.Event()
        self._clock = clock
        self._events = events
        for kind in (Lifeform, Context, Node, Volume):
            informers.of(kind)
        self.book = LifeBook(store, clock)
        self.leader = Leader(store, clock, OFFICE, f"{node}/{incarnation or secrets.token_hex(8)}", timings, self._is_fit)
        self.readings = LeaseReadings(
            store,
            self.book,
            clock,
            timings,
            node,
            leads=lambda: self.leader.leads,
            leader=lambda: self.leader.leader.partition("/")[0],
        )

    async def run(self) -> None:
        """Lead whenever it is our turn, until cancelled; then resign."""
        await self._informers.synced()
        async with asyncio.TaskGroup() as group:
            # Also while another leads: what was seen meanwhile counts when it is our turn.
            following = [
                group.create_task(self.book.run(), name="lifebook"),
                group.create_task(self.readings.run(), name="readings"),
                group.create_task(self._follow_leader(), name="leader's node"),
            ]
            try:
                await self.leader.run(self._lead)
            finally:
                for task in following:
                    task.cancel()

    async def _follow_leader(self) -> None:
        """A leader whose node has lost its lease is waited for no longer: its office may last a second more, and the node's
        death is the first thing that its successor has to see to."""
        await self.book.filled()
        self.book.subscribe(self._on_page)
        try:
            while True:
                self._page_changed.clear()
                leader = self.leader.leader.partition("/")[0]
                page = self.book.get(leader)
                pause_s: float | None = None
                if page is not None and page.seen and not page.present and not self.leader.leads:
                    pause_s = _RETRY_S
                    try:
                        await self.leader.depose([Compare(lease_key(leader), "create", 0)])
                    except PrimordiaError as error:
                        log.info("%s, whose node has lost its lease, is still in office: %s", leader, error)
                await wait_event(self._clock, self._page_changed, pause_s)
        finally:
            self.book.unsubscribe(self._on_page)

    def _on_page(self, _node: str) -> None:
        self._page_changed.set()

    def _is_fit(self) -> bool:
        return self._contact is None or fit_to_lead(self._contact(), self._timings, self._clock.boottime())

    def _unsure(self) -> str:
        return why_unsure(self._contact(), self._timings, self._clock.boottime()) if self._contact is not None else ""

    async def _lead(self, guard: Compare) -> None:
        registry = Registry(GuardedStore(self._store, [guard]), self._clock, new_uid=self._new_uid)
        self.readings.look()
        await self._prepare(registry)
        deaths = DeathWatch(
            registry, self._informers, self.book, self.readings, self._clock, timings=self._timings, unsure=self._unsure
        )
        monitor = NodeMonitor(registry, self._informers, self.book, self._clock, self._events, held=deaths.held, rng=self._rng)
        deaths.on_verdict = monitor.look_at
        controllers = Controllers(
            registry,
            self._informers,
            self._clock,
            self._events,
            rng=self._rng,
            deaths=deaths,
            timings=self._timings,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(controllers.run(), name="controllers")
                group.create_task(monitor.run(), name="nodes")
                group.create_task(deaths.run(), name="deaths")
        finally:
            controllers.close()

    async def _prepare(self, registry: Registry) -> None:
        while True:
            try:
                await self._informers.refresh(Lifeform, Context, Node, Volume)
                if wrong := await settle_owners(registry, self._informers):
                    log.warning("%d owners were put right", wrong)
                return
            except PrimordiaError as error:
                log.warning("leading waits: %s", error)
                await self._clock.sleep(_RETRY_S)

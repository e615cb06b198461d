"""What is left of the nodes' leases, as far as this process has asked: it tells one that ran out from one that was ended.

The leader asks about every node, of a healthy one every few seconds, and often about one near its end. Whoever does not lead
asks about the leader's own node alone: that is the one death which it will have to judge from its first moment in office.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from primordia.control.lifebook import LifeBook, Page
from primordia.domain import takeover
from primordia.domain.lease import LEASES
from primordia.domain.timings import Timings
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.ports.store import Store

log = logging.getLogger(__name__)

_TICK_S = 1.0
_RETRY_S = 0.5
_SHORTEST_S = 0.05
_FEW = 50
"""Of a soup's nodes the first so many follow the leader's lease while they do not lead. Of more, most would ask for nothing."""


@dataclass
class Reading:
    """What a lease had left, above zero, when that was last heard; `due_s` is when to ask again.

    `heard` says that there was any answer, and `ending` that the last one was zero.
    """

    lease_revision: int
    left_s: float | None = None
    read_s: float = 0.0
    due_s: float = 0.0
    heard: bool = False
    ending: bool = False


class LeaseReadings:
    """Readings by node. `leader` tells the node that leads (empty: unknown), `leads` whether that is this one."""

    def __init__(
        self,
        store: Store,
        book: LifeBook,
        clock: Clock,
        timings: Timings,
        node: str = "",
        *,
        leads: Callable[[], bool] = lambda: True,
        leader: Callable[[], str] = lambda: "",
    ) -> None:
        self._store = store
        self._book = book
        self._clock = clock
        self._timings = timings
        self._node = node
        self._leads = leads
        self._leader = leader
        self._readings: dict[str, Reading] = {}
        self._wake = asyncio.Event()

    def look(self) -> None:
        """Whom to ask has changed: do not wait for the next turn."""
        self._wake.set()

    def of(self, page: Page) -> Reading | None:
        """The last reading of this life's lease."""
        reading = self._readings.get(page.node)
        return reading if reading is not None and reading.lease_revision in (page.lease_revision, page.life) else None

    @property
    def complete(self) -> bool:
        """Whether something has been heard of every lease that is there: who has just begun to lead knows of few."""
        found = (self.of(page) for page in self._book.pages.values() if page.present)
        return all(reading is not None and reading.heard for reading in found)

    async def run(self) -> None:
        """Ask until cancelled."""
        await self._book.filled()
        while True:
            self._wake.clear()
            now = self._clock.boottime()
            asked = self._asked()
            try:
                await self._learn_leases(asked)
                due = [page for page in asked if page.lease and self._reading(page).due_s <= now]
                await asyncio.gather(*(self._read(page) for page in due))
            except PrimordiaError as error:
                log.warning("the nodes' leases cannot be read: %s", error)
            soonest = min((self._reading(page).due_s for page in asked), default=now + _TICK_S)
            pause_s = min(_TICK_S, max(_SHORTEST_S, soonest - self._clock.boottime()))
            await wait_event(self._clock, self._wake, pause_s)

    def _asked(self) -> list[Page]:
        pages = self._book.pages
        if self._leads():
            return [page for page in pages.values() if page.present]
        page = pages.get(self._leader())
        if page is None or not page.present or (len(pages) > _FEW and self._node not in sorted(pages)[:_FEW]):
            return []
        return [page]

    async def _learn_leases(self, asked: list[Page]) -> None:
        """Which lease each key is under: only a listing says so."""
        if any(not page.lease for page in asked):
            for item in (await self._store.list(LEASES)).items:
                page = self._book.get(item.key.removeprefix(LEASES))
                if page is not None and page.lease_revision == item.create_revision:
                    page.lease = item.lease

    def _reading(self, page: Page) -> Reading:
        reading = self._readings.get(page.node)
        if reading is None or (page.present and reading.lease_revision != page.lease_revision):
            reading = self._readings[page.node] = Reading(page.lease_revision)
        return reading

    async def _read(self, page: Page) -> None:
        reading, sent_s = self._reading(page), self._clock.boottime()
        try:
            left_s = await self._store.time_to_live(page.lease)
        except NotFoundError:
            left_s = 0.0
        except PrimordiaError:
            reading.due_s = sent_s + _RETRY_S
            raise
        reading.heard, reading.ending = True, left_s <= 0
        if left_s > 0:
            reading.left_s, reading.read_s = left_s, sent_s
        reading.due_s = sent_s + takeover.next_reading_s(left_s, self._timings)

"""Declares nodes dead, where `domain/takeover.py` allows it: for the leader, by transactions that a living node refuses.

What was seen of the keys, and of what was left of the leases, is older than the leadership: in the book and the readings.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from primordia.control.lifebook import LifeBook, Page
from primordia.control.readings import LeaseReadings
from primordia.domain import takeover
from primordia.domain.takeover import Dead, Hold, Verdict, Wait, Watched
from primordia.domain.timings import Timings
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.ports.store import Compare
from primordia.registry.informers import Informers
from primordia.registry.keys import key_of
from primordia.registry.lives import Death, dead_guards, death_put
from primordia.registry.registry import Registry
from primordia.registry.rules import moment, timestamp
from primordia.wire.conditions import in_maintenance
from primordia.wire.meta import ANNOTATION_FAILOVER_ALL, LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Lifeform, Node, Soup

log = logging.getLogger(__name__)

BY_NODE = "node"
_TICK_S = 1.0
_UNSURE_S = 0.5
_SEE_S = 0.02
_BLIND_S = 3.0
OVERRIDE_S = 300.0
"""How long `failover --all` lifts the hold."""

_DEFAULT = Timings()


class DeathWatch:
    """Judges and declares while it runs. `book` and `readings` are run by their owner; `on_verdict` is told of a
    node that is held, or no longer is; `unsure` says why nobody may be declared dead from this node now, if so
    (`domain/contact.py`)."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        book: LifeBook,
        readings: LeaseReadings,
        clock: Clock,
        *,
        timings: Timings = _DEFAULT,
        unsure: Callable[[], str] = lambda: "",
    ) -> None:
        self._unsure = unsure
        self._registry = registry
        self._nodes = informers.of(Node)
        self._lifeforms = informers.of(Lifeform)
        self._lifeforms.index(BY_NODE, lambda lifeform: lifeform.status.node or None)
        self.book = self._book = book
        self._clock = clock
        self.timings = self._timings = timings
        self.on_verdict: Callable[[str], None] = lambda node: None
        self._readings = readings
        self._verdicts: dict[str, Verdict] = {}
        self._blind_s: float | None = None
        self._changed = asyncio.Event()

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What was last said of each node that is away and not dead."""
        return self._verdicts

    def held(self, node: str) -> str:
        """Why the death of a node is not declared though it could be; empty where that is not so."""
        verdict = self._verdicts.get(node)
        return verdict.reason if isinstance(verdict, Hold) else ""

    def last_sign_s(self, node: str) -> float | None:
        """The latest moment (boot-time seconds) at which a node that is away can have written; None if nothing is known."""
        page = self._book.get(node)
        return takeover.last_sign_s(self._watched(page), self._timings) if page is not None and page.seen else None

    async def run(self) -> None:
        """Work until cancelled."""
        await self._book.filled()
        self._book.subscribe(self._on_page)
        try:
            await self._judge()
        finally:
            self._book.unsubscribe(self._on_page)

    def _on_page(self, _node: str) -> None:
        self._changed.set()

    # ------------------------------------------------------------ verdicts

    async def _judge(self) -> None:
        while True:
            self._changed.clear()
            now = self._clock.boottime()
            seen = [self._watched(page) for page in self._book.pages.values() if page.life or page.present or self._left(page)]
            verdicts = takeover.judge(seen, self._timings, now)
            if any(isinstance(verdict, Hold) for verdict in verdicts.values()) and await self._is_overridden():
                verdicts = takeover.judge(seen, self._timings, now, override=True)
            self._tell(verdicts)
            someone = any(isinstance(verdict, Dead) for verdict in verdicts.values())
            if not someone:
                self._blind_s = None
            if someone and not self._sees_all(now):
                await wait_event(self._clock, self._changed, _SEE_S)
                continue
            if (why := self._unsure()) and someone:
                log.warning("nobody is declared dead yet: %s", why)
                await wait_event(self._clock, self._changed, _UNSURE_S)
                continue
            dead = [(name, verdict) for name, verdict in verdicts.items() if isinstance(verdict, Dead)]
            await asyncio.gather(*(self._declare(*each) for each in dead))
            await wait_event(self._clock, self._changed, _pause_s(verdicts, now))

    def _sees_all(self, now: float) -> bool:
        """Whether it is known how all the others are, so that many that go at once are seen to go; for a moment."""
        if self._readings.complete:
            self._blind_s = None
            return True
        if self._blind_s is None:
            self._blind_s = now
        return now - self._blind_s >= _BLIND_S

    def _watched(self, page: Page) -> Watched:
        node, reading = self._nodes.get(page.node), self._readings.of(page)
        labels = node.metadata.labels if node is not None else {}
        return Watched(
            node=page.node,
            rack="/".join(filter(None, (labels.get(LABEL_SEGMENT), labels.get(LABEL_RACK)))),
            life=page.life,
            present=page.present,
            since_s=page.since_s,
            from_start=not page.seen,
            left_s=reading.left_s if reading is not None else None,
            read_s=reading.read_s if reading is not None else 0.0,
            death=page.death.by if page.death is not None and page.death.life == page.life else "",
            left=self._left(page),
            ending=page.present and reading is not None and reading.ending,
            maintenance=node is not None and in_maintenance(node, self._clock.wall()),
        )

    def _left(self, page: Page) -> bool:
        """Whether the node was taken out of the soup, and lifeforms stayed behind."""
        known = page.life or page.present or self._nodes.get(page.node) is not None
        return not known and bool(self._lifeforms.by_index(BY_NODE, page.node))

    def _tell(self, verdicts: dict[str, Verdict]) -> None:
        before, self._verdicts = self._verdicts, verdicts
        for name in sorted(before.keys() | verdicts.keys()):
            if isinstance(before.get(name), Hold) != isinstance(verdicts.get(name), Hold):
                self.on_verdict(name)

    async def _is_overridden(self) -> bool:
        try:
            soup = await self._registry.get(Soup, "soup")
        except PrimordiaError:
            return False
        asked = moment(soup.metadata.annotations.get(ANNOTATION_FAILOVER_ALL, ""))
        return asked is not None and abs((self._clock.wall() - asked).total_seconds()) < OVERRIDE_S

    async def _declare(self, name: str, verdict: Dead) -> None:
        page = self._book.get(name)
        if page is None:
            return
        boot_id = page.holder.boot_id if page.holder is not None else ""
        at = timestamp(self._clock.wall())
        death = Death(life=page.life, by="controllers", reason=verdict.reason, boot_id=boot_id, at=at)
        try:
            guards = [*dead_guards(name, page.life)]
            if not page.life:
                guards.append(Compare(key_of(Node, name), "mod", 0))
            result = await self._registry.store.txn(guards, [death_put(name, death)])
        except PrimordiaError as error:
            log.warning("the death of node %s is not declared yet: %s", name, error)
            return
        if result.done:
            log.warning("node %s is declared dead, life %d: %s", name, page.life, verdict.reason)


def _pause_s(verdicts: Mapping[str, Verdict], now: float) -> float | None:
    """How long nothing has to be judged; None when nobody is away."""
    if any(not isinstance(verdict, Wait) for verdict in verdicts.values()):
        return _TICK_S
    ends = [verdict.until_s for verdict in verdicts.values() if isinstance(verdict, Wait) and verdict.until_s is not None]
    if not ends:
        return _TICK_S if verdicts else None
    return min(_TICK_S, max(0.01, min(ends) - now))

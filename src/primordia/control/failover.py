"""Carries lifeforms over from dead nodes: what `domain/failover.py` plans, each as one transaction that a node which lives, or
an object which has changed, refuses.

Whenever something has changed that may matter, the whole plan is made again from the caches; nothing is remembered but when a
death was learned and what is being started. What is promised on a new node is promised before anything is awaited, and what
was promised on the dead one is given up with it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from primordia.control.binding import Binder
from primordia.control.data import Volumes
from primordia.control.deaths import BY_NODE, DeathWatch
from primordia.control.lifebook import Page
from primordia.control.lost import Estate, estate_dead_on, is_over, lost_of
from primordia.control.remains import Remains
from primordia.control.scheduler import BY_LIFEFORM, Key, Scheduler
from primordia.control.taking import Takeover, Taker
from primordia.domain.failover import AT_ONCE, plan
from primordia.domain.lost import Action, DeadNode, Later, Lost, Park, PlaceAnew, Recover, SeedOnto, View
from primordia.domain.placement import Demand
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.registry.rules import moment
from primordia.wire.conditions import is_silent
from primordia.wire.resources import Context, Lifeform, Node, Volume
from primordia.wire.volume_rules import lifeform_named_by

log = logging.getLogger(__name__)

BY_OWNER = "owner"
_AGAIN_S = 2.0
"""Parked lifeforms are looked at again so often at the latest: what they wait for may be a sum that no event tells of."""
_GATHER_S = 0.05
"""Nodes that die together are told of one after another: so long after the first of them it is planned."""
_REST_S = 0.01
_START_S = 60.0
"""So long a lifeform that does not come up keeps others from being started on its node."""


class FailoverController:
    """Works for one leader, on what `deaths` has seen. `wake` has a lifeform looked at."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        scheduler: Scheduler,
        deaths: DeathWatch,
        events: EventRecorder,
        wake: Callable[[Key], None],
    ) -> None:
        self._scheduler = scheduler
        self._deaths = deaths
        self._book = book = deaths.book
        self._clock = registry.clock
        self._timings = deaths.timings
        self._binder = Binder(registry, informers, scheduler)
        self._remains = Remains(registry, informers, book, events)
        self._taker = Taker(registry, informers, scheduler, events, wake)
        self._lifeforms = informers.of(Lifeform)
        self._contexts = informers.of(Context)
        self._volumes = informers.of(Volume)
        self._nodes = informers.of(Node)
        self._lifeforms.index(BY_NODE, lambda lifeform: lifeform.status.node or None)
        self._volumes.index(BY_OWNER, lambda volume: volume.status.node or None)
        self._known: dict[tuple[str, int], float] = {}
        self._starting: dict[str, tuple[str, float]] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled. The caches must be filled."""
        await self._book.filled()
        self._book.subscribe(self._on_page)
        self._lifeforms.subscribe(self._on_lifeform)
        self._volumes.subscribe(self._on_volume)
        self._contexts.subscribe(self._on_context)
        self._nodes.subscribe(self._on_node)
        try:
            while True:
                self._changed.clear()
                if self._learn():
                    await self._clock.sleep(_GATHER_S)
                    self._learn()
                begun = self._clock.boottime()
                pause = await self._pass()
                # What many events ask for at once is done once; and never more than a part of the time is spent on it.
                if self._known:
                    await self._clock.sleep(max(_REST_S, 2 * (self._clock.boottime() - begun)))
                await wait_event(self._clock, self._changed, pause)
        finally:
            self._book.unsubscribe(self._on_page)
            self._lifeforms.unsubscribe(self._on_lifeform)
            self._volumes.unsubscribe(self._on_volume)
            self._contexts.unsubscribe(self._on_context)
            self._nodes.unsubscribe(self._on_node)

    # ------------------------------------------------------------ what has changed

    def _on_page(self, _node: str) -> None:
        self._changed.set()

    def _on_lifeform(self, change: Change[Lifeform]) -> None:
        about = change.new or change.old
        if (about is not None and (self._is_dead(about.status.node) or about.metadata.uid in self._starting)) or (
            self._known and change.new is not None and not change.new.status.node
        ):
            self._changed.set()

    def _on_volume(self, change: Change[Volume]) -> None:
        if change.new is not None and self._is_dead(change.new.status.node):
            self._changed.set()

    def _on_context(self, change: Change[Context]) -> None:
        if change.new is not None and self._is_dead(change.new.spec.node):
            self._changed.set()

    def _on_node(self, change: Change[Node]) -> None:
        about = change.new or change.old
        concerns = bool(self._known) or (about is not None and self._is_dead(about.metadata.name))
        if concerns and (change.old is None or change.new is None or change.old.status != change.new.status):
            self._changed.set()

    def _is_dead(self, node: str) -> bool:
        page = self._book.get(node) if node else None
        return page is not None and page.dead

    # ------------------------------------------------------------ one pass

    async def _pass(self) -> float | None:
        """Do what can be done now; how long until it has to be looked again, None for until something changes."""
        now = self._clock.boottime()
        pause: float | None = None
        try:
            # As they are now, and for the whole pass: a page changes under whoever waits.
            pages = {
                name: dataclasses.replace(page)
                for name, page in self._book.pages.items()
                if page.dead and (name, page.life) in self._known
            }
            estates = self._estates(pages)
            lost = self._lost(estates)
            actions = plan(lost, self._view(pages), self._timings, now)
            pause = await self._carry_out(actions, estates)
            for page in pages.values():
                await self._remains.clear(page)
            await self._remains.forget_holdings()
            for page in (page for page in pages.values() if not page.life):
                if not self._lifeforms.by_index(BY_NODE, page.node) and not self._volumes.by_index(BY_OWNER, page.node):
                    await self._remains.forget(page)
        except PrimordiaError as error:
            log.warning("failover waits: %s", error)
            return _AGAIN_S
        except Exception:
            log.exception("a pass over what the dead left has failed")
            return _AGAIN_S
        return pause

    def _learn(self) -> bool:
        """See which lives are over; whether any of them is news."""
        now = self._clock.boottime()
        lives = {(name, page.life) for name, page in self._book.pages.items() if page.dead and self._is_away(name)}
        news = bool(lives - self._known.keys())
        self._known = {life: self._known.get(life, now) for life in lives}
        return news

    def _is_away(self, name: str) -> bool:
        """Whether it is known not to be ready: before that the scheduler may still choose it."""
        node = self._nodes.get(name)
        return node is None or is_silent(node.status.conditions)

    def _estates(self, pages: dict[str, Page]) -> dict[str, Estate]:
        """What the dead left, by the lifeform's uid."""
        found: dict[str, Estate] = {}
        for name in pages:
            for lifeform in (*self._lifeforms.by_index(BY_NODE, name), *self._unplaced(name)):
                volumes = self._binder.volumes_of(lifeform)
                page = pages.get(estate_dead_on(lifeform, volumes))
                if page is None or lifeform.metadata.deletion_timestamp is not None or _is_apart(volumes, page.node):
                    continue
                key = (lifeform.metadata.namespace, lifeform.metadata.name)
                contexts = {each.spec.template.name: each for each in self._contexts.by_index(BY_LIFEFORM, key)}
                if not is_over(lifeform, contexts):
                    found[lifeform.metadata.uid] = Estate(lifeform, volumes, contexts, page)
        return found

    def _unplaced(self, name: str) -> list[Lifeform]:
        """Lifeforms that have no node yet, and data on a dead one: they took up what an earlier one left."""
        found = []
        for volume in self._volumes.by_index(BY_OWNER, name):
            lifeform = self._lifeforms.get(lifeform_named_by(volume), volume.metadata.namespace)
            if lifeform is not None and not lifeform.status.node:
                found.append(lifeform)
        return found

    def _lost(self, estates: dict[str, Estate]) -> list[Lost]:
        found = []
        for estate in estates.values():
            try:
                found.append(lost_of(estate, self._scheduler.beside(estate.lifeform)))
            except ValueError as error:
                log.warning("lifeform %s cannot be recovered: %s", estate.lifeform.metadata.name, error)
        return found

    def _view(self, pages: dict[str, Page]) -> View:
        now, wall = self._clock.boottime(), self._clock.wall().timestamp()
        dead = {}
        for name, page in pages.items():
            sign = self._deaths.last_sign_s(name)
            said = moment(page.death.at) if page.death is not None else None
            last = wall - (now - sign) if sign is not None else said.timestamp() if said is not None else wall
            answered = frozenset(node for node, each in page.holdings.items() if each.life == page.life)
            dead[name] = DeadNode(name, self._known[name, page.life], last, answered)
        return View(self._scheduler.views(), dead, self._busy(now), can_move=True)

    def _busy(self, now: float) -> Counter[str]:
        """How many recovered lifeforms are being started on each node."""
        for uid, (node, since) in list(self._starting.items()):
            lifeform = next((each for each in self._lifeforms.by_index(BY_NODE, node) if each.metadata.uid == uid), None)
            if lifeform is None or lifeform.status.phase not in ("Pending", "Starting") or now - since > _START_S:
                del self._starting[uid]
        return Counter(node for node, _ in self._starting.values())

    # ------------------------------------------------------------ carrying out

    async def _carry_out(self, actions: Sequence[Action], estates: dict[str, Estate]) -> float | None:
        found: list[Takeover] = []
        parked: list[tuple[Estate, Park]] = []
        pauses: list[float] = []
        busy = self._busy(self._clock.boottime())
        for action in actions:
            estate = estates[action.lost.uid]
            if isinstance(action, Recover):
                self._scheduler.ledger.promise(action.lost.uid, action.node, action.lost.demand)
                found.append(Takeover(estate, action.node, action.taken, action.message))
                busy[action.node] += action.lost.runs
            elif isinstance(action, PlaceAnew):
                node, why = self._choose(estate, action.lost, busy)
                if node:
                    found.append(Takeover(estate, node, (), f"{action.lost.dead} is dead. It starts anew on {node}: {why}"))
                elif why:
                    parked.append((estate, Park(action.lost, "Unschedulable", why)))
                else:
                    pauses.append(_AGAIN_S)
            elif isinstance(action, Park):
                parked.append((estate, action))
            elif isinstance(action, SeedOnto):
                # It holds nothing where its data is, and its place where it goes; the mover keeps that from here on.
                self._scheduler.ledger.promise(action.lost.uid, action.node, Demand())
                self._scheduler.lacks_elsewhere(estate.lifeform, action.lost.demand, action.onto)
                found.append(Takeover(estate, action.node, action.taken, action.message, action.onto))
            else:
                assert isinstance(action, Later)
                pauses.append(_AGAIN_S if action.until_s is None else action.until_s - self._clock.boottime())
        all_done = await self._taker.carry_out(found, parked)
        now = self._clock.boottime()
        self._starting.update({each.estate.lifeform.metadata.uid: (each.node, now) for each in found if each.done})
        if parked or not all_done:
            pauses.append(_AGAIN_S)
        return max(0.0, min(pauses)) if pauses else None

    def _choose(self, estate: Estate, lost: Lost, busy: Counter[str]) -> tuple[str, str]:
        """A node for one that brings nothing along, promised to it, and why it; or why there is none (empty: not yet)."""
        fresh = [volume.size_bytes for volume in lost.volumes]
        lifeform = estate.lifeform
        placement = self._scheduler.choose_anew(lifeform, lost.demand, sum(fresh) if fresh else None)
        if placement.node and lost.runs and busy[placement.node] >= AT_ONCE:
            self._scheduler.ledger.promise(lost.uid, lost.dead, lost.demand)
            return "", ""
        busy[placement.node] += lost.runs
        return placement.node, placement.message


def _is_apart(volumes: Volumes, node: str) -> bool:
    """Whether any of its data is elsewhere, or being destroyed: the lifeform controller says so, and nothing is taken over."""
    return any(each.status.node not in ("", node) or each.metadata.deletion_timestamp is not None for each in volumes.values())

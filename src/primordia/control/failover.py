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

import msgspec

from primordia.control.binding import Binder
from primordia.control.deaths import DeathWatch
from primordia.control.lifebook import Page
from primordia.control.lost import Estate, estate_dead_on, is_over, lost_of, taken_over, with_recovered
from primordia.control.remains import Remains, death_guards
from primordia.control.scheduler import BY_LIFEFORM, Key, Scheduler
from primordia.domain.conditions import Verdict
from primordia.domain.failover import (
    AT_ONCE,
    Action,
    DeadNode,
    Later,
    Lost,
    Park,
    PlaceAnew,
    Recover,
    SeedOnto,
    Taken,
    View,
    plan,
)
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.ownership import owner_put
from primordia.registry.registry import Registry
from primordia.registry.rules import moment, timestamp
from primordia.registry.together import write_together
from primordia.wire.conditions import RECOVERED, find, is_silent
from primordia.wire.resources import Context, Lifeform, Node, Volume
from primordia.wire.volume_rules import lifeform_named_by

log = logging.getLogger(__name__)

BY_NODE = "node"
BY_OWNER = "owner"
_PARALLEL = 16
_AGAIN_S = 2.0
"""Parked lifeforms are looked at again so often at the latest: what they wait for may be a sum that no event tells of."""
_REST_S = 0.05
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
        self._registry = registry
        self._scheduler = scheduler
        self._deaths = deaths
        self._book = book = deaths.book
        self._events = events
        self._clock = registry.clock
        self._wake = wake
        self._timings = deaths.timings
        self._binder = Binder(registry, informers, scheduler)
        self._remains = Remains(registry, informers, book, events)
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
        if self._known and (change.old is None or change.new is None or change.old.status != change.new.status):
            self._changed.set()

    def _is_dead(self, node: str) -> bool:
        page = self._book.get(node) if node else None
        return page is not None and page.dead

    # ------------------------------------------------------------ one pass

    async def _pass(self) -> float | None:
        """Do what can be done now; how long until it has to be looked again, None for until something changes."""
        now = self._clock.boottime()
        pages = {name: page for name, page in self._book.pages.items() if page.dead and self._is_away(name)}
        lives = {(page.node, page.life) for page in pages.values()}
        if lives - self._known.keys():
            # Nodes that die together are told of one after another: their lifeforms are to be served as one.
            self._known = {life: self._known.get(life, now) for life in lives}
            return _REST_S
        self._known = {life: self._known[life] for life in lives}
        pause: float | None = None
        try:
            await self._remains.forget_holdings()
            # As they are now, and for the whole pass: a page changes under whoever waits.
            still = [(name, page) for name, page in pages.items() if page.dead and (name, page.life) in lives]
            pages = {name: dataclasses.replace(page) for name, page in still}
            estates = self._estates(pages)
            lost = self._lost(estates)
            actions = plan(lost, self._view(pages), self._timings, now)
            pause = await self._carry_out(actions, estates)
            for page in pages.values():
                await self._remains.clear(page)
        except PrimordiaError as error:
            log.warning("failover waits: %s", error)
            return 1.0
        return pause

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
                if page is None or lifeform.metadata.deletion_timestamp is not None:
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
        return View(self._scheduler.views(), dead, self._busy(now))

    def _busy(self, now: float) -> Counter[str]:
        """How many recovered lifeforms are being started on each node."""
        for uid, (node, since) in list(self._starting.items()):
            lifeform = next((each for each in self._lifeforms.by_index(BY_NODE, node) if each.metadata.uid == uid), None)
            if lifeform is None or lifeform.status.phase not in ("Pending", "Starting") or now - since > _START_S:
                del self._starting[uid]
        return Counter(node for node, _ in self._starting.values())

    # ------------------------------------------------------------ carrying out

    async def _carry_out(self, actions: Sequence[Action], estates: dict[str, Estate]) -> float | None:
        takeovers: list[tuple[Estate, str, tuple[Taken, ...], str]] = []
        parked: list[Park] = []
        pauses: list[float] = []
        busy = self._busy(self._clock.boottime())
        for action in actions:
            estate = estates[action.lost.uid]
            if isinstance(action, Recover):
                self._scheduler.ledger.promise(action.lost.uid, action.node, action.lost.demand)
                takeovers.append((estate, action.node, action.taken, action.message))
                busy[action.node] += action.lost.runs
            elif isinstance(action, PlaceAnew):
                node, why = self._choose(estate, action.lost, busy)
                if node:
                    takeovers.append((estate, node, (), f"{action.lost.dead} is dead. It goes on on {node}: {why}"))
                elif why:
                    parked.append(Park(action.lost, "Unschedulable", why))
                else:
                    pauses.append(_AGAIN_S)
            elif isinstance(action, Park):
                parked.append(action)
            elif isinstance(action, SeedOnto):
                parked.append(Park(action.lost, "NoRoom", action.message))
            else:
                assert isinstance(action, Later)
                pauses.append(_AGAIN_S if action.until_s is None else action.until_s - self._clock.boottime())
        gate = asyncio.Semaphore(_PARALLEL)
        for estate, *_ in takeovers:
            self._scheduler.moving.add(estate.lifeform.metadata.uid)
        done = await asyncio.gather(*(self._take_over(gate, *each) for each in takeovers))
        for park in parked:
            await self._park(estates[park.lost.uid], park)
        if parked or not all(done):
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

    async def _take_over(
        self, gate: asyncio.Semaphore, estate: Estate, node_name: str, taken: tuple[Taken, ...], message: str
    ) -> bool:
        """Write it; whether it was done."""
        uid, meta = estate.lifeform.metadata.uid, estate.lifeform.metadata
        try:
            async with gate:
                await self._write(estate, node_name, taken, message)
            return True
        except PrimordiaError as error:
            log.info("%s/%s is not recovered on %s yet: %s", meta.namespace, meta.name, node_name, error)
            await self._settle(estate.lifeform)
            return False
        finally:
            self._scheduler.moving.discard(uid)
            self._wake((meta.namespace, meta.name))

    async def _write(self, estate: Estate, node_name: str, taken: tuple[Taken, ...], message: str) -> None:
        node = self._nodes.get(node_name)
        if node is None:
            return
        now = timestamp(self._clock.wall())
        nodes = {each.metadata.name: each for each in self._nodes.items()}
        pairs = taken_over(estate, node, taken, message, nodes, now)
        after = pairs[0][1]
        assert isinstance(after, Lifeform)
        owner = owner_put(after.metadata.uid, node_name, after.status.epoch)
        for written in await write_together(self._registry, pairs, death_guards(estate.page), also=[owner]):
            if isinstance(written, Lifeform):
                after = written
                self._lifeforms.learn(written)
            elif isinstance(written, Volume):
                self._volumes.learn(written)
            elif isinstance(written, Context):
                self._contexts.learn(written)
        self._starting[after.metadata.uid] = node_name, self._clock.boottime()
        log.warning("%s/%s: epoch %d: %s", after.metadata.namespace, after.metadata.name, after.status.epoch, message)
        lossy = any(not each.sufficient for each in taken)
        self._events.record(after, RECOVERED, f"Epoch {after.status.epoch}. {message}", warning=lossy)

    async def _settle(self, lifeform: Lifeform) -> None:
        """Nobody knows what came of a takeover: make the ledger say what the registry does, if that can be asked."""
        meta, ledger = lifeform.metadata, self._scheduler.ledger
        try:
            current = await self._registry.get(Lifeform, meta.name, meta.namespace)
        except PrimordiaError:
            return
        if current.metadata.uid == meta.uid and current.status.node:
            self._lifeforms.learn(current)
            ledger.promise(meta.uid, current.status.node, ledger.held(meta.uid))

    async def _park(self, estate: Estate, park: Park) -> None:
        """Say what it waits for, where that is news."""
        lifeform = estate.lifeform
        before = find(lifeform.status.conditions, RECOVERED)
        if before is not None and (before.status, before.reason, before.message) == ("False", park.reason, park.message):
            return
        now = timestamp(self._clock.wall())
        status = with_recovered(lifeform, Verdict(RECOVERED, "False", park.reason, park.message), now)
        parked = msgspec.structs.replace(lifeform, status=status)
        try:
            self._lifeforms.learn(await self._registry.amend(lifeform, parked, status=True))
        except PrimordiaError as error:
            log.debug("lifeform %s: %s", lifeform.metadata.name, error)
            return
        if before is None or before.reason != park.reason:
            self._events.record(lifeform, "Parked", park.message, warning=True)

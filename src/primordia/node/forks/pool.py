"""The forks that wait, paused, for somebody to claim them; kept as the planner says, in the background, one at a time.

Taking one is a step without an await, so nobody else gets the same. A fork that dies while it waits is noticed and
forgotten. None of them survives the daemon: the next one ends what it finds and makes its own, which costs less than
knowing again what each of them was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from primordia.domain import pool as planner
from primordia.domain.forklimits import charge_bytes
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.kit.ids import new_uid
from primordia.kit.tasks import TaskSet
from primordia.node.forks.forking import Fork, Forker, Image
from primordia.node.forks.shape import Shape
from primordia.node.forks.store import Stored
from primordia.node.services import Services

log = logging.getLogger(__name__)

_LATELY_S = 60.0
_AFTER_FAILURE_S = 5.0
_QUIET_S, _MOMENT_S = 1.0, 0.3
"""How long whoever has claimed a fork has the processors for itself: while others wait, and when it was the last."""
_START_S = 2.0
"""The same for a lifeform, whose start has only begun then, and seldom comes alone: others start on other nodes, and a fork
for whoever may come next takes more of the processors than all that a start does."""
_LOADS_S = 3.0
"""The same for one with data, which its program reads first, and which is claimed when its node has died: somebody waits."""
_PRACTISED = 2
"""How many of a template's waiting forks have rehearsed an exec: it halves the time of the first command and costs 7 MB."""


@dataclass
class _Basin:
    """The pool of one template."""

    image: Image
    shape: Shape
    minimum: int
    maximum: int
    waiting: deque[tuple[Fork, asyncio.Task[None]]] = field(default_factory=deque)
    claims: deque[float] = field(default_factory=deque)


class ForkPool:
    """The pools of one node. `room` tells what is free, `on_failure` hears of a template whose fork could not be made."""

    def __init__(
        self,
        services: Services,
        forker: Forker,
        room: Callable[[int, int], planner.Room],
        on_failure: Callable[[str, PrimordiaError], Awaitable[None]],
    ) -> None:
        self._services = services
        self._forker = forker
        self._room = room
        self._on_failure = on_failure
        self._basins: dict[str, _Basin] = {}
        self._arriving = ""
        self._quiet_until_s = 0.0
        self._wake = asyncio.Event()
        self._tasks = TaskSet("pool")
        self.changed = asyncio.Event()
        """Set whenever the number of those that wait may have changed; whoever looks clears it."""

    def want(self, stored: Stored, shape: Shape, minimum: int, maximum: int) -> None:
        """Keep so many forks of the template waiting."""
        basin = self._basins.get(stored.digest)
        if basin is None:
            image = Image(stored.digest, stored.folder, stored.scratch)
            self._basins[stored.digest] = _Basin(image, shape, minimum, maximum)
        else:
            basin.minimum, basin.maximum = minimum, maximum
        self._wake.set()

    async def forget(self, digest: str) -> None:
        """Keep none of it, now."""
        basin = self._basins.pop(digest, None)
        while basin is not None and basin.waiting:
            fork, watch = basin.waiting.popleft()
            watch.cancel()
            await self._forker.destroy(fork)
        self.changed.set()

    def take(self, digest: str, *, to_start: bool = False) -> Fork | None:
        """A fork that waits, now the caller's; None when there is none. A lifeform wants it `to_start`."""
        basin = self._basins.get(digest)
        if basin is None:
            return None
        now = self._services.clock.boottime()
        if to_start:
            self._leave_alone_until(now + _START_S)
        basin.claims.append(now)
        self._wake.set()
        if not basin.waiting:
            return None
        entry = next((entry for entry in basin.waiting if entry[0].practised), basin.waiting[0])
        basin.waiting.remove(entry)
        fork, watch = entry
        watch.cancel()
        self._leave_alone_until(now + (_LOADS_S if basin.shape.data else _MOMENT_S))
        self.changed.set()
        return fork

    def warm(self, digest: str) -> int:
        """How many of it wait."""
        basin = self._basins.get(digest)
        return len(basin.waiting) if basin is not None else 0

    def waiting(self) -> Mapping[str, int]:
        """How many wait, by template."""
        return {digest: len(basin.waiting) for digest, basin in self._basins.items()}

    def forks(self) -> tuple[Fork, ...]:
        """All that wait."""
        return tuple(fork for basin in self._basins.values() for fork, _ in basin.waiting)

    async def run(self) -> None:
        """Follow the plan until cancelled; then nothing waits any more."""
        try:
            while True:
                self._wake.clear()
                step = planner.plan(self._views(), self._room_now())
                if step.verb == "add" and (left_s := self._until_quiet()) > 0:
                    # Who claims now needs the processors more than who may claim next.
                    await self._services.clock.sleep(left_s)
                elif step.verb == "rest":
                    await wait_event(self._services.clock, self._wake, self._services.settings.pool_interval_s)
                elif step.verb == "drop":
                    await self._drop(step)
                else:
                    await self._add(step)
        finally:
            await self._tasks.close()

    async def empty(self) -> None:
        """End all that wait: the daemon ends."""
        for digest in list(self._basins):
            await self.forget(digest)

    # ------------------------------------------------------------ inside

    def _until_quiet(self) -> float:
        """Seconds until the first moments of whoever has claimed one are over. An empty pool waits for no further claims."""
        now = self._services.clock.boottime()
        until_s = self._quiet_until_s
        if any(basin.waiting for basin in self._basins.values()):
            claimed_s = max((basin.claims[-1] for basin in self._basins.values() if basin.claims), default=0.0)
            until_s = max(until_s, claimed_s + _QUIET_S)
        return until_s - now

    def _leave_alone_until(self, until_s: float) -> None:
        self._quiet_until_s = max(self._quiet_until_s, until_s)

    def _views(self) -> list[planner.Pool]:
        now = self._services.clock.boottime()
        views = []
        for digest, basin in self._basins.items():
            while basin.claims and basin.claims[0] < now - _LATELY_S:
                basin.claims.popleft()
            paused = charge_bytes(basin.shape.memory_bytes, paused=True)
            arriving = int(self._arriving == digest)
            views.append(
                planner.Pool(
                    digest, basin.minimum, basin.maximum, len(basin.waiting), arriving, len(basin.claims), paused_bytes=paused
                )
            )
        return views

    def _room_now(self) -> planner.Room:
        waiting = [(len(basin.waiting), charge_bytes(basin.shape.memory_bytes, paused=True)) for basin in self._basins.values()]
        return self._room(sum(count for count, _ in waiting), sum(count * each for count, each in waiting))

    async def _drop(self, step: planner.Step) -> None:
        basin = self._basins.get(step.template)
        if basin is None or not basin.waiting:
            return
        fork, watch = basin.waiting.popleft()
        watch.cancel()
        log.info("one warm fork of %s fewer: %s", step.template, step.reason)
        await self._forker.destroy(fork)
        self.changed.set()

    async def _add(self, step: planner.Step) -> None:
        basin = self._basins[step.template]
        self._arriving = step.template
        practise = sum(fork.practised for fork, _ in basin.waiting) < _PRACTISED
        try:
            fork = await self._forker.make_waiting(new_uid(), basin.image, basin.shape, practise=practise)
        except PrimordiaError as error:
            log.warning("no warm fork of %s can be made: %s", step.template, error)
            await self._on_failure(step.template, error)
            await self._services.clock.sleep(_AFTER_FAILURE_S)
            return
        finally:
            self._arriving = ""
        if self._basins.get(step.template) is not basin:
            await self._forker.destroy(fork)
            return
        basin.waiting.append((fork, self._tasks.start(self._watch(basin, fork), name=fork.uid)))
        self.changed.set()

    async def _watch(self, basin: _Basin, fork: Fork) -> None:
        ended = await fork.machine.wait()
        log.warning("a warm fork ended while it waited: %s %s", ended.cause, ended.detail)
        entry = next(entry for entry in basin.waiting if entry[0] is fork)
        basin.waiting.remove(entry)
        self.changed.set()
        self._wake.set()
        await self._forker.destroy(fork)

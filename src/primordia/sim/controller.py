"""A node's part in the control of the soup, as a process: the daemon's own `Leading` with its caches and its recorder.

It can be killed anywhere and started anew; nothing of it survives but what it has written.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

from primordia.daemon.leading import Leading
from primordia.kit.clock import Clock
from primordia.kit.tasks import TaskSet
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.sim.store import CutError, FaultyStore


class ControllerProcess:
    """One contender for the leadership."""

    def __init__(self, name: str, store: FaultyStore, clock: Clock, new_uid: Callable[[], str], rng: random.Random) -> None:
        self.name = name
        self.store = store
        self._clock = clock
        self._new_uid = new_uid
        self._rng = rng
        self._tasks = TaskSet(name)
        self._incarnations = itertools.count(1)
        self._leading: Leading | None = None
        self.died = asyncio.Event()

    @property
    def runs(self) -> bool:
        """Whether it is there."""
        return len(self._tasks) > 0

    @property
    def leads(self) -> bool:
        """Whether it is certain of its office."""
        return self._leading is not None and self._leading.leader.leads

    def start(self) -> None:
        """Begin as a fresh process does, with nothing known."""
        self.died.clear()
        self._tasks.start(self._live(), name="life")

    async def kill(self) -> None:
        """End it in the middle of whatever it does; it cannot even resign."""
        before, self.store.away = self.store.away, True
        await self._tasks.close()
        self.store.away = before

    async def stop(self) -> None:
        """End it in order."""
        await self._tasks.close()

    async def _live(self) -> None:
        registry = Registry(self.store, self._clock, new_uid=self._new_uid)
        informers = Informers(registry, rng=self._dice())
        events = EventRecorder(registry, "controller", self.name, rng=self._dice())
        incarnation = str(next(self._incarnations))
        self._leading = Leading(
            self.store, informers, self._clock, events, self.name, incarnation, new_uid=self._new_uid, rng=self._dice()
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(informers.run())
                group.create_task(events.run())
                group.create_task(self._leading.run())
        except BaseExceptionGroup as group:
            if group.subgroup(CutError) is None:
                raise
        finally:
            self._leading = None
            self.died.set()

    def _dice(self) -> random.Random:
        return random.Random(self._rng.getrandbits(64))

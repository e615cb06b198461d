"""The work queue: which keys want to be looked at, each by one worker at a time, now or later.

A key that is added while it waits is one key; one that is added while it is being worked on comes again afterwards. So a
thousand events about one object cost one look or two, and no event is lost. After a failure a key comes again with
back-off: 50 ms doubling to 30 s, with jitter, as long as `forget` does not say that it went well.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event

K = TypeVar("K", bound=Hashable)

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 30.0


class WorkQueue(Generic[K]):
    """Keys in the order they came. `run_timers` must run for delayed ones to come."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._ready: deque[K] = deque()
        self._wanted: set[K] = set()
        self._busy: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._order = itertools.count()
        self._came = asyncio.Event()
        self._timers_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Nothing waits now and nothing is being worked on; delayed keys do not count."""
        return not self._ready and not self._busy

    def add(self, key: K) -> None:
        """Want a look at the key."""
        if key in self._wanted:
            return
        self._wanted.add(key)
        if key not in self._busy:
            self._ready.append(key)
            self._came.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Want a look in that many seconds; of several such wishes the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock.boottime() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._timers, (due, next(self._order), key))
        self._timers_changed.set()

    def retry(self, key: K) -> None:
        """Want a look again after back-off, for the last one failed."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(failures - 1, 12))
        self.add_after(key, delay * self._rng.uniform(0.5, 1.0))

    def forget(self, key: K) -> None:
        """The look went well: the next failure begins with the shortest delay."""
        self._failures.pop(key, None)

    async def take(self) -> K:
        """The next key; it is the taker's until `done`."""
        while not self._ready:
            self._came.clear()
            await self._came.wait()
        key = self._ready.popleft()
        self._wanted.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: K) -> None:
        """The taker has finished with the key."""
        self._busy.discard(key)
        if key in self._wanted:
            self._ready.append(key)
            self._came.set()

    async def run_timers(self) -> None:
        """Bring delayed keys when their time comes, until cancelled."""
        while True:
            self._timers_changed.clear()
            now = self._clock.boottime()
            while self._timers and self._timers[0][0] <= now:
                due, _, key = heapq.heappop(self._timers)
                if self._due.get(key) == due:
                    del self._due[key]
                    self.add(key)
            wait_s = self._timers[0][0] - now if self._timers else None
            await wait_event(self._clock, self._timers_changed, wait_s)

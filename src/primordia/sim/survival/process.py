"""A machine's clock, and a process on it that can be stopped, slowed and killed at any moment.

A process that stands does nothing: every timer, answer and message of its passes one gate. What it had sent goes on without
it, as on a real wire. One that was killed never acts again, whatever is left of its coroutines.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import random
from collections import Counter

from primordia.kit.errors import TemporaryError
from primordia.kit.tasks import TaskSet

_EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_MOMENT_S = 1e-6
_LAST_S = 0.01


def true_s() -> float:
    """Seconds as nobody in the world can read them."""
    return asyncio.get_running_loop().time()


class NodeClock:
    """One machine's: `rate` is how fast its boot-time clock goes, `skew_s` how wrong its wall clock is."""

    def __init__(self) -> None:
        self.rate = 1.0
        self.skew_s = 0.0
        self._true_s = 0.0
        self._own_s = 10.0
        self.boot()

    def boot(self) -> None:
        """It counts anew."""
        self._true_s, self._own_s = true_s(), 10.0

    def drift(self, rate: float) -> None:
        """Go at another rate from now on."""
        self._own_s, self._true_s = self.boottime(), true_s()
        self.rate = rate

    def boottime(self) -> float:
        """See Clock. Suspend counts."""
        return self._own_s + (true_s() - self._true_s) * self.rate

    def wall(self) -> datetime.datetime:
        """See Clock."""
        return _EPOCH + datetime.timedelta(seconds=true_s() + self.skew_s)


class Process:
    """Owns `tasks`. `slow_s` is the longest that each of its waits takes too long."""

    def __init__(self, name: str, clock: NodeClock, rng: random.Random) -> None:
        self.name = name
        self.clock = ProcessClock(self, clock)
        self.tasks = TaskSet(name)
        self.slow_s = 0.0
        self.dead = False
        self._rng = rng
        self._stops: Counter[str] = Counter()
        self._passes = asyncio.Event()
        self._passes.set()

    @property
    def stands(self) -> bool:
        """Whether it is stopped."""
        return bool(+self._stops)

    def stop(self, why: str) -> None:
        """Hold it still, for one more reason."""
        self._stops[why] += 1
        self._passes.clear()

    def go_on(self, why: str) -> None:
        """One reason less."""
        self._stops[why] -= 1
        if not self.stands:
            self._passes.set()

    async def passes(self) -> None:
        """Return when it may act. TemporaryError once it is dead: nothing of it may go on."""
        while not self._passes.is_set() and not self.dead:
            await self._passes.wait()
        if self.dead:
            raise TemporaryError(f"{self.name} is dead.", reason="Dead")

    async def kill(self) -> None:
        """SIGKILL: it does nothing any more from this moment on."""
        self.dead = True
        self._passes.set()
        await self.tasks.close()

    def lateness_s(self) -> float:
        """How much too long the next wait takes."""
        return self._rng.uniform(0, self.slow_s) if self.slow_s else 0.0


class ProcessClock:
    """The machine's clock as the process has it: its waits end when it can act."""

    def __init__(self, process: Process, clock: NodeClock) -> None:
        self._process = process
        self._clock = clock

    def boottime(self) -> float:
        """See Clock."""
        return self._clock.boottime()

    def wall(self) -> datetime.datetime:
        """See Clock."""
        return self._clock.wall()

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        if self._process.dead:
            await asyncio.sleep(_LAST_S)  # what is left of it ends without delay, but time goes on
            return
        # Never less than a moment: two clocks' arithmetic differs in the last digits, and time must go on.
        await asyncio.sleep(max(_MOMENT_S, seconds / self._clock.rate + _MOMENT_S) + self._process.lateness_s())
        with contextlib.suppress(TemporaryError):
            await self._process.passes()

"""Virtual time for asyncio: a loop whose clock jumps to the next timer as soon as nothing else can run.

A test under this loop is deterministic and takes no longer than its work: an hour of back-off costs nothing. It must not
wait for threads or for real input, for the loop would not wait for them. (The idea is that of trio's MockClock.)
"""

from __future__ import annotations

import asyncio
import datetime
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class VirtualClock:
    """A Clock that reads the running loop's time."""

    def boottime(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> datetime.datetime:
        return _EPOCH + datetime.timedelta(seconds=self.boottime())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _JumpingSelector(selectors.DefaultSelector):
    """Reports what is ready at once; where the loop would wait, time passes instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        if not ready and timeout is not None:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with its own time, which begins at 1000 s."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_virtual(main: Coroutine[Any, Any, T], *, limit_s: float = 100_000.0) -> T:
    """Run a coroutine under virtual time. Raises TimeoutError when it takes more than `limit_s` virtual seconds."""

    async def bounded() -> T:
        async with asyncio.timeout(limit_s):
            return await main

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(bounded())

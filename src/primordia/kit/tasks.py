"""Tasks that have an owner and a name, and say why they ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from primordia.kit.errors import PrimordiaError

log = logging.getLogger(__name__)

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that must not be cut off, as clearing up: who is cancelled meanwhile goes when it has ended.

    Nobody hears then how it ended. An error that we foresaw is told in the log's details, any other with its trace.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    finally:
        if not task.done():
            task.add_done_callback(_unheard)
            await asyncio.wait({task})


def _unheard(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, PrimordiaError):
        log.debug("who waited for it was cut off: %s", error)
    elif error is not None:
        log.error("who waited for it was cut off", exc_info=error)


async def ended(*tasks: asyncio.Task[Any], again_s: float = 1.0) -> None:
    """Cancel them until they have ended, once a second. What they raise stays with them.

    Before Python 3.12 `asyncio.wait_for`, which libraries use, loses a cancellation that comes when what it waits for ends.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_s)


class InTurn:
    """Work that is done beside what its owner does meanwhile, one after the other; so many wait at most.

    After one that failed no other begins. The owner calls `ended` at the end, whatever happens: none is cut off.
    """

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._tasks: deque[asyncio.Task[None]] = deque()

    async def add(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have it done after those before it; waits while too many are waiting. Raises what one of them raised."""
        before = self._tasks[-1] if self._tasks else None
        self._tasks.append(asyncio.get_running_loop().create_task(_after(before, work)))
        while len(self._tasks) > self._ahead:
            await asyncio.shield(self._tasks[0])
            self._tasks.popleft()

    async def done(self) -> None:
        """Wait for all of it. Raises what one of them raised."""
        if self._tasks:
            await asyncio.shield(self._tasks[-1])

    async def ended(self) -> None:
        """The same, where it matters no more how they ended."""
        if self._tasks:
            await asyncio.wait({self._tasks[-1]})
        for task in self._tasks:
            task.exception()


async def _after(before: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]) -> None:
    if before is not None:
        await asyncio.shield(before)
    await work()


class TaskSet:
    """Owns background tasks: each has a name, an unexpected end is logged, `close` cancels and awaits all.

    For tasks that come and go while the owner lives; where they all live and die together, asyncio.TaskGroup is better.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start a task; its failure is logged with its name, for nobody else may be looking."""
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self._owner}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Cancel every task without waiting, where the caller cannot wait."""
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=error)

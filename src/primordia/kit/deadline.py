"""Waiting no longer than some seconds of an injected Clock, so that deadlines hold under virtual time too."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from primordia.kit.clock import Clock

T = TypeVar("T")


async def within(clock: Clock, seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. Raises TimeoutError, after it has been cancelled and has ended, when it takes longer."""
    work = asyncio.get_running_loop().create_task(coroutine)
    timer = asyncio.get_running_loop().create_task(clock.sleep(seconds))
    try:
        await asyncio.wait({work, timer}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise TimeoutError(f"not done within {seconds:g} s")
        return work.result()
    finally:
        await _end(work)
        await _end(timer)


async def wait_event(clock: Clock, event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for the event, or that long; whether it is set. None waits for ever."""
    if seconds is None:
        return await event.wait()
    if seconds <= 0 or event.is_set():
        await asyncio.sleep(0)
        return event.is_set()
    try:
        return await within(clock, seconds, _set(event))
    except TimeoutError:
        return event.is_set()


async def _set(event: asyncio.Event) -> bool:
    return await event.wait()


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task that has not ended and wait until it has; a result that came too late is dropped."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # it may have failed in the very moment in which its caller was cancelled

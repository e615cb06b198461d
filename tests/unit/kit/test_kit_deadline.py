"""Waiting no longer than some seconds: results, lateness, and a failure that nobody waits for any more."""

from __future__ import annotations

import asyncio
import gc

import pytest

from primordia.kit.clock import SystemClock
from primordia.kit.deadline import within


async def _fails(after_s: float) -> None:
    await asyncio.sleep(after_s)
    raise ValueError("it failed")


async def test_a_result_a_failure_and_lateness() -> None:
    clock = SystemClock()
    assert await within(clock, 5, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError):
        await within(clock, 5, _fails(0))
    with pytest.raises(TimeoutError):
        await within(clock, 0.01, asyncio.sleep(5))


async def test_work_that_fails_as_its_caller_is_cancelled_is_nobodys_complaint() -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    caller: asyncio.Task[None] | None = None

    async def fails() -> None:
        assert caller is not None
        caller.cancel()
        raise ValueError("it failed")

    caller = asyncio.create_task(within(SystemClock(), 5, fails()))
    with pytest.raises(asyncio.CancelledError):
        await caller
    caller = None
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []

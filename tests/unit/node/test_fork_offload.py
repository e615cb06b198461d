"""Work in threads, and who is cancelled while he waits for it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from primordia.node.records import in_thread


async def test_who_is_cancelled_goes_when_the_work_has_ended() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    done: list[int] = []

    def work() -> None:
        begun.set()
        goes_on.wait()
        done.append(1)

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


async def test_what_the_work_raises_is_raised() -> None:
    with pytest.raises(FileNotFoundError):
        await in_thread(Path("/nonesuch").read_bytes)

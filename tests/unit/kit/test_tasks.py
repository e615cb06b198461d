"""Tasks end when they are told to, even those that lose a cancellation."""

from __future__ import annotations

import asyncio

from primordia.kit.tasks import ended


async def test_a_lost_cancellation_is_said_again() -> None:
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await ended(task, again_s=0.01)
    assert task.cancelled()
    assert lost == 3


async def test_what_has_failed_has_ended() -> None:
    async def fails() -> None:
        raise ValueError("broken")

    async def waits() -> None:
        await asyncio.sleep(3600)

    failed, waiting = asyncio.create_task(fails()), asyncio.create_task(waits())
    await asyncio.sleep(0)
    await ended(failed, waiting)
    assert isinstance(failed.exception(), ValueError)
    assert waiting.cancelled()
    await ended()

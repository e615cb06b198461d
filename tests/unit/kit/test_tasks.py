"""Tasks end when they are told to, even those that lose a cancellation."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging

import pytest

from primordia.kit.errors import TemporaryError
from primordia.kit.tasks import InTurn, ended, to_the_end


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


async def test_work_in_turn_keeps_its_order_and_its_bound() -> None:
    begun: list[int] = []
    done: list[int] = []
    gates = [asyncio.Event() for _ in range(5)]

    async def one(number: int) -> None:
        begun.append(number)
        await gates[number].wait()
        done.append(number)

    async def put() -> None:
        for number in range(5):
            await turns.add(functools.partial(one, number))

    turns = InTurn(2)
    putting = asyncio.create_task(put())
    for number in range(5):
        await asyncio.sleep(0.01)
        assert begun == list(range(number + 1)), "each begins when the one before has ended"
        assert putting.done() == (number > 2), "two may wait"
        gates[number].set()
    await putting
    await turns.done()
    await turns.ended()
    assert done == [0, 1, 2, 3, 4]


async def test_nothing_follows_work_that_failed() -> None:
    done: list[str] = []

    async def well() -> None:
        done.append("well")

    async def badly() -> None:
        raise ValueError("broken")

    turns = InTurn(4)
    for work in (well, badly, well):
        await turns.add(work)
    with pytest.raises(ValueError, match="broken"):
        await turns.done()
    await turns.ended()
    assert done == ["well"]


async def test_who_leaves_cuts_no_work_off() -> None:
    gate, done = asyncio.Event(), asyncio.Event()

    async def one() -> None:
        await gate.wait()
        done.set()

    async def leaves() -> None:
        await turns.add(one)
        await turns.done()

    turns = InTurn(1)
    leaving = asyncio.create_task(leaves())
    await asyncio.sleep(0)
    await ended(leaving)
    gate.set()
    await turns.ended()
    assert done.is_set()


@pytest.mark.parametrize(("error", "levels"), [(TemporaryError("later"), []), (ValueError("no"), ["ERROR"]), (None, [])])
async def test_how_work_ends_whose_waiter_was_cut_off_is_told_as_it_deserves(
    error: Exception | None, levels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    unretrieved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
    goes_on = asyncio.Event()

    async def work() -> None:
        await goes_on.wait()
        if error is not None:
            raise error

    waiting = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done(), "it waits for the end of what must not be cut off"
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del waiting
    gc.collect()
    await asyncio.sleep(0)
    assert not unretrieved
    assert [record.levelname for record in caplog.records if record.levelno > logging.DEBUG] == levels

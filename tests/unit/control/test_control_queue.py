"""The work queue under virtual time."""

import asyncio
import random

from primordia.control.queue import WorkQueue
from primordia.testing.virtual import VirtualClock, run_virtual


def queue() -> WorkQueue[str]:
    return WorkQueue(VirtualClock(), random.Random(1))


def test_equal_keys_are_one_and_a_busy_key_comes_again() -> None:
    async def main() -> None:
        keys = queue()
        for _ in range(3):
            keys.add("a")
        keys.add("b")
        assert await keys.take() == "a"
        keys.add("a")
        keys.add("a")
        assert await keys.take() == "b"
        keys.done("b")
        assert len(keys) == 0
        keys.done("a")
        assert await keys.take() == "a"
        keys.done("a")
        assert keys.idle

    run_virtual(main())


def test_delayed_keys_come_in_time_and_the_earliest_wish_counts() -> None:
    async def main() -> list[tuple[str, float]]:
        clock, keys = VirtualClock(), queue()
        timers = asyncio.create_task(keys.run_timers())
        begin = clock.boottime()
        keys.add_after("late", 100)
        keys.add_after("soon", 10)
        keys.add_after("late", 5)
        keys.add_after("late", 50)
        taken = []
        for _ in range(2):
            key = await keys.take()
            taken.append((key, clock.boottime() - begin))
            keys.done(key)
        await asyncio.sleep(200)
        assert keys.idle
        timers.cancel()
        return taken

    assert run_virtual(main()) == [("late", 5), ("soon", 10)]


def test_failures_back_off_until_forgotten() -> None:
    async def main() -> list[float]:
        clock, keys = VirtualClock(), queue()
        timers = asyncio.create_task(keys.run_timers())
        waits = []
        for round_ in range(14):
            if round_ == 12:
                keys.forget("a")
            begin = clock.boottime()
            keys.retry("a")
            keys.done(await keys.take())
            waits.append(clock.boottime() - begin)
        timers.cancel()
        return waits

    waits = run_virtual(main())
    assert all(0.025 * 2**n <= wait <= min(30, 0.05 * 2**n) for n, wait in enumerate(waits[:10]))
    assert 15 <= waits[11] <= 30
    assert waits[12] <= 0.05

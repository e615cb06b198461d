"""What the memory store promises beyond the contract: no real time, the same run twice, bounded history, size."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primordia.drivers.store_memory import MemoryStore
from primordia.ports.store import CompactedError, Compare, Delete, Put, StoreUnavailableError, WatchBatch
from primordia.testing.store import HandClock, settle


async def test_100_000_keys_are_affordable() -> None:
    store = MemoryStore(HandClock())
    numbers = list(range(100_000))
    random.Random(7).shuffle(numbers)
    for start in range(0, len(numbers), 500):
        await store.txn([], [Put(f"/k/{number:06d}", b"x") for number in numbers[start : start + 500]])
    listing = await store.list("/k/")
    assert [item.key for item in listing.items] == [f"/k/{number:06d}" for number in range(100_000)]
    then = listing.revision
    for number in range(0, 100_000, 100):
        await store.txn([], [Delete(f"/k/{number:06d}")])
    page = await store.list("/k/", limit=10, after="/k/000099", revision=then)
    assert page.items[0].key == "/k/000100"
    assert (await store.list("/k/", limit=1)).count == 99_000
    await store.close()


async def test_old_history_is_compacted_by_itself() -> None:
    store = MemoryStore(HandClock(), history=100)
    for number in range(1000):
        await store.txn([], [Put("/k", b"%d" % number)])
    status = await store.status()
    assert status.compacted >= status.revision - 200
    with pytest.raises(CompactedError):
        await store.list("/k", revision=500)
    assert (await store.list("/k", revision=status.revision - 100)).items[0].value == b"899"
    with pytest.raises(CompactedError):
        async with store.watch("/k", after_revision=500) as batches:
            await anext(batches)
    await store.close()


async def test_a_watch_that_falls_behind_compaction_is_told() -> None:
    store = MemoryStore(HandClock())
    async with store.watch("/k", after_revision=1) as batches:
        for _ in range(5):
            await store.txn([], [Put("/k", b"")])
        await store.compact(5)
        with pytest.raises(CompactedError):
            await anext(batches)
    await store.close()


async def test_a_lease_is_over_at_its_time_even_before_its_task_runs() -> None:
    clock = HandClock()
    store = MemoryStore(clock)
    lease = await store.grant(5)
    await store.txn([], [Put("/k", b"", lease)])
    clock._now += 5
    assert await store.get("/k") is None
    await store.close()


async def test_a_key_moves_between_leases() -> None:
    clock = HandClock()
    store = MemoryStore(clock)
    short, long = await store.grant(5), await store.grant(50)
    await store.txn([], [Put("/k", b"", short)])
    await store.txn([], [Put("/k", b"", long)])
    await clock.advance(10)
    assert await store.get("/k") is not None
    await clock.advance(50)
    assert await store.get("/k") is None
    await store.close()


async def test_the_same_run_twice_tells_the_same() -> None:
    assert await story() == await story()


async def story() -> list[WatchBatch]:
    clock, rng = HandClock(), random.Random(3)
    store = MemoryStore(clock)
    told: list[WatchBatch] = []

    async def follow() -> None:
        async with store.watch("/", after_revision=1) as batches:
            async for batch in batches:
                told.append(batch)

    task = asyncio.create_task(follow())
    for step in range(200):
        key = f"/{rng.randrange(20)}"
        if rng.random() < 0.1:
            await store.txn([], [Put(key, b"leased", await store.grant(rng.randrange(2, 9)))])
        elif rng.random() < 0.3:
            await store.txn([], [Delete(key)])
        else:
            await store.txn([Compare(key, "mod", 0)], [Put(key, b"%d" % step)])
        await clock.advance(rng.choice([0, 0, 0.5, 1]))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()
    return told


async def test_closing_ends_watches_and_calls() -> None:
    store = MemoryStore(HandClock())
    async with store.watch("/k", after_revision=1) as batches:
        waiting = asyncio.ensure_future(anext(batches))
        await settle()
        await store.grant(100)
        await store.close()
        with pytest.raises(StoreUnavailableError):
            await waiting
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.get("/k")


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=30), st.data())
async def test_the_past_is_what_the_present_was(steps: list[tuple[int, bool]], data: st.DataObject) -> None:
    """Every revision, listed later and by pages, equals the list taken when it was the present."""
    store = MemoryStore(HandClock())
    seen = {1: await store.list("/k")}
    for key, is_put in steps:
        await store.txn([], [Put(f"/k{key}", b"") if is_put else Delete(f"/k{key}")])
        listing = await store.list("/k")
        seen[listing.revision] = listing
    revision = data.draw(st.sampled_from(sorted(seen)))
    limit = data.draw(st.integers(1, 10))
    assert await store.list("/k", revision=revision) == seen[revision]
    items, page = [], await store.list("/k", limit=limit, revision=revision)
    while True:
        assert page.count == len(seen[revision].items) - len(items)
        items.extend(page.items)
        if not page.more:
            break
        assert len(page.items) == limit
        page = await store.list("/k", limit=limit, after=items[-1].key, revision=revision)
    assert tuple(items) == seen[revision].items
    await store.close()

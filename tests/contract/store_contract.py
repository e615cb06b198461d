"""What every body of the store port promises. A body's test file gives the `store` and how time passes for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from primordia.kit.errors import NotFoundError, PermanentError
from primordia.kit.ids import new_uid
from primordia.ports.store import (
    MAX_TXN_BYTES,
    MAX_TXN_OPERATIONS,
    CompactedError,
    Compare,
    Delete,
    Listing,
    Put,
    Store,
    TxnResult,
    WatchBatch,
    WatchEvent,
)

DEADLINE_S = 60


async def put(store: Store, key: str, value: bytes, lease: int = 0) -> int:
    result = await store.txn([], [Put(key, value, lease)])
    assert result.done
    return result.revision


async def delete(store: Store, key: str) -> int:
    return (await store.txn([], [Delete(key)])).revision


async def collect(batches: AsyncIterator[WatchBatch], count: int) -> list[WatchEvent]:
    """The next `count` events; checks that batches are whole and in order."""
    events: list[WatchEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(events) < count:
            batch = await anext(batches)
            assert all(event.revision <= batch.revision for event in batch.events)
            events.extend(batch.events)
    revisions = [event.revision for event in events]
    assert revisions == sorted(revisions)
    assert len(events) == count
    return events


def names(listing: Listing, prefix: str) -> list[str]:
    return [item.key.removeprefix(prefix) for item in listing.items]


class StoreContract:
    """Subclassed for each body, which gives the fixture `store` and `pass_time`."""

    async def pass_time(self, seconds: float) -> None:
        raise NotImplementedError

    @pytest.fixture
    def prefix(self) -> str:
        return f"/test/{new_uid()}/"

    # ------------------------------------------------------------ keys and revisions

    async def test_a_missing_key_is_none(self, store: Store, prefix: str) -> None:
        assert await store.get(prefix + "missing") is None

    async def test_revisions_and_versions_of_a_key(self, store: Store, prefix: str) -> None:
        key = prefix + "a"
        first = await put(store, key, b"1")
        second = await put(store, key, b"2")
        item = await store.get(key)
        assert item is not None
        assert (item.value, item.create_revision, item.mod_revision, item.version) == (b"2", first, second, 2)
        assert second == first + 1
        await delete(store, key)
        third = await put(store, key, b"3")
        item = await store.get(key)
        assert item is not None
        assert (item.create_revision, item.mod_revision, item.version) == (third, third, 1)

    async def test_a_transaction_that_changes_nothing_takes_no_revision(self, store: Store, prefix: str) -> None:
        before = await put(store, prefix + "a", b"1")
        assert await delete(store, prefix + "missing") == before
        assert await put(store, prefix + "a", b"1") == before + 1

    @pytest.mark.parametrize("value", [b"", b"\x00\xff" * 100, "grüße".encode(), b"x" * (MAX_TXN_BYTES - 200)])
    async def test_values_come_back_as_they_were(self, store: Store, prefix: str, value: bytes) -> None:
        key = prefix + "schlüssel"
        await put(store, key, value)
        item = await store.get(key)
        assert item is not None
        assert (item.key, item.value) == (key, value)

    async def test_what_no_body_can_carry_out_is_refused(self, store: Store, prefix: str) -> None:
        with pytest.raises(PermanentError, match="takes 1048"):
            await put(store, prefix + "a", b"x" * MAX_TXN_BYTES)
        with pytest.raises(PermanentError, match="only once"):
            await store.txn([], [Put(prefix + "a", b"1"), Delete(prefix + "a")])
        many = [Put(f"{prefix}{number}", b"") for number in range(MAX_TXN_OPERATIONS + 1)]
        with pytest.raises(PermanentError, match="513 operations"):
            await store.txn([], many)
        assert (await store.list(prefix)).items == ()

    # ------------------------------------------------------------ guards

    async def test_guards_on_create_mod_and_version(self, store: Store, prefix: str) -> None:
        key = prefix + "a"
        created = await put(store, key, b"1")
        changed = await put(store, key, b"2")
        for guard in (Compare(key, "create", created), Compare(key, "mod", changed), Compare(key, "version", 2)):
            assert (await store.txn([guard], [])).done
        for guard in (Compare(key, "create", changed), Compare(key, "mod", created), Compare(key, "version", 1)):
            assert not (await store.txn([guard], [])).done

    @pytest.mark.parametrize("target", ["create", "mod", "version"])
    async def test_a_missing_key_compares_as_zero(self, store: Store, prefix: str, target: str) -> None:
        guard = Compare(prefix + "a", target, 0)  # type: ignore[arg-type]
        assert (await store.txn([guard], [Put(prefix + "a", b"1")])).done
        assert not (await store.txn([guard], [Put(prefix + "a", b"2")])).done

    async def test_a_transaction_is_all_or_nothing(self, store: Store, prefix: str) -> None:
        a = await put(store, prefix + "a", b"1")
        guards = [Compare(prefix + "a", "mod", a), Compare(prefix + "b", "mod", 0)]
        operations = [Put(prefix + "a", b"2"), Put(prefix + "b", b"2"), Delete(prefix + "c")]
        done = await store.txn(guards, operations)
        assert done == TxnResult(True, a + 1)
        listing = await store.list(prefix)
        assert [(item.value, item.mod_revision) for item in listing.items] == [(b"2", a + 1)] * 2
        failed = await store.txn(guards, [Delete(prefix + "a")], read_if_failed=[prefix + "b", prefix + "c"])
        assert (failed.done, failed.revision) == (False, a + 1)
        assert failed.found == (listing.items[1], None)

    async def test_the_largest_transaction(self, store: Store, prefix: str) -> None:
        keys = [f"{prefix}{number:04d}" for number in range(MAX_TXN_OPERATIONS)]
        result = await store.txn([Compare(key, "mod", 0) for key in keys], [Put(key, b"v") for key in keys])
        assert result.done
        assert {item.mod_revision for item in (await store.list(prefix)).items} == {result.revision}

    async def test_of_20_that_compare_and_swap_one_wins_each_round(self, store: Store, prefix: str) -> None:
        key = prefix + "a"
        revision = await put(store, key, b"start")
        for _ in range(10):
            guard = Compare(key, "mod", revision)
            results = await asyncio.gather(*(store.txn([guard], [Put(key, b"%d" % n)]) for n in range(20)))
            winners = [number for number, result in enumerate(results) if result.done]
            assert len(winners) == 1
            item = await store.get(key)
            assert item is not None
            assert item.value == b"%d" % winners[0]
            assert item.mod_revision == results[winners[0]].revision == revision + 1
            revision = item.mod_revision

    # ------------------------------------------------------------ lists

    async def test_a_list_is_ordered_and_keeps_to_its_prefix(self, store: Store, prefix: str) -> None:
        for name in ("b", "a/2", "a/10", "a", "ab", "ä"):
            await put(store, prefix + name, b"")
        await put(store, prefix[:-1] + "0", b"a neighbour")
        assert names(await store.list(prefix), prefix) == ["a", "a/10", "a/2", "ab", "b", "ä"]
        assert names(await store.list(prefix + "a/"), prefix) == ["a/10", "a/2"]
        assert (await store.list(prefix + "none")).items == ()

    async def test_limit_and_after(self, store: Store, prefix: str) -> None:
        for name in "abcde":
            await put(store, prefix + name, b"")
        page = await store.list(prefix, limit=2)
        assert (names(page, prefix), page.more, page.count) == (["a", "b"], True, 5)
        page = await store.list(prefix, limit=2, after=prefix + "b")
        assert (names(page, prefix), page.more, page.count) == (["c", "d"], True, 3)
        page = await store.list(prefix, limit=2, after=prefix + "d")
        assert (names(page, prefix), page.more) == (["e"], False)
        assert names(await store.list(prefix, after=prefix + "bb"), prefix) == ["c", "d", "e"]
        assert (await store.list(prefix, after=prefix + "z")).items == ()
        page = await store.list(prefix, limit=5)
        assert (len(page.items), page.more) == (5, False)

    async def test_a_list_at_a_revision_is_what_was_then(self, store: Store, prefix: str) -> None:
        await put(store, prefix + "a", b"1")
        await put(store, prefix + "b", b"1")
        then = await put(store, prefix + "c", b"1")
        expected = (await store.list(prefix)).items
        await delete(store, prefix + "a")
        await put(store, prefix + "b", b"2")
        await put(store, prefix + "bb", b"1")
        await put(store, prefix + "c", b"2")
        await delete(store, prefix + "c")
        await put(store, prefix + "c", b"3")
        listing = await store.list(prefix, revision=then)
        assert listing.items == expected
        assert listing.revision == then
        assert names(await store.list(prefix), prefix) == ["b", "bb", "c"]
        assert names(await store.list(prefix, limit=1, after=prefix + "a", revision=then), prefix) == ["b"]

    async def test_a_revision_in_the_future_is_refused(self, store: Store, prefix: str) -> None:
        now = (await store.status()).revision
        with pytest.raises(PermanentError, match="future"):
            await store.list(prefix, revision=now + 1000)
        with pytest.raises(PermanentError, match="future"):
            await store.compact(now + 1000)

    async def test_5000_keys_by_pages_at_one_revision(self, store: Store, prefix: str) -> None:
        keys = [f"{prefix}{number:05d}" for number in range(5000)]
        for start in range(0, 5000, 500):
            await store.txn([], [Put(key, b"x" * 100) for key in keys[start : start + 500]])
        page = await store.list(prefix, limit=700)
        found = [item.key for item in page.items]
        await store.txn([], [Delete(keys[0]), Delete(keys[4000]), Put(keys[100], b"new"), Put(prefix + "00000a", b"")])
        while page.more:
            assert page.count == 5000 - len(found) + len(page.items)
            page = await store.list(prefix, limit=700, after=found[-1], revision=page.revision)
            found.extend(item.key for item in page.items)
        assert found == keys
        now = await store.list(prefix)
        assert (len(now.items), now.more, now.count) == (4999, False, 4999)
        assert len((await store.list(prefix, limit=1200)).items) == 1200

    # ------------------------------------------------------------ watches

    async def test_a_watch_tells_what_happens(self, store: Store, prefix: str) -> None:
        start = await put(store, prefix + "a", b"1")
        async with store.watch(prefix, after_revision=start) as batches:
            second = await put(store, prefix + "a", b"2")
            third = await put(store, prefix + "b", b"1")
            await put(store, prefix[:-1] + "0", b"a neighbour")
            fifth = await delete(store, prefix + "a")
            events = await collect(batches, 3)
        assert events == [
            WatchEvent(prefix + "a", b"2", second, start, b"1", start),
            WatchEvent(prefix + "b", b"1", third, third),
            WatchEvent(prefix + "a", None, fifth, 0, b"2", second),
        ]

    async def test_a_watch_from_the_past_misses_nothing(self, store: Store, prefix: str) -> None:
        start = await put(store, prefix + "a", b"0")
        revisions = [await put(store, prefix + "a", b"%d" % number) for number in range(1, 40)]
        async with store.watch(prefix, after_revision=start) as batches:
            revisions += [await put(store, prefix + "a", b"%d" % number) for number in range(40, 60)]
            events = await collect(batches, 59)
        assert [event.revision for event in events] == revisions
        assert [event.value for event in events] == [b"%d" % number for number in range(1, 60)]

    async def test_a_watch_from_the_future_begins_there(self, store: Store, prefix: str) -> None:
        start = await put(store, prefix + "a", b"0")
        async with store.watch(prefix, after_revision=start + 2) as batches:
            for number in range(1, 5):
                await put(store, prefix + "a", b"%d" % number)
            events = await collect(batches, 2)
        assert [event.value for event in events] == [b"3", b"4"]

    async def test_a_transaction_is_told_whole(self, store: Store, prefix: str) -> None:
        start = (await store.status()).revision
        async with store.watch(prefix, after_revision=start) as batches:
            values = [Put(f"{prefix}{number:03d}", b"v" * 2000) for number in range(400)]
            result = await store.txn([], values)
            async with asyncio.timeout(DEADLINE_S):
                batch = await anext(batches)
                while not batch.events:
                    batch = await anext(batches)
        assert batch.revision == result.revision
        assert [event.key for event in batch.events] == [each.key for each in values]

    async def test_large_changes_reach_a_watch(self, store: Store, prefix: str) -> None:
        start = (await store.status()).revision
        for number in range(6):
            await put(store, prefix + "a", bytes([number]) * (MAX_TXN_BYTES - 200))
        async with store.watch(prefix, after_revision=start) as batches:
            events = await collect(batches, 6)
        assert [event.value[:1] for event in events if event.value] == [bytes([number]) for number in range(6)]

    async def test_watches_do_not_disturb_each_other(self, store: Store, prefix: str) -> None:
        start = (await store.status()).revision

        async def follow(name: str) -> list[bytes | None]:
            async with store.watch(f"{prefix}{name}/", after_revision=start) as batches:
                return [event.value for event in await collect(batches, 10)]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(follow(f"{number % 7}")) for number in range(21)]
            for number in range(70):
                await put(store, f"{prefix}{number % 7}/k", b"%d" % number)
        for number, task in enumerate(tasks):
            assert task.result() == [b"%d" % (number % 7 + 7 * step) for step in range(10)]

    async def test_compaction_ends_what_needs_the_past(self, store: Store, prefix: str) -> None:
        first = await put(store, prefix + "a", b"1")
        for number in range(5):
            last = await put(store, prefix + "a", b"%d" % number)
        await store.compact(last)
        await store.compact(first)
        with pytest.raises(CompactedError):
            await store.list(prefix, revision=first)
        with pytest.raises(CompactedError):
            async with store.watch(prefix, after_revision=first) as batches:
                await collect(batches, 5)
        assert (await store.list(prefix, revision=last)).items[0].value == b"4"
        async with store.watch(prefix, after_revision=last) as batches:
            await put(store, prefix + "a", b"after")
            assert (await collect(batches, 1))[0].value == b"after"

    async def test_a_watch_that_keeps_up_survives_compaction(self, store: Store, prefix: str) -> None:
        start = await put(store, prefix + "a", b"1")
        async with store.watch(prefix, after_revision=start) as batches:
            last = await put(store, prefix + "a", b"2")
            await collect(batches, 1)
            await store.compact(last)
            await put(store, prefix + "a", b"3")
            assert (await collect(batches, 1))[0].value == b"3"

    async def test_a_cancelled_watch_ends_at_once(self, store: Store, prefix: str) -> None:
        start = (await store.status()).revision
        begun = asyncio.Event()

        async def follow() -> None:
            async with store.watch(prefix, after_revision=start) as batches:
                begun.set()
                async for _ in batches:
                    pass

        task = asyncio.create_task(follow())
        async with asyncio.timeout(DEADLINE_S):
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    # ------------------------------------------------------------ leases

    async def test_a_lease_ends_and_takes_its_keys(self, store: Store, prefix: str) -> None:
        lease = await store.grant(2)
        await put(store, prefix + "a", b"1", lease)
        await put(store, prefix + "b", b"1", lease)
        await put(store, prefix + "c", b"1", lease)
        last = await put(store, prefix + "c", b"2")
        item = await store.get(prefix + "a")
        assert item is not None
        assert item.lease == lease
        assert 0 < await store.time_to_live(lease) <= 2
        async with store.watch(prefix, after_revision=last) as batches:
            await self.pass_time(4)
            events = await collect(batches, 2)
        assert [(event.key, event.value) for event in events] == [(prefix + "a", None), (prefix + "b", None)]
        assert events[0].revision == events[1].revision
        assert events[0].previous == b"1"
        assert names(await store.list(prefix), prefix) == ["c"]
        assert await store.time_to_live(lease) == 0
        assert await store.keep_alive(lease) == 0

    async def test_a_lease_kept_alive_lasts(self, store: Store, prefix: str) -> None:
        lease = await store.grant(3)
        await put(store, prefix + "a", b"1", lease)
        for _ in range(5):
            await self.pass_time(1)
            assert await store.keep_alive(lease) == 3
        assert await store.get(prefix + "a") is not None
        await store.revoke(lease)
        assert await store.get(prefix + "a") is None

    async def test_revoking_ends_at_once_and_twice_is_harmless(self, store: Store, prefix: str) -> None:
        lease = await store.grant(60)
        await put(store, prefix + "a", b"1", lease)
        await store.revoke(lease)
        await store.revoke(lease)
        assert await store.get(prefix + "a") is None
        assert await store.time_to_live(lease) == 0
        with pytest.raises(NotFoundError):
            await put(store, prefix + "a", b"1", lease)

    async def test_status_names_version_and_leader(self, store: Store, prefix: str) -> None:
        revision = await put(store, prefix + "a", b"1")
        status = await store.status()
        assert status.revision == revision
        assert status.version
        assert status.leader == status.member != ""
        assert status.size_bytes > 0

"""The memory body of the store port: one process, no disk, the same answers as etcd.

It exists so that controllers run in tests and under a virtual clock. Nothing in it reads the real time or rolls dice: the
same calls at the same times of the injected clock give the same revisions. Every change is kept as a pair (before, after)
until compaction; a list at an older revision is the present with the later changes undone.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from primordia.kit.clock import Clock
from primordia.kit.errors import NotFoundError, PermanentError
from primordia.kit.tasks import TaskSet
from primordia.ports.store import (
    CompactedError,
    Compare,
    Delete,
    KeyValue,
    Listing,
    Put,
    StoreStatus,
    StoreUnavailableError,
    TxnResult,
    WatchBatch,
    WatchEvent,
    check_operations,
)

_BATCH_REVISIONS = 1000


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key at one revision: what it was and what it became."""

    key: str
    before: KeyValue | None
    after: KeyValue | None


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    deadline: float
    keys: set[str] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class MemoryStore:
    """A Store in this process. `history` is how many revisions are kept before the oldest are compacted away.

    `observe` is told of every revision in the moment it comes to be, for those who judge a whole run.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        history: int = 100_000,
        observe: Callable[[int, Sequence[KeyChange]], None] | None = None,
    ) -> None:
        self._observe = observe
        self._clock = clock
        self._history = history
        self._revision = 1
        self._compacted = 0
        self._sorted: Sequence[str] | None = []
        self._current: dict[str, KeyValue] = {}
        self._changes: list[tuple[KeyChange, ...]] = []
        self._first = 2
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = itertools.count(1)
        self._tasks = TaskSet("memory-store")
        self._wake: dict[asyncio.Event, None] = {}
        self._closed = False

    @property
    def revision(self) -> int:
        """The present one, at no cost."""
        return self._revision

    async def get(self, key: str) -> KeyValue | None:
        self._settle()
        return self._current.get(key)

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        self._settle()
        at = revision or self._revision
        self._check_revision(at)
        if at == self._revision:
            start, end = self._range(prefix, after)
            chosen = self._keys[start : start + limit] if limit and start + limit < end else self._keys[start:end]
            items = tuple(self._current[key] for key in chosen)
            return Listing(items, self._revision, len(items) < end - start, end - start)
        return self._past(prefix, limit, after, at)

    async def txn(
        self,
        guards: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        read_if_failed: Sequence[str] = (),
    ) -> TxnResult:
        self._settle()
        check_operations(operations)
        if not all(self._holds(guard) for guard in guards):
            return TxnResult(False, self._revision, tuple(self._current.get(key) for key in read_if_failed))
        for operation in operations:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise NotFoundError(f"Lease {operation.lease:x} is gone, so {operation.key} was not written.")
        self._commit(operations)
        return TxnResult(True, self._revision)

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        self._settle()
        wake = asyncio.Event()
        self._wake[wake] = None
        batches = self._batches(prefix, after_revision, wake)
        try:
            yield batches
        finally:
            self._wake.pop(wake, None)
            await batches.aclose()

    async def grant(self, ttl_s: int) -> int:
        self._settle()
        number = next(self._lease_ids)
        lease = _Lease(ttl_s, self._clock.boottime() + ttl_s)
        self._leases[number] = lease
        lease.task = self._tasks.start(self._expire(number), name=f"lease-{number:x}")
        return number

    async def keep_alive(self, lease: int) -> float:
        self._settle()
        held = self._leases.get(lease)
        if held is None:
            return 0
        held.deadline = self._clock.boottime() + held.ttl_s
        return held.ttl_s

    async def time_to_live(self, lease: int) -> float:
        self._settle()
        held = self._leases.get(lease)
        return 0 if held is None else held.deadline - self._clock.boottime()

    async def revoke(self, lease: int) -> None:
        self._settle()
        self._end_lease(lease)

    async def compact(self, revision: int) -> None:
        self._settle()
        if revision > self._revision:
            raise PermanentError(f"Revision {revision} lies in the future: the store is at {self._revision}.")
        self._forget(revision)

    async def status(self) -> StoreStatus:
        self._settle()
        size = sum(len(item.key) + len(item.value) for item in self._current.values())
        return StoreStatus("memory", self._revision, "memory", "memory", size, self._compacted)

    async def close(self) -> None:
        self._closed = True
        self._wake_watches()
        await self._tasks.close()

    # ------------------------------------------------------------ the present

    def _settle(self) -> None:
        """What is due by now has happened before anything else does, whether or not its task has run yet."""
        if self._closed:
            raise StoreUnavailableError("The store is closed.")
        now = self._clock.boottime()
        for number in [number for number, lease in self._leases.items() if lease.deadline <= now]:
            self._end_lease(number)

    def _holds(self, guard: Compare) -> bool:
        item = self._current.get(guard.key)
        if item is None:
            return guard.value == 0
        seen = {"create": item.create_revision, "mod": item.mod_revision, "version": item.version}
        return seen[guard.target] == guard.value

    def _commit(self, operations: Sequence[Put | Delete]) -> None:
        revision = self._revision + 1
        changes: list[KeyChange] = []
        for operation in operations:
            before = self._current.get(operation.key)
            if isinstance(operation, Put):
                changes.append(KeyChange(operation.key, before, _put(operation, before, revision)))
            elif before is not None:
                changes.append(KeyChange(operation.key, before, None))
        if not changes:
            return
        for change in changes:
            self._apply(change)
        self._revision = revision
        self._changes.append(tuple(changes))
        if self._observe is not None:
            self._observe(revision, changes)
        if len(self._changes) > 2 * self._history:
            self._forget(self._revision - self._history)
        self._wake_watches()

    def _apply(self, change: KeyChange) -> None:
        if change.before is not None and change.before.lease in self._leases:
            self._leases[change.before.lease].keys.discard(change.key)
        if change.after is None:
            del self._current[change.key]
            self._sorted = None
            return
        if change.before is None:
            self._sorted = None
        self._current[change.key] = change.after
        if change.after.lease:
            self._leases[change.after.lease].keys.add(change.key)

    @property
    def _keys(self) -> Sequence[str]:
        """All keys in order. Put in order only when asked: lists are rare, and new keys come by the hundred thousand."""
        if self._sorted is None:
            self._sorted = sorted(self._current)
        return self._sorted

    def _range(self, prefix: str, after: str) -> tuple[int, int]:
        start = bisect.bisect_right(self._keys, after) if after >= prefix else bisect.bisect_left(self._keys, prefix)
        end = bisect.bisect_left(self._keys, _successor(prefix)) if prefix else len(self._keys)
        return start, max(start, end)

    # ------------------------------------------------------------ the past

    def _check_revision(self, revision: int) -> None:
        if revision < self._compacted:
            raise CompactedError(f"Revision {revision} is no longer kept: the oldest is {self._compacted}.", retry_after_s=0)
        if revision > self._revision:
            raise PermanentError(f"Revision {revision} lies in the future: the store is at {self._revision}.")

    def _past(self, prefix: str, limit: int, after: str, revision: int) -> Listing:
        """The present with the later changes undone; with a limit, no more keys are looked at than it may take."""
        start, end = self._range(prefix, after)
        undone: dict[str, KeyValue | None] = {}
        for change in reversed(list(self._since(revision + 1))):
            if change.key.startswith(prefix) and change.key > after:
                undone[change.key] = change.before
        count = end - start + sum((item is not None) - (key in self._current) for key, item in undone.items())
        enough = min(end, start + limit + len(undone)) if limit else end
        keys = sorted({*self._keys[start:enough], *undone})
        then = (undone[key] if key in undone else self._current[key] for key in keys)
        items = tuple(itertools.islice((item for item in then if item is not None), limit or None))
        return Listing(items, revision, len(items) < count, count)

    def _since(self, revision: int) -> Iterator[KeyChange]:
        return itertools.chain.from_iterable(self._changes[max(0, revision - self._first) :])

    def _forget(self, revision: int) -> None:
        if revision > self._compacted:
            self._compacted = revision
            gone = max(0, revision + 1 - self._first)
            del self._changes[:gone]
            self._first += gone

    async def _batches(self, prefix: str, after: int, wake: asyncio.Event) -> AsyncGenerator[WatchBatch, None]:
        while True:
            if self._closed:
                raise StoreUnavailableError("The store is closed.")
            if after < self._compacted:
                raise CompactedError(f"Revision {after} is no longer kept: the oldest is {self._compacted}.", retry_after_s=0)
            wake.clear()
            begin = max(0, after + 1 - self._first)
            revisions = self._changes[begin : begin + _BATCH_REVISIONS]
            events = tuple(
                _event(change, self._first + begin + offset)
                for offset, changes in enumerate(revisions)
                for change in changes
                if change.key.startswith(prefix)
            )
            if revisions:
                after = self._first + begin + len(revisions) - 1
            if events:
                yield WatchBatch(after, events)
            elif not revisions:
                await wake.wait()

    def _wake_watches(self) -> None:
        for event in self._wake:
            event.set()

    # ------------------------------------------------------------ leases

    async def _expire(self, number: int) -> None:
        while (lease := self._leases.get(number)) is not None:
            left = lease.deadline - self._clock.boottime()
            if left <= 0:
                lease.task = None
                self._end_lease(number)
                return
            await self._clock.sleep(left)

    def _end_lease(self, number: int) -> None:
        lease = self._leases.pop(number, None)
        if lease is None:
            return
        if lease.task is not None:
            lease.task.cancel()
        self._commit([Delete(key) for key in sorted(lease.keys)])


def _put(operation: Put, before: KeyValue | None, revision: int) -> KeyValue:
    if before is None:
        return KeyValue(operation.key, operation.value, revision, revision, 1, operation.lease)
    return KeyValue(operation.key, operation.value, before.create_revision, revision, before.version + 1, operation.lease)


def _event(change: KeyChange, revision: int) -> WatchEvent:
    previous = (change.before.value, change.before.mod_revision) if change.before is not None else (None, 0)
    if change.after is None:
        return WatchEvent(change.key, None, revision, 0, *previous)
    return WatchEvent(change.key, change.after.value, revision, change.after.create_revision, *previous)


def _successor(prefix: str) -> str:
    """The first text behind everything that starts with `prefix` (keys are ASCII in practice, any text in principle)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if ord(prefix[-1]) < 0x10FFFF else prefix + "\U0010ffff"

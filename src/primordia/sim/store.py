"""A store in front of another that does to its caller what networks, servers and operators do.

It can be away, be slow, lose the answer of a write that was done, carry a request out long after its caller has given up,
end its watches, tell changes late or twice, and kill its caller in the middle of a call. What it never does is answer
wrongly: the store behind it stays what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar, cast

from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.ports.store import (
    Compare,
    Delete,
    KeyValue,
    Listing,
    Put,
    Store,
    StoreStatus,
    StoreUnavailableError,
    TxnResult,
    WatchBatch,
)

T = TypeVar("T")

_Batches = asyncio.Queue[WatchBatch | PrimordiaError]


class CutError(BaseException):
    """The process dies here."""


class FaultyStore:
    """Set its fields to hurt. `calls` counts what got through; the call numbered `cut_at` kills the caller.

    `latency_s` is the longest a call takes, `late_s` the longest a change is told late; `repeat` is how likely a change
    is told twice. While it is stalled (`stall`), nothing passes in either direction; afterwards everything does.
    """

    def __init__(self, inner: Store, rng: random.Random | None = None) -> None:
        self._inner = inner
        self._rng = rng or random.Random(0)
        self._watches: dict[int, _Batches] = {}
        self._numbers = iter(range(2**62))
        self.away = False
        self.calls = 0
        self.cut_at = 0
        self.cut_after = False
        self.lose: Callable[[], bool] = lambda: False
        self.latency_s = 0.0
        self.late_s = 0.0
        self.repeat = 0.0
        self._passes = asyncio.Event()
        self._passes.set()
        self._stalled = TaskSet("stalled-requests")

    def stall(self, stalled: bool) -> None:
        """Hold everything back, or let it go. A request that is held back is carried out even if its caller is gone."""
        if stalled:
            self._passes.clear()
        else:
            self._passes.set()

    def cut_watches(self) -> None:
        """End every watch that is open now, as a broken connection does."""
        for queue in self._watches.values():
            queue.put_nowait(StoreUnavailableError("The watch was cut."))

    # ------------------------------------------------------------ the port

    async def get(self, key: str) -> KeyValue | None:
        return await self._through(lambda: self._inner.get(key))

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        return await self._through(lambda: self._inner.list(prefix, limit=limit, after=after, revision=revision))

    async def txn(
        self, guards: Sequence[Compare], operations: Sequence[Put | Delete], *, read_if_failed: Sequence[str] = ()
    ) -> TxnResult:
        return await self._through(lambda: self._inner.txn(guards, operations, read_if_failed=read_if_failed), lossy=True)

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        if self.away:
            raise StoreUnavailableError("The store is away.")
        queue: _Batches = asyncio.Queue()
        number = next(self._numbers)
        tasks = TaskSet("faulty-watch")
        async with self._inner.watch(prefix, after_revision=after_revision) as batches:
            self._watches[number] = queue
            tasks.start(_pump(batches, queue), name=prefix)
            hurt = self._hurt(queue)
            try:
                yield hurt
            finally:
                del self._watches[number]
                await hurt.aclose()
                await tasks.close()

    async def grant(self, ttl_s: int) -> int:
        return await self._through(lambda: self._inner.grant(ttl_s))

    async def keep_alive(self, lease: int) -> float:
        return await self._through(lambda: self._inner.keep_alive(lease))

    async def time_to_live(self, lease: int) -> float:
        return await self._through(lambda: self._inner.time_to_live(lease))

    async def revoke(self, lease: int) -> None:
        await self._through(lambda: self._inner.revoke(lease))

    async def compact(self, revision: int) -> None:
        await self._through(lambda: self._inner.compact(revision))

    async def status(self) -> StoreStatus:
        return await self._through(self._inner.status)

    async def close(self) -> None:
        """Forget what is held back; the store behind it is another's."""
        await self._stalled.close()

    # ------------------------------------------------------------ the harm

    async def _through(self, call: Callable[[], Awaitable[T]], *, lossy: bool = False) -> T:
        await self._delay()
        if self.away:
            raise StoreUnavailableError("The store is away.")
        self.calls += 1
        doomed = self.calls == self.cut_at
        if doomed and not self.cut_after:
            raise CutError
        result = await (call() if self._passes.is_set() else self._held_back(call))
        if doomed:
            raise CutError
        if self.latency_s:
            await self._delay()
        if lossy and self.lose():
            raise StoreUnavailableError("The answer was lost.")
        return result

    async def _held_back(self, call: Callable[[], Awaitable[T]]) -> T:
        async def later() -> T:
            await self._passes.wait()
            return await call()

        return cast("T", await asyncio.shield(self._stalled.start(later(), name="request")))

    async def _delay(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, self.latency_s / 2) if self.latency_s else 0)

    async def _hurt(self, queue: _Batches) -> AsyncGenerator[WatchBatch, None]:
        while True:
            item = await queue.get()
            await self._passes.wait()
            if isinstance(item, PrimordiaError):
                raise item
            if self.late_s:
                await asyncio.sleep(self._rng.uniform(0, self.late_s))
            yield item
            if self.repeat and self._rng.random() < self.repeat:
                yield item


async def _pump(batches: AsyncIterator[WatchBatch], queue: _Batches) -> None:
    try:
        async for batch in batches:
            queue.put_nowait(batch)
    except PrimordiaError as error:
        queue.put_nowait(error)

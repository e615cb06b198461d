"""Who can reach whom, and what becomes of messages: lost, late, doubled, cut in one direction.

A request that is on its way arrives though its sender has given up or died; whoever waits for an answer that is lost waits
for its whole patience. Nothing is ever changed on the way: the wire's own checks are not what is tried here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet
from primordia.ports.store import (
    Compare,
    Delete,
    KeyValue,
    Listing,
    Put,
    StoreStatus,
    StoreUnavailableError,
    TxnResult,
    WatchBatch,
)
from primordia.sim.survival.engine import SimEngine
from primordia.sim.survival.process import Process

T = TypeVar("T")

ENGINE = "engine"
_LATEST_S = 12.0


class Links:
    """Every link of the world. `cuts` counts the reasons for which nothing goes from one end to the other."""

    def __init__(self, rng: random.Random, latency_s: float) -> None:
        self._rng = rng
        self._latency_s = latency_s
        self.cuts: Counter[tuple[str, str]] = Counter()
        self.lossy = 0
        self.late = 0
        self.doubling = 0
        self.lost = 0
        self.delayed = 0
        self.doubled = 0
        self._wire = TaskSet("wire")

    def cut(self, one: str, other: str, count: int, *, both: bool = True) -> None:
        """One reason more (1) or less (-1) for which nothing goes from one to the other."""
        self.cuts[one, other] += count
        if both:
            self.cuts[other, one] += count

    def goes(self, one: str, other: str) -> bool:
        """Whether the way from one to the other is open."""
        return self.cuts[one, other] <= 0

    async def close(self) -> None:
        """Drop what is on its way."""
        await self._wire.close()

    async def ask(
        self,
        source: tuple[str, Process],
        target: str,
        work: Callable[[], Awaitable[T]],
        patience_s: float,
        *,
        once: bool = False,
    ) -> T:
        """The answer of the other end. `work` is what happens there; it is never doubled where it is to be done `once`.

        TemporaryError (NodeUnreachable) without an answer.
        """
        name, process = source
        await process.passes()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._wire.start(self._carry(name, target, work, answer, once), name=f"{name}-{target}")
        try:
            async with asyncio.timeout(patience_s + process.lateness_s()):
                result = await answer
        except TimeoutError:
            await process.passes()
            raise TemporaryError(f"{target} does not answer {name}.", reason="NodeUnreachable") from None
        except PrimordiaError:
            await process.passes()
            raise
        finally:
            answer.cancel()
        await process.passes()
        return result

    async def _carry(
        self, name: str, target: str, work: Callable[[], Awaitable[T]], answer: asyncio.Future[T], once: bool
    ) -> None:
        await self._travel()
        if not self.goes(name, target) or self._is_lost():
            return
        if self.late and self._rng.random() < 0.1:
            self.delayed += 1
            await asyncio.sleep(self._rng.uniform(0, _LATEST_S))
        if self.doubling and not once and self._rng.random() < 0.2:
            self.doubled += 1
            self._wire.start(self._again(work), name="again")
        try:
            result = await work()
        except PrimordiaError as error:
            await self._travel()
            if self.goes(target, name) and not answer.done():
                answer.set_exception(error)
                answer.exception()
            return
        await self._travel()
        if self.goes(target, name) and not self._is_lost() and not answer.done():
            answer.set_result(result)

    async def _again(self, work: Callable[[], Awaitable[T]]) -> None:
        await asyncio.sleep(self._rng.uniform(0, _LATEST_S / 2))
        with contextlib.suppress(PrimordiaError):
            await work()

    def _is_lost(self) -> bool:
        lost = self.lossy > 0 and self._rng.random() < 0.1
        self.lost += lost
        return lost

    async def _travel(self) -> None:
        await asyncio.sleep(self._rng.uniform(self._latency_s / 4, self._latency_s))


class NodeStore:
    """The engine as one process has it, over its node's link. `patience_s` is how long it waits for an answer."""

    def __init__(self, node: str, process: Process, engine: SimEngine, links: Links, patience_s: float) -> None:
        self._source = (node, process)
        self._process = process
        self._node = node
        self._engine = engine
        self._links = links
        self._patience_s = patience_s

    async def get(self, key: str) -> KeyValue | None:
        return await self._ask(lambda: self._engine.get(key))

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        return await self._ask(lambda: self._engine.list(prefix, limit=limit, after=after, revision=revision))

    async def txn(
        self, guards: Sequence[Compare], operations: Sequence[Put | Delete], *, read_if_failed: Sequence[str] = ()
    ) -> TxnResult:
        return await self._ask(lambda: self._engine.txn(guards, operations, read_if_failed=read_if_failed))

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        await self._ask(self._engine.status)
        async with self._engine.watch(prefix, after_revision=after_revision) as batches:
            told = self._told(batches)
            try:
                yield told
            finally:
                await told.aclose()

    async def grant(self, ttl_s: int) -> int:
        return await self._ask(lambda: self._engine.grant(ttl_s))

    async def keep_alive(self, lease: int) -> float:
        return await self._ask(lambda: self._engine.keep_alive(lease))

    async def time_to_live(self, lease: int) -> float:
        return await self._ask(lambda: self._engine.time_to_live(lease))

    async def revoke(self, lease: int) -> None:
        await self._ask(lambda: self._engine.revoke(lease))

    async def compact(self, revision: int) -> None:
        await self._ask(lambda: self._engine.compact(revision))

    async def status(self) -> StoreStatus:
        return await self._ask(self._engine.status)

    async def close(self) -> None:
        """Nothing: the engine is the world's."""

    async def _ask(self, work: Callable[[], Awaitable[T]]) -> T:
        async def led() -> T:
            if self._engine.leaderless:
                await asyncio.sleep(self._patience_s)
                raise StoreUnavailableError("The engine has no leader.")
            return await work()

        try:
            return await self._links.ask(self._source, ENGINE, led, self._patience_s, once=True)
        except TemporaryError as error:
            if error.reason in ("NodeUnreachable", "Dead"):
                raise StoreUnavailableError(f"The engine does not answer {self._node}: {error.message}") from None
            raise

    async def _told(self, batches: AsyncIterator[WatchBatch]) -> AsyncGenerator[WatchBatch, None]:
        """What the watch tells, a moment later; it breaks where the way to here is closed."""
        async for batch in batches:
            await self._links._travel()
            broken = not self._links.goes(ENGINE, self._node) or self._engine.leaderless > 0
            await self._process.passes()
            if broken or not self._links.goes(ENGINE, self._node):
                await asyncio.sleep(self._patience_s)
                await self._process.passes()
                raise StoreUnavailableError(f"The watch of {self._node} was cut.")
            yield batch

"""A store whose every write is made only while some guards hold: the fence around those who act by an office or a lease.

Whoever writes through it cannot forget the guard, and cannot write after it has lost what the guard names, however late
a request arrives. Reads and watches pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from primordia.kit.errors import TemporaryError
from primordia.ports.store import Compare, Delete, KeyValue, Listing, Put, Store, StoreStatus, TxnResult, WatchBatch


class GuardError(TemporaryError):
    """A guard did not hold, so nothing was written: what the writer acted by is no longer its own."""

    reason = "GuardFailed"


class GuardedStore:
    """`inner`, with `guards` in each transaction. `txn` raises GuardError besides the port's errors."""

    def __init__(self, inner: Store, guards: Sequence[Compare]) -> None:
        self._inner = inner
        self._guards = tuple(guards)

    async def txn(
        self, guards: Sequence[Compare], operations: Sequence[Put | Delete], *, read_if_failed: Sequence[str] = ()
    ) -> TxnResult:
        keys = [guard.key for guard in self._guards]
        result = await self._inner.txn([*self._guards, *guards], operations, read_if_failed=[*read_if_failed, *keys])
        if result.done:
            return result
        asked = len(read_if_failed)
        for guard, found in zip(self._guards, result.found[asked:], strict=True):
            if not satisfied(guard, found):
                raise GuardError(f"Nothing was written, for {guard.key} is not what it was.")
        return TxnResult(False, result.revision, result.found[:asked])

    async def get(self, key: str) -> KeyValue | None:
        return await self._inner.get(key)

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        return await self._inner.list(prefix, limit=limit, after=after, revision=revision)

    def watch(self, prefix: str, *, after_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        return self._inner.watch(prefix, after_revision=after_revision)

    async def grant(self, ttl_s: int) -> int:
        return await self._inner.grant(ttl_s)

    async def keep_alive(self, lease: int) -> float:
        return await self._inner.keep_alive(lease)

    async def time_to_live(self, lease: int) -> float:
        return await self._inner.time_to_live(lease)

    async def revoke(self, lease: int) -> None:
        await self._inner.revoke(lease)

    async def compact(self, revision: int) -> None:
        await self._inner.compact(revision)

    async def status(self) -> StoreStatus:
        return await self._inner.status()

    async def close(self) -> None:
        """Nothing: the store behind it is another's."""


def satisfied(guard: Compare, found: KeyValue | None) -> bool:
    """Whether a guard holds for a key as it was found."""
    if found is None:
        return guard.value == 0
    return {"create": found.create_revision, "mod": found.mod_revision, "version": found.version}[guard.target] == guard.value

"""The etcd body of the store port: each call is one request of `gateway`, sent by `transport`.

What may be repeated: reads; renewing, asking and ending a lease; compaction; granting a lease (one too many ends by
itself). A transaction is not: after an unknown fate the caller reads and decides again.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from primordia.drivers.store_etcd import gateway
from primordia.drivers.store_etcd.members import EtcdMembers
from primordia.drivers.store_etcd.transport import Settings, Transport
from primordia.drivers.store_etcd.watch import Watch
from primordia.kit.errors import InvalidError, NotFoundError
from primordia.kit.pki import client_context
from primordia.ports.store import (
    CompactedError,
    Compare,
    Delete,
    KeyValue,
    Listing,
    Put,
    StoreStatus,
    TxnResult,
    WatchBatch,
    check_operations,
)


class EtcdStore:
    """A Store on etcd servers. `endpoints` are `https://HOST:PORT`; `ca`, `certificate` and `key` are PEM files.

    Raises InvalidError without an endpoint and PkiError for unusable files. Belongs to the event loop of its first call.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        ca: Path,
        certificate: Path,
        key: Path,
        *,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        rng: random.Random | None = None,
    ) -> None:
        if not endpoints:
            raise InvalidError("engine.endpoints", "must name one server at least")
        tls = client_context(ca, certificate, key)
        self._settings = settings
        self._transport = Transport(endpoints, tls, settings, rng or random.Random())
        self.members = EtcdMembers(self._transport)

    def use(self, endpoints: Sequence[str]) -> None:
        """Ask these servers from now on. Raises InvalidError without one."""
        if not endpoints:
            raise InvalidError("engine.endpoints", "must name one server at least")
        self._transport.use(endpoints)

    async def get(self, key: str) -> KeyValue | None:
        request = gateway.get_request(key)
        answer = await self._transport.call(gateway.RANGE, request, gateway.RangeAnswer, repeat=True)
        return gateway.to_key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        page = await self._page(prefix, limit, after, revision)
        if not page.more or (limit and len(page.items) >= limit):
            return page
        items, count = list(page.items), page.count
        while page.more and not (limit and len(items) >= limit):
            page = await self._page(prefix, limit - len(items) if limit else 0, items[-1].key, page.revision)
            items.extend(page.items)
        return Listing(tuple(items), page.revision, page.more, count)

    async def txn(
        self,
        guards: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        read_if_failed: Sequence[str] = (),
    ) -> TxnResult:
        check_operations(operations)
        request = gateway.txn_request(guards, operations, read_if_failed)
        answer = await self._transport.call(gateway.TXN, request, gateway.TxnAnswer, repeat=False)
        return gateway.to_txn_result(answer)

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        watch = Watch(self._transport, prefix, after_revision)
        await watch.open()
        batches = watch.batches()
        try:
            yield batches
        finally:
            await batches.aclose()
            watch.close()

    async def grant(self, ttl_s: int) -> int:
        answer = await self._lease(gateway.GRANT, gateway.grant_request(ttl_s))
        return answer.ID

    async def keep_alive(self, lease: int) -> float:
        request = gateway.lease_request(lease)
        answer = await self._transport.call(gateway.KEEP_ALIVE, request, gateway.KeepAliveAnswer, repeat=True)
        return max(0, answer.result.TTL)

    async def time_to_live(self, lease: int) -> float:
        return gateway.seconds_left(await self._lease(gateway.TIME_TO_LIVE, gateway.lease_request(lease)))

    async def revoke(self, lease: int) -> None:
        with contextlib.suppress(NotFoundError):
            await self._lease(gateway.REVOKE, gateway.lease_request(lease))

    async def compact(self, revision: int) -> None:
        with contextlib.suppress(CompactedError):
            request = gateway.compact_request(revision)
            await self._transport.call(gateway.COMPACT, request, gateway.EmptyAnswer, repeat=True)

    async def status(self) -> StoreStatus:
        answer = await self._transport.call(gateway.STATUS, b"{}", gateway.StatusAnswer, repeat=True)
        return gateway.to_status(answer)

    async def close(self) -> None:
        await self._transport.close()

    async def _page(self, prefix: str, limit: int, after: str, revision: int) -> Listing:
        limit = min(limit, self._settings.page) if limit else self._settings.page
        request = gateway.list_request(prefix, limit=limit, after=after, revision=revision)
        answer = await self._transport.call(
            gateway.RANGE, request, gateway.RangeAnswer, repeat=True, timeout_s=self._settings.list_timeout_s
        )
        return gateway.to_listing(answer, revision)

    async def _lease(self, path: str, request: bytes) -> gateway.LeaseAnswer:
        return await self._transport.call(path, request, gateway.LeaseAnswer, repeat=True)

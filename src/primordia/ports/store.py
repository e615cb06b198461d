"""The store port: a small, linearizable, revisioned key-value store with leases. Bodies: etcd, memory.

Modelled on etcd v3, because that is the engine; the memory body exists so that controllers run in tests and under a
virtual clock. Keys are text, values bytes. Every change gets the next revision of one counter for the whole store.
One contract suite (tests/contract/store_contract.py) holds for every body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from primordia.kit.errors import PermanentError, TemporaryError


class StoreUnavailableError(TemporaryError):
    """No server of the store answered in time, or it has no quorum. The request may or may not have been done."""

    reason = "StoreUnavailable"


class CompactedError(TemporaryError):
    """The asked revision is no longer kept: list again, then watch from that list's revision."""

    reason = "Expired"


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as of some revision. `lease` is 0 for none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int = 1
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Keys in order, as of `revision`. `more` says that the limit cut it; go on with `after=items[-1].key`.

    `count` is how many keys there are from the first of these on, those behind the limit included.
    """

    items: tuple[KeyValue, ...]
    revision: int
    more: bool = False
    count: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """One guard of a transaction: `target` of `key` must equal `value`. A missing key has all three at 0."""

    key: str
    target: Literal["create", "mod", "version"]
    value: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; with `lease`, it vanishes when the lease ends."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key if it is there."""

    key: str


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`done` says whether every guard held, and so every operation was carried out at `revision`.

    Otherwise nothing was, and `found` has the keys of `read_if_failed` in order (None where missing).
    """

    done: bool
    revision: int
    found: tuple[KeyValue | None, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`value` is None for a delete; `previous` (of `previous_revision`) is the value before, where still known."""

    key: str
    value: bytes | None
    revision: int
    create_revision: int = 0
    previous: bytes | None = None
    previous_revision: int = 0


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Every change of one or more whole revisions, up to `revision`; without events it is a sign of life."""

    revision: int
    events: tuple[WatchEvent, ...]


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """`leader` and `member` name servers; `size_bytes` is the database's."""

    version: str
    revision: int
    leader: str = ""
    member: str = ""
    size_bytes: int = 0
    compacted: int = 0


MAX_TXN_BYTES = 1024 * 1024
MAX_TXN_OPERATIONS = 512


def check_operations(operations: Sequence[Put | Delete]) -> None:
    """Refuse what no body can carry out as one transaction: too much of it, or a key that is written twice.

    Raises PermanentError.
    """
    if len(operations) > MAX_TXN_OPERATIONS:
        raise PermanentError(
            f"A transaction has {len(operations)} operations and may have {MAX_TXN_OPERATIONS}.", reason="RequestTooLarge"
        )
    size = sum(len(each.key) + len(each.value) for each in operations if isinstance(each, Put))
    if size > MAX_TXN_BYTES:
        raise PermanentError(
            f"Writing {operations[0].key} takes {size} bytes, and a transaction may have {MAX_TXN_BYTES}.",
            remedy="Make the object smaller; data belongs into images and volumes.",
            reason="RequestTooLarge",
        )
    keys = [each.key for each in operations]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise PermanentError(f"A transaction may write {twice} only once.")


class Store(Protocol):
    """All methods raise StoreUnavailableError; reads are linearizable unless a revision is given."""

    async def get(self, key: str) -> KeyValue | None:
        """One key, or None."""

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        """The keys with this prefix, in order. `limit` 0 is all; `after` skips to behind that key; `revision` 0 is now.

        Raises CompactedError when `revision` is no longer kept, PermanentError when it lies in the future.
        """

    async def txn(
        self,
        guards: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        read_if_failed: Sequence[str] = (),
    ) -> TxnResult:
        """Carry out all operations at one revision if every guard holds, else none.

        Raises PermanentError when it is too large or writes a key twice, NotFoundError when a Put names a lease that is
        gone. After StoreUnavailableError it may have been carried out or not; it is never carried out twice.
        """

    def watch(self, prefix: str, *, after_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """The changes below `prefix` after that revision, in order, without gap or repeat, across reconnects.

        The context manager returns when the watch is set up. The iteration raises CompactedError when the revision is
        gone, and StoreUnavailableError when no server can be reached for long.
        """

    async def grant(self, ttl_s: int) -> int:
        """A new lease; it ends when not kept alive for `ttl_s` seconds."""

    async def keep_alive(self, lease: int) -> float:
        """Renew; returns the seconds granted, 0 when the lease is gone."""

    async def time_to_live(self, lease: int) -> float:
        """The seconds left, 0 when the lease is gone. Does not renew."""

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys; a lease that is gone is no error."""

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`; harmless when it is forgotten. PermanentError when it lies in the future."""

    async def status(self) -> StoreStatus:
        """The state of the store as the answering server sees it."""

    async def close(self) -> None:
        """End every watch and connection."""

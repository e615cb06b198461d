"""The words of etcd's JSON gateway (v3), pure: requests from the port's values, the port's values from answers.

The gateway maps etcd's protobuf messages to JSON: bytes are base64, 64-bit integers are text, and fields that are zero or
empty are left out. msgspec reads all of it by type, so an answer of another shape is an error and not a surprise later.
Reference: etcd's `api/etcdserverpb/rpc.proto` and "gRPC gateway" in its documentation; 3.4 to 3.6 speak the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec

from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError
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
    WatchEvent,
)

RANGE = "/v3/kv/range"
TXN = "/v3/kv/txn"
COMPACT = "/v3/kv/compaction"
WATCH = "/v3/watch"
GRANT = "/v3/lease/grant"
REVOKE = "/v3/lease/revoke"
KEEP_ALIVE = "/v3/lease/keepalive"
TIME_TO_LIVE = "/v3/lease/timetolive"
STATUS = "/v3/maintenance/status"

# Numbers of gRPC's status codes (grpc/grpc, doc/statuscodes.md), and what servers say while they choose their leader.
_LONGEST_TTL_S = 10**9
_NOT_FOUND = 5
_FAILED = {_NOT_FOUND, 3, 6, 7, 9, 11, 12, 16}
_CHOOSING = ("leader changed", "no leader", "leadership transfer")

T = TypeVar("T")


class NoLeaderError(StoreUnavailableError):
    """The servers are choosing their leader, which takes them a second or two. Whether the request was done is not known."""


class Header(msgspec.Struct, frozen=True):
    revision: int = 0
    member_id: int = 0


class Item(msgspec.Struct, frozen=True):
    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class RangeAnswer(msgspec.Struct, frozen=True):
    header: Header = Header()
    kvs: tuple[Item, ...] = ()
    more: bool = False
    count: int = 0


class TxnPart(msgspec.Struct, frozen=True):
    response_range: RangeAnswer | None = None


class TxnAnswer(msgspec.Struct, frozen=True):
    header: Header
    succeeded: bool = False
    responses: tuple[TxnPart, ...] = ()


class LeaseAnswer(msgspec.Struct, frozen=True):
    """Of grant and time-to-live, and the inside of keep-alive's."""

    ID: int = 0
    TTL: int = 0


def seconds_left(answer: LeaseAnswer) -> float:
    """What a lease has left.

    Raises StoreUnavailableError for centuries: so says a server that is taking over the lead, and does not know yet.
    """
    if answer.TTL > _LONGEST_TTL_S:
        raise StoreUnavailableError("The engine has a new leader, which does not know yet how long leases have left.")
    return max(0, answer.TTL)


class KeepAliveAnswer(msgspec.Struct, frozen=True):
    result: LeaseAnswer


class StatusAnswer(msgspec.Struct, frozen=True):
    header: Header
    version: str
    dbSize: int = 0
    leader: int = 0


class EmptyAnswer(msgspec.Struct, frozen=True):
    header: Header = Header()


class WatchedEvent(msgspec.Struct, frozen=True):
    kv: Item
    prev_kv: Item | None = None
    type: Literal["PUT", "DELETE"] = "PUT"


class WatchAnswer(msgspec.Struct, frozen=True):
    header: Header = Header()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False
    events: tuple[WatchedEvent, ...] = ()


class ErrorAnswer(msgspec.Struct, frozen=True):
    """etcd 3.4 fills `error`, newer ones `message` too; in streams both are inside `error`."""

    error: Any = ""
    message: str = ""
    code: int = 0
    grpc_code: int = 0


class WatchLine(msgspec.Struct, frozen=True):
    result: WatchAnswer | None = None
    error: ErrorAnswer | None = None


_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def decode(kind: type[T], body: bytes) -> T:
    """An answer by its type. Raises StoreUnavailableError when it is none (a server that is not etcd, a torn answer)."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind, strict=False)
    try:
        answer: T = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreUnavailableError(
            f"The engine's answer cannot be read ({error}).", remedy="Check that the address is an etcd server's."
        ) from error
    return answer


# ---------------------------------------------------------------- requests


def get_request(key: str) -> bytes:
    """One key, linearizable."""
    return _encode({"key": key.encode()})


def list_request(prefix: str, *, limit: int, after: str, revision: int) -> bytes:
    """A range of keys in order: those with `prefix`, behind `after`."""
    start = after.encode() + b"\0" if after >= prefix else prefix.encode()
    return _encode(
        {"key": start or b"\0", "range_end": range_end(prefix), "limit": limit, "revision": revision or 0},
    )


def txn_request(guards: Sequence[Compare], operations: Sequence[Put | Delete], read_if_failed: Sequence[str]) -> bytes:
    """A transaction."""
    return _encode(
        {
            "compare": [_compare(guard) for guard in guards],
            "success": [_operation(each) for each in operations],
            "failure": [{"request_range": {"key": key.encode()}} for key in read_if_failed],
        }
    )


def watch_request(prefix: str, after_revision: int) -> bytes:
    """A watch from the revision behind `after_revision`, with signs of life, previous values and large ones in pieces."""
    return _encode(
        {
            "create_request": {
                "key": prefix.encode() or b"\0",
                "range_end": range_end(prefix),
                "start_revision": after_revision + 1,
                "progress_notify": True,
                "prev_kv": True,
                "fragment": True,
            }
        }
    )


def grant_request(ttl_s: int) -> bytes:
    """A lease; the server chooses its number."""
    return _encode({"TTL": ttl_s})


def lease_request(lease: int) -> bytes:
    """Keep-alive, time-to-live or revoke of a lease."""
    return _encode({"ID": lease})


def compact_request(revision: int) -> bytes:
    """A compaction, answered when it is decided; the disk is freed later."""
    return _encode({"revision": revision})


def range_end(prefix: str) -> bytes:
    """etcd's end of a prefix: the prefix with its last byte raised; `\\0` is the end of all keys."""
    raw = bytearray(prefix.encode())
    while raw and raw[-1] == 0xFF:
        raw.pop()
    if not raw:
        return b"\0"
    raw[-1] += 1
    return bytes(raw)


def _compare(guard: Compare) -> dict[str, object]:
    field = {"create": "create_revision", "mod": "mod_revision", "version": "version"}[guard.target]
    return {"key": guard.key.encode(), "target": guard.target.upper(), "result": "EQUAL", field: guard.value}


def _operation(operation: Put | Delete) -> dict[str, object]:
    if isinstance(operation, Delete):
        return {"request_delete_range": {"key": operation.key.encode()}}
    put: dict[str, object] = {"key": operation.key.encode(), "value": operation.value}
    if operation.lease:
        put["lease"] = operation.lease
    return {"request_put": put}


def _encode(message: dict[str, object]) -> bytes:
    return msgspec.json.encode(message)


# ---------------------------------------------------------------- answers


def to_key_value(item: Item) -> KeyValue:
    """A key as the port has it."""
    return KeyValue(item.key.decode(), item.value, item.create_revision, item.mod_revision, item.version, item.lease)


def to_listing(answer: RangeAnswer, revision: int) -> Listing:
    """A list; `revision` is the asked one, 0 for the answer's own."""
    items = tuple(map(to_key_value, answer.kvs))
    return Listing(items, revision or answer.header.revision, answer.more, answer.count)


def to_txn_result(answer: TxnAnswer) -> TxnResult:
    """The result, with what the failed branch read."""
    if answer.succeeded:
        return TxnResult(True, answer.header.revision)
    ranges = [part.response_range or RangeAnswer() for part in answer.responses]
    found = tuple(to_key_value(each.kvs[0]) if each.kvs else None for each in ranges)
    return TxnResult(False, answer.header.revision, found)


def to_status(answer: StatusAnswer) -> StoreStatus:
    """Servers are named by their hexadecimal ids, as etcd's own tools print them. `compacted` is not to be had."""
    leader = f"{answer.leader:x}" if answer.leader else ""
    return StoreStatus(answer.version, answer.header.revision, leader, f"{answer.header.member_id:x}", answer.dbSize)


def to_watch_event(event: WatchedEvent) -> WatchEvent:
    """A change as the port has it."""
    before = event.prev_kv
    previous = (before.value, before.mod_revision) if before is not None else (None, 0)
    if event.type == "DELETE":
        return WatchEvent(event.kv.key.decode(), None, event.kv.mod_revision, 0, *previous)
    return WatchEvent(event.kv.key.decode(), event.kv.value, event.kv.mod_revision, event.kv.create_revision, *previous)


def to_error(status: int, body: bytes, server: str) -> PrimordiaError:
    """What a refused request means for the caller. Unknown refusals count as temporary: the fate is not known."""
    try:
        answer = msgspec.json.decode(body, type=ErrorAnswer, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return StoreUnavailableError(f"The engine at {server} answered with HTTP status {status}.")
    return error_of(answer, server)


def error_of(answer: ErrorAnswer, server: str) -> PrimordiaError:
    """What an error message of the gateway means for the caller."""
    text = answer.message or (answer.error if isinstance(answer.error, str) else "") or "no reason given"
    if "has been compacted" in text:
        return CompactedError("The asked revision is no longer kept.", retry_after_s=0)
    if "future revision" in text:
        return PermanentError("The asked revision lies in the future.")
    if "lease not found" in text:
        return NotFoundError("The lease is gone.")
    if "database space exceeded" in text:
        return StoreUnavailableError(
            f"The engine at {server} takes no writes: its database is full.",
            remedy="Delete objects, then defragment it and disarm its alarm with etcdctl.",
            reason="StoreFull",
        )
    sentence = f"The engine at {server} refused: {text}."
    if (answer.code or answer.grpc_code) in _FAILED:
        return PermanentError(sentence, reason="StoreRefused")
    return NoLeaderError(sentence) if any(words in text for words in _CHOOSING) else StoreUnavailableError(sentence)

"""The gateway's words and a watch's progress: pure, against answers as etcd 3.4 and 3.5 write them."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primordia.drivers.store_etcd import gateway
from primordia.drivers.store_etcd.gateway import Header, Item, WatchAnswer, WatchedEvent
from primordia.drivers.store_etcd.watch import Lines, Progress
from primordia.kit.errors import NotFoundError, PermanentError
from primordia.ports.store import CompactedError, Compare, Delete, KeyValue, Put, StoreUnavailableError, WatchBatch


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_transaction_as_etcd_wants_it() -> None:
    body = gateway.txn_request(
        [Compare("a", "create", 0), Compare("b", "mod", 7), Compare("c", "version", 2)],
        [Put("a", b"1", lease=9223372036854775807), Put("b", b""), Delete("c")],
        ["a"],
    )
    assert json.loads(body) == {
        "compare": [
            {"key": b64("a"), "target": "CREATE", "result": "EQUAL", "create_revision": 0},
            {"key": b64("b"), "target": "MOD", "result": "EQUAL", "mod_revision": 7},
            {"key": b64("c"), "target": "VERSION", "result": "EQUAL", "version": 2},
        ],
        "success": [
            {"request_put": {"key": b64("a"), "value": b64("1"), "lease": 9223372036854775807}},
            {"request_put": {"key": b64("b"), "value": ""}},
            {"request_delete_range": {"key": b64("c")}},
        ],
        "failure": [{"request_range": {"key": b64("a")}}],
    }


@pytest.mark.parametrize(
    ("prefix", "after", "start"),
    [("/a/", "", "/a/"), ("/a/", "/a/b", "/a/b\0"), ("/b/", "/a/z", "/b/"), ("", "", "\0")],
)
def test_where_a_list_begins(prefix: str, after: str, start: str) -> None:
    request = json.loads(gateway.list_request(prefix, limit=5, after=after, revision=3))
    assert request["key"] == b64(start)
    assert (request["limit"], request["revision"]) == (5, 3)


@given(st.text(min_size=1), st.text())
def test_the_end_of_a_prefix_is_behind_all_of_it(prefix: str, rest: str) -> None:
    try:
        key = (prefix + rest).encode()
    except UnicodeEncodeError:
        return
    assert key < gateway.range_end(prefix)
    assert prefix.encode()[:-1] == gateway.range_end(prefix)[: len(prefix.encode()) - 1]


def test_numbers_are_text_and_zero_is_absent() -> None:
    body = b'{"header":{"cluster_id":"12585971608760269493","revision":"9007199254740993"},"kvs":[{"key":"YQ==",'
    body += b'"create_revision":"2","mod_revision":"3","version":"1","lease":"9223372036854775807"}],"count":"1"}'
    listing = gateway.to_listing(gateway.decode(gateway.RangeAnswer, body), 0)
    assert listing.items == (KeyValue("a", b"", 2, 3, 1, 9223372036854775807),)
    assert (listing.revision, listing.more, listing.count) == (9007199254740993, False, 1)
    assert gateway.to_listing(gateway.decode(gateway.RangeAnswer, b"{}"), 4).revision == 4


def test_a_failed_transaction_tells_what_is_there() -> None:
    body = b'{"header":{"revision":"5"},"responses":[{"response_range":{"header":{"revision":"5"},"kvs":[{"key":"YQ==",'
    body += b'"create_revision":"2","mod_revision":"2","version":"1","value":"MQ=="}],"count":"1"}},{"response_range":{}}]}'
    result = gateway.to_txn_result(gateway.decode(gateway.TxnAnswer, body))
    assert not result.done
    assert result.revision == 5
    assert result.found == (KeyValue("a", b"1", 2, 2, 1), None)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"kvs":[{"value":"MQ=="}]}', b'{"count":"x"}', b'{"kvs":[{"key":"!"}]}']
)
def test_an_answer_that_is_none_is_an_error(body: bytes) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        gateway.decode(gateway.RangeAnswer, body)


COMPACTED = "etcdserver: mvcc: required revision has been compacted"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": COMPACTED, "code": 11}, CompactedError),
        ({"error": COMPACTED, "message": COMPACTED, "code": 11}, CompactedError),
        ({"error": "etcdserver: mvcc: required revision is a future revision", "code": 11}, PermanentError),
        ({"error": "etcdserver: requested lease not found", "code": 5}, NotFoundError),
        ({"code": 5, "message": "etcdserver: requested lease not found", "details": []}, NotFoundError),
        ({"error": "etcdserver: duplicate key given in txn request", "code": 3}, PermanentError),
        ({"error": "etcdserver: no leader", "code": 14}, gateway.NoLeaderError),
        ({"error": "etcdserver: request timed out", "code": 14}, StoreUnavailableError),
        ({"error": "etcdserver: mvcc: database space exceeded", "code": 8}, StoreUnavailableError),
        ({"error": "etcdserver: leader changed", "code": 14}, gateway.NoLeaderError),
        ({"error": "context deadline exceeded", "code": 4}, StoreUnavailableError),
        ({}, StoreUnavailableError),
    ],
)
def test_what_a_refusal_means(body: dict[str, object], kind: type[Exception]) -> None:
    assert type(gateway.to_error(400, json.dumps(body).encode(), "https://x:1")) is kind


def test_a_refusal_that_is_no_json_is_temporary() -> None:
    error = gateway.to_error(502, b"<html>Bad gateway", "https://x:1")
    assert isinstance(error, StoreUnavailableError)
    assert "https://x:1" in str(error)
    assert "502" in str(error)


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line and line)), st.data())
def test_lines_come_whole_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter, found = Lines(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found.extend(splitter.feed(stream[start:end]))
    assert found == lines


def event(key: str, revision: int, *, kind: str = "PUT", value: bytes = b"v") -> WatchedEvent:
    return WatchedEvent(Item(key.encode(), value, 1, revision), type=kind)  # type: ignore[arg-type]


def test_progress_counts_the_last_event_and_not_the_header() -> None:
    """While a watch catches up the header is ahead; trusting it would lose what lies between."""
    progress = Progress("/", 3)
    assert progress.take(WatchAnswer(Header(90), created=True)) is None
    assert progress.after == 3
    batch = progress.take(WatchAnswer(Header(90), events=(event("/a", 4), event("/b", 5))))
    assert batch is not None
    assert (batch.revision, progress.after) == (5, 5)
    assert progress.take(WatchAnswer(Header(80))) == WatchBatch(80, ())
    assert progress.after == 80


def test_fragments_are_one_answer_and_a_torn_one_is_forgotten() -> None:
    progress = Progress("/", 3)
    assert progress.take(WatchAnswer(Header(4), events=(event("/a", 4),), fragment=True)) is None
    assert progress.after == 3
    progress.restart()
    assert progress.take(WatchAnswer(Header(4), events=(event("/a", 4),), fragment=True)) is None
    batch = progress.take(WatchAnswer(Header(4), events=(event("/b", 4, kind="DELETE"),)))
    assert batch is not None
    assert [each.key for each in batch.events] == ["/a", "/b"]
    assert [each.value for each in batch.events] == [b"v", None]


def test_a_canceled_watch_says_why() -> None:
    with pytest.raises(CompactedError, match="oldest is 9"):
        Progress("/", 3).take(WatchAnswer(canceled=True, compact_revision=9))
    with pytest.raises(StoreUnavailableError, match="no leader"):
        Progress("/", 3).take(WatchAnswer(canceled=True, cancel_reason="etcdserver: no leader"))


def test_a_server_that_takes_over_the_lead_does_not_know_what_leases_have_left() -> None:
    assert gateway.seconds_left(gateway.LeaseAnswer(ID=1, TTL=5)) == 5
    assert gateway.seconds_left(gateway.LeaseAnswer(ID=1, TTL=-1)) == 0
    with pytest.raises(StoreUnavailableError, match="does not know yet"):
        gateway.seconds_left(gateway.LeaseAnswer(ID=1, TTL=9223372036))

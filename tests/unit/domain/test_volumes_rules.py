"""Ranges, numbers, deltas and lag of volumes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primordia.domain import ranges as spans
from primordia.domain.ranges import Cover, Range
from primordia.domain.retention import Retention, newest_common, to_drop
from primordia.domain.snapshots import CHUNK_BYTES, Delta, Lag, Manifest, check_delta, lag_of, next_number, round_up
from primordia.kit import chunk_hash
from primordia.kit.errors import ConflictError, InvalidError

HOUR = 3600.0
some_ranges = st.lists(st.builds(Range, st.integers(0, 300), st.integers(0, 40)), max_size=12)


def manifest(number: int, *, time_s: float = 0.0, checkpoint: str = "", size: int = CHUNK_BYTES) -> Manifest:
    """A snapshot that changed one block."""
    root = f"{number:064x}"
    parent = f"{number - 1:064x}" if number > 1 else ""
    return Manifest("a", 1, number, parent, size, time_s, (Range(0, 4096),), root, checkpoint)


def bytes_of(ranges: tuple[Range, ...] | list[Range]) -> set[int]:
    """Every single byte."""
    return {at for each in ranges for at in range(each.offset, each.offset + max(0, each.length))}


@given(some_ranges)
def test_merging_keeps_every_byte_and_no_more(ranges: list[Range]) -> None:
    merged = spans.merge(ranges)
    assert bytes_of(merged) == bytes_of(ranges)
    assert all(one.end < other.offset for one, other in pairwise(merged))
    spans.check(merged, 400)


@given(some_ranges, st.integers(1, 50))
def test_chunks_are_those_that_are_touched(ranges: list[Range], chunk: int) -> None:
    assert spans.chunks_of(ranges, chunk) == tuple(sorted({at // chunk for at in bytes_of(ranges)}))
    assert bytes_of(ranges) <= bytes_of(spans.of_chunks(spans.chunks_of(ranges, chunk), chunk))


@given(some_ranges, st.integers(1, 400))
def test_clipping(ranges: list[Range], size: int) -> None:
    assert bytes_of(spans.clip(ranges, size)) == {at for at in bytes_of(ranges) if at < size}


@given(some_ranges, st.integers(1, 17))
def test_pieces_in_order_cover_the_ranges(ranges: list[Range], step: int) -> None:
    merged = spans.merge(ranges)
    pieces = [Range(at, min(step, each.end - at)) for each in merged for at in range(each.offset, each.end, step)]
    cover = Cover(merged)
    for piece in pieces:
        cover.take(piece, piece.length)
    cover.finish()
    if pieces:
        with pytest.raises(InvalidError):
            Cover(merged).finish()
        with pytest.raises(InvalidError):
            cover.take(pieces[-1], 0)
        with pytest.raises(InvalidError):
            Cover(merged).take(pieces[0], pieces[0].length + 1)


def test_chunks_are_the_same_in_both_places() -> None:
    assert chunk_hash.CHUNK_BYTES == CHUNK_BYTES
    assert (round_up(1), round_up(CHUNK_BYTES), round_up(CHUNK_BYTES + 1)) == (CHUNK_BYTES, CHUNK_BYTES, 2 * CHUNK_BYTES)


def test_a_root_depends_on_size_and_every_chunk() -> None:
    table = chunk_hash.new_table(4 * CHUNK_BYTES)
    roots = {chunk_hash.root_of(4 * CHUNK_BYTES, table), chunk_hash.root_of(3 * CHUNK_BYTES, table)}
    for chunk in range(4):
        chunk_hash.set_entry(table, chunk, chunk_hash.entry_of(b"x" * CHUNK_BYTES))
        roots.add(chunk_hash.root_of(4 * CHUNK_BYTES, table))
    assert len(roots) == 6
    assert chunk_hash.entry_of(bytes(CHUNK_BYTES)) == chunk_hash.ZERO_ENTRY
    assert chunk_hash.differing(table, chunk_hash.new_table(2 * CHUNK_BYTES)) == (0, 1, 2, 3)
    chunk_hash.resize(table, CHUNK_BYTES)
    assert chunk_hash.differing(table, chunk_hash.new_table(CHUNK_BYTES)) == (0,)


def test_numbers_only_rise() -> None:
    assert next_number((), 0) == 1
    assert next_number((3, 1), 0) == 4
    assert next_number((3, 1), 9) == 10


@pytest.mark.parametrize(
    ("number", "epoch", "base", "reason"),
    [(3, 0, 2, "StaleEpoch"), (3, 1, 1, "OtherBase"), (3, 1, 0, "OtherBase"), (2, 2, 2, "OldNumber")],
)
def test_deltas_that_do_not_fit(number: int, epoch: int, base: int, reason: str) -> None:
    delta = Delta(replace(manifest(number), epoch=epoch), f"{base:064x}" if base else "", ())
    with pytest.raises(ConflictError) as caught:
        check_delta(delta, manifest(2), 1, 1 << 30)
    assert caught.value.reason == reason


def test_deltas_that_fit_or_are_here_already() -> None:
    assert check_delta(Delta(manifest(3), manifest(2).root, ()), manifest(2), 1, 1 << 30)
    assert check_delta(Delta(manifest(9), "", ()), None, 0, 1 << 30)
    assert not check_delta(Delta(manifest(2), manifest(1).root, ()), manifest(2), 1, 1 << 30)


def test_lag() -> None:
    owner = [manifest(1, time_s=100), manifest(2, time_s=500), manifest(3, time_s=501)]
    assert lag_of(owner, 3, 600, 1) == Lag()
    assert lag_of(owner, 2, 503, 1) == Lag(1, 4096, 3.0)
    assert lag_of(owner, 1, 503, 1) == Lag(2, 8192, 4.0)  # it was idle until 499
    assert lag_of(owner, 0, 503, 1) == Lag(3, 12288, 404.0)
    assert lag_of([], 0, 503, 1) == Lag()


def test_retention_keeps_the_last_the_hourly_the_daily_and_the_named() -> None:
    snapshots = [manifest(n, time_s=n * HOUR / 4, checkpoint="kept" if n == 5 else "") for n in range(1, 401)]
    policy = Retention(last=3, hourly=5, daily=2)
    left = {each.number for each in snapshots} - set(to_drop(snapshots, policy))
    assert left == {398, 399, 400} | {387, 391, 395, 399, 400} | {383, 400} | {5}
    assert to_drop(snapshots, policy) == tuple(sorted(to_drop(snapshots, policy)))


def test_retention_never_drops_the_newest_nor_what_a_replica_has_in_common() -> None:
    snapshots = [manifest(number) for number in range(1, 8)]
    nothing = Retention(last=0, hourly=0, daily=0)
    assert to_drop(snapshots, nothing) == (1, 2, 3, 4, 5, 6)
    needed = newest_common(snapshots, [{manifest(1).root, manifest(3).root}, {manifest(5).root}, {"other"}, set()])
    assert needed == {3, 5}
    assert to_drop(snapshots, nothing, needed) == (1, 2, 4, 6)


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=40), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_retention_is_stable(times: list[float], last: int, hourly: int, daily: int) -> None:
    snapshots = [manifest(number, time_s=at) for number, at in enumerate(sorted(times), start=1)]
    policy = Retention(last, hourly, daily)
    gone = set(to_drop(snapshots, policy))
    left = [each for each in snapshots if each.number not in gone]
    assert snapshots[-1] in left
    assert len(left) <= max(1, last) + hourly + daily
    assert to_drop(left, policy) == ()

"""Ranges of bytes in a disk: merging, clipping, and the proof that what arrives covers exactly what was announced. Pure.

Every list of ranges that leaves this module is in order, without overlap, without empty ones, and neighbours are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from primordia.kit.errors import InvalidError


class Range(NamedTuple):
    """Bytes `offset` to `offset + length`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same bytes in the fewest ranges."""
    merged: list[Range] = []
    for each in sorted(ranges):
        if each.length <= 0:
            continue
        if merged and each.offset <= merged[-1].end:
            merged[-1] = Range(merged[-1].offset, max(merged[-1].end, each.end) - merged[-1].offset)
        else:
            merged.append(each)
    return tuple(merged)


def clip(ranges: Iterable[Range], size_bytes: int) -> tuple[Range, ...]:
    """What of them lies before `size_bytes`."""
    return merge(Range(each.offset, min(each.end, size_bytes) - each.offset) for each in ranges if each.offset < size_bytes)


def total(ranges: Iterable[Range]) -> int:
    """How many bytes they are, in all."""
    return sum(each.length for each in ranges)


def skip(ranges: Iterable[Range], bytes_done: int) -> tuple[Range, ...]:
    """What is left of them once the first so many bytes are done."""
    left = []
    for each in ranges:
        done = min(each.length, bytes_done)
        bytes_done -= done
        if done < each.length:
            left.append(Range(each.offset + done, each.length - done))
    return tuple(left)


def chunks_of(ranges: Iterable[Range], chunk_bytes: int) -> tuple[int, ...]:
    """The numbers of the chunks that they touch, in order."""
    touched: list[int] = []
    for each in merge(ranges):
        first, last = each.offset // chunk_bytes, (each.end - 1) // chunk_bytes
        if touched and touched[-1] == first:
            first += 1
        touched.extend(range(first, last + 1))
    return tuple(touched)


def of_chunks(chunks: Iterable[int], chunk_bytes: int) -> tuple[Range, ...]:
    """The ranges that those chunks are."""
    return merge(Range(chunk * chunk_bytes, chunk_bytes) for chunk in chunks)


def within(inner: Range, outer: Sequence[Range]) -> bool:
    """Whether one of `outer` holds the whole of `inner`."""
    return any(each.offset <= inner.offset and inner.end <= each.end for each in outer)


def check(ranges: Sequence[Range], size_bytes: int, field: str = "ranges") -> None:
    """InvalidError unless they are in order, apart, not empty and inside a disk of that size: for ranges of strangers."""
    at = -1
    for each in ranges:
        if each.length <= 0 or each.offset <= at or each.end > size_bytes:
            raise InvalidError(field, f"{each.offset}+{each.length} is empty, out of order or outside the {size_bytes} bytes")
        at = each.end  # neighbours are joined, so the next begins after it


class Cover:
    """Watches pieces arrive: each must go on where the one before ended, and all together are exactly `ranges`."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._left = [each for each in reversed(ranges) if each.length > 0]

    def take(self, piece: Range, data_bytes: int) -> None:
        """Count one piece with so many bytes of data (0: zeros). InvalidError when it is not the next part announced."""
        here = self._left[-1] if self._left else None
        if data_bytes not in (0, piece.length):
            raise InvalidError("pieces", f"{piece.offset}+{piece.length} comes with {data_bytes} bytes of data")
        if here is None or piece.length <= 0 or piece.offset != here.offset or piece.end > here.end:
            raise InvalidError("pieces", f"{piece.offset}+{piece.length} is not the next part of the delta")
        self._left.pop()
        if piece.end < here.end:
            self._left.append(Range(piece.end, here.end - piece.end))

    def finish(self) -> None:
        """InvalidError when something is missing."""
        if self._left:
            raise InvalidError("pieces", f"the delta ends before {total(self._left)} of its bytes came")

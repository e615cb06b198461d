"""A delta as a stream of bytes, from one node to another. Both ends are strangers to each other until the last byte fits.

    "primdlt1"  u32 length of the header  header (JSON: the delta, and how many of its bytes are left out at the front)
    then frames: u8 kind  u64 offset  u32 length  u32 payload's length  payload
    and last: u8 255  BLAKE3 over everything before it

Numbers are little-endian. A frame is the next part of the delta's ranges, at most LARGEST_PIECE bytes: zeros without a
payload, the bytes themselves, or those bytes compressed by zstd (RFC 8878), each frame for itself, so that a lost link
costs no more than the frame it broke. Nothing is unpacked that does not say first how large it is and keep to that: a few
bytes never become more than one piece. What does not fit raises InvalidError, and the reader is of no use from there on.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import zstandard
from blake3 import blake3

from primordia.domain import ranges as spans
from primordia.domain.ranges import Cover, Range
from primordia.domain.snapshots import Delta, check_words
from primordia.kit.errors import InvalidError

CONTENT_TYPE = "application/vnd.primordia.delta"
LARGEST_PIECE = 1 << 20
LARGEST_HEADER = 32 << 20
LARGEST_DISK = 1 << 46
_MAGIC = b"primdlt1"
_LENGTH = struct.Struct("<I")
_FRAME = struct.Struct("<BQII")
_ZEROS, _PLAIN, _ZSTD, _END = 0, 1, 2, 255
_HASH_BYTES = 32
_CRUMBS_BYTES = 4096
_LEVEL = 1
_LARGEST_WINDOW = 8 << 20
_WORTH = 64
"""Bytes that compressing must save: less is not worth unpacking."""
_LARGE_FRAME, _VAIN_FRAMES, _LEFT_OUT = 64 << 10, 4, 31
"""After so many frames in a row that did not shrink, some of this size are sent as they are before another one is tried: first
three, then one more for each that was tried in vain, so many at most."""


class Part(NamedTuple):
    """The next bytes of a delta; no data where all of them are zero."""

    range: Range
    data: bytes


class Header(msgspec.Struct, frozen=True):
    """What a stream holds: of the delta's ranges, in order, everything but the first `begin` bytes."""

    delta: Delta
    begin: int = 0


class DeltaWriter:
    """Makes one stream: `header`, then `part` for each part in order, then `end`."""

    def __init__(self) -> None:
        self._digest = blake3()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self._in_vain = 0
        self._untried = 0

    def header(self, delta: Delta, begin: int = 0) -> bytes:
        """The first bytes."""
        content = msgspec.json.encode(Header(delta, begin))
        return self._counted(_MAGIC + _LENGTH.pack(len(content)) + content)

    def part(self, part: Part) -> bytes:
        """One frame."""
        return b"".join(self.frame(part))

    def frame(self, part: Part) -> tuple[bytes, bytes]:
        """The same in two: what is large is not copied."""
        kind, payload = _PLAIN if part.data else _ZEROS, part.data
        if len(part.data) > _WORTH and self._is_worth_trying(len(part.data)):
            small = self._compressor.compress(part.data)
            if len(small) + _WORTH <= len(part.data):
                kind, payload = _ZSTD, small
            self._in_vain = 0 if kind == _ZSTD else self._in_vain + 1
        head = _FRAME.pack(kind, part.range.offset, part.range.length, len(payload))
        return self._counted(head), self._counted(payload)

    def _is_worth_trying(self, size: int) -> bool:
        """Where one after the other does not shrink, only some of the next large ones are tried."""
        if size < _LARGE_FRAME or self._in_vain < _VAIN_FRAMES or self._untried >= min(_LEFT_OUT, self._in_vain - 1):
            self._untried = 0
            return True
        self._untried += 1
        return False

    def end(self) -> bytes:
        """The last bytes."""
        return self._counted(bytes([_END])) + self._digest.digest()

    def _counted(self, data: bytes) -> bytes:
        self._digest.update(data)
        return data


class _Waiting:
    """Bytes that have come and are not taken yet. What is taken is copied once, whatever it came in."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: deque[memoryview] = deque()

    def add(self, data: bytes) -> None:
        """More at the end. What comes in crumbs is put together: each takes more memory than it holds."""
        if not data:
            return
        self.size += len(data)
        if self._pieces and len(self._pieces[-1]) + len(data) <= _CRUMBS_BYTES:
            data = bytes(self._pieces.pop()) + data
        self._pieces.append(memoryview(data))

    def peek(self, count: int) -> bytes:
        """The first so many, or as many as there are."""
        found = b""
        for piece in self._pieces:
            if len(found) >= count:
                break
            found += piece[: count - len(found)]
        return found

    def take(self, count: int) -> bytes:
        """The first so many, of at least as many."""
        taken, left = [], count
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                piece = piece[:left]
            taken.append(piece)
            left -= len(piece)
        self.size -= count
        return b"".join(taken)


class DeltaReader:
    """Takes one stream apart, in whatever pieces it comes. `header` is there as soon as it has arrived whole."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.finished = False
        self._waiting = _Waiting()
        self._head: tuple[int, Range, int] | None = None
        """Of the frame that is arriving: its kind, the bytes that it stands for, how many of it follow."""
        self._digest = blake3()
        self._cover = Cover(())
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)

    def feed(self, data: bytes) -> Iterator[Part]:
        """The parts that are whole now. InvalidError for what cannot be; nothing may be believed before `close`."""
        self._waiting.add(data)
        if self.header is None and not self._read_header():
            return
        while not self.finished:
            if self._head is None and not self._read_head():
                return
            if self.finished:
                break
            part = self._read_payload()
            if part is None:
                return
            yield part
        if self._waiting.size:
            raise InvalidError("delta", "something follows its end")

    def close(self) -> None:
        """The stream has ended. InvalidError when that was before its end."""
        if not self.finished:
            raise InvalidError("delta", "the stream ends before the delta does")

    def _read_header(self) -> bool:
        begin = len(_MAGIC) + _LENGTH.size
        first = self._waiting.peek(begin)
        if first[: len(_MAGIC)] != _MAGIC[: len(first)]:
            raise InvalidError("delta", "this is no delta, or one of another version")
        if len(first) < begin:
            return False
        (length,) = _LENGTH.unpack_from(first, len(_MAGIC))
        if length > LARGEST_HEADER:
            raise InvalidError("delta", f"a header of {length} bytes is too large")
        if self._waiting.size < begin + length:
            return False
        whole = self._waiting.take(begin + length)
        self.header = _decoded(whole[begin:])
        self._cover = Cover(spans.skip(self.header.delta.ranges, self.header.begin))
        self._digest.update(whole)
        return True

    def _read_head(self) -> bool:
        """The head of the next frame, or the end; whether there is one."""
        if self._waiting.peek(1) == bytes([_END]):
            return self._read_end()
        if self._waiting.size < _FRAME.size:
            return False
        head = self._waiting.take(_FRAME.size)
        kind, offset, length, packed = _FRAME.unpack(head)
        _check_frame(kind, length, packed)
        self._digest.update(head)
        self._head = kind, Range(offset, length), packed
        return True

    def _read_payload(self) -> Part | None:
        """The frame whose head is known; None while it is not whole."""
        assert self._head is not None
        kind, where, packed = self._head
        if self._waiting.size < packed:
            return None
        payload = self._waiting.take(packed)
        self._digest.update(payload)
        data = self._unpacked(payload, where.length) if kind == _ZSTD else payload
        self._cover.take(where, len(data))
        self._head = None
        return Part(where, data)

    def _read_end(self) -> bool:
        if self._waiting.size < 1 + _HASH_BYTES:
            return False
        end = self._waiting.take(1 + _HASH_BYTES)
        self._cover.finish()
        self._digest.update(end[:1])
        if end[1:] != self._digest.digest():
            raise InvalidError("delta", "it was damaged on its way")
        self.finished = True
        return True

    def _unpacked(self, payload: bytes, length: int) -> bytes:
        """The bytes of a compressed payload, which must say that they are exactly so many."""
        try:
            said = zstandard.get_frame_parameters(payload)
            if said.content_size != length or said.dict_id:
                raise InvalidError("delta", f"{length} bytes are announced, and the frame holds another number")
            data = self._decompressor.decompress(payload, max_output_size=length, allow_extra_data=False)
        except (zstandard.ZstdError, MemoryError) as error:
            raise InvalidError("delta", "a frame cannot be unpacked") from error
        if len(data) != length:
            raise InvalidError("delta", "a frame holds less than it says")
        return data


def _check_frame(kind: int, length: int, packed: int) -> None:
    fits = {_ZEROS: packed == 0, _PLAIN: packed == length, _ZSTD: 0 < packed < length}.get(kind, False)
    if not fits or not 0 < length <= LARGEST_PIECE:
        raise InvalidError("delta", f"a frame of kind {kind} with {length} bytes in {packed} cannot be")


def _decoded(content: bytes) -> Header:
    """The header, if an honest sender can have written it."""
    try:
        header = msgspec.json.decode(content, type=Header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidError("delta", "its header cannot be read") from error
    check_words(header.delta, LARGEST_DISK)
    if not 0 <= header.begin <= spans.total(header.delta.ranges):
        raise InvalidError("delta", f"it begins {header.begin} bytes behind its beginning, where it has ended")
    return header

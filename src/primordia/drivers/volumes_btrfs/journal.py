"""The journal of a delta: its header, its pieces in order, and a BLAKE3 hash over all of it at the end.

    "prim-jnl"  u32 length of the header  header (JSON: the delta)
    then pieces: u64 offset  u32 length  u8 kind  the bytes, where the kind says that there are any

A large piece that lies in whole blocks of its disk lies in whole blocks here as well (zeros fill what is before it): laying
it into the disk is then sharing its extents, so that a whole content is written once and not twice. What follows the last
whole piece of a journal that was cut off is nothing. A journal that is not what was written raises `DamagedError`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
from blake3 import blake3

from primordia.domain.ranges import Cover, Range
from primordia.domain.snapshots import Delta
from primordia.drivers.volumes_btrfs.records import DamagedError
from primordia.kit import files
from primordia.kit.errors import InvalidError
from primordia.ports.volumes import PIECE_BYTES, Partial, Piece

_JOURNAL = b"prim-jnl"
_LENGTH = struct.Struct("<I")
_PIECE = struct.Struct("<QIB")
_ZEROS, _DATA, _BLOCKS = 0, 1, 2
_BLOCK_BYTES = 4096
SHARED_BYTES = 64 << 10
"""Pieces of at least so many bytes are worth a call of their own to share them."""
_HASH_BYTES = 32
_READ_BYTES = 1 << 20
_SMALL_BYTES = 256 << 10
"""What is larger is written as it is, and not copied into a buffer first."""
_HEADER_BYTES = 64 << 20


class Part(NamedTuple):
    """A piece; with `at`, its bytes are not read, and lie there in the journal, in whole blocks."""

    piece: Piece
    at: int = -1


class JournalWriter:
    """A delta being written. Not durable before `finish`.

    With `found`, the journal was begun before: it is given the pieces that are there, and what follows the last whole one goes.
    """

    def __init__(self, path: Path, delta: Delta, found: Callable[[Piece], None] | None = None) -> None:
        self._file: BinaryIO = path.open("xb" if found is None else "r+b", buffering=_SMALL_BYTES)
        self._digest = blake3()
        self._at = 0
        if found is None:
            self._put(header_of(delta))
        else:
            self._go_on(header_of(delta), found)

    def append(self, piece: Piece) -> None:
        """Write one piece."""
        where, kind = piece.range, _DATA if piece.data else _ZEROS
        if len(piece.data) >= SHARED_BYTES and not (where.offset % _BLOCK_BYTES or where.length % _BLOCK_BYTES):
            kind = _BLOCKS
        self._put(_PIECE.pack(where.offset, where.length, kind))
        if kind == _BLOCKS:
            self._put(bytes(-self._at % _BLOCK_BYTES))
        self._put(piece.data)

    def begin_flush(self) -> None:
        """Have the kernel write what was flushed, and wait for nothing: less is left to `finish`."""
        files.begin_flush(self._file.fileno())

    def flush(self) -> None:
        """Give all there is to the kernel."""
        self._file.flush()

    def finish(self) -> None:
        """Make it whole and durable."""
        self._file.write(self._digest.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Let it go, whole or not."""
        self._file.close()

    def _go_on(self, header: bytes, found: Callable[[Piece], None]) -> None:
        if self._file.read(len(header)) != header:
            raise DamagedError(f"{self._file.name} is of another delta.")
        whole = len(header)
        for piece in _pieces(self._file):
            found(piece)
            whole = self._file.tell()
        self._file.seek(0)
        while self._at < whole:
            block = self._file.read(min(_READ_BYTES, whole - self._at))
            self._digest.update(block)
            self._at += len(block)
        self._file.seek(whole)
        self._file.truncate()

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
        self._at += len(data)


def header_of(delta: Delta) -> bytes:
    """What a delta's journal begins with."""
    header = msgspec.json.encode(delta)
    return _JOURNAL + _LENGTH.pack(len(header)) + header


def partial_of(path: Path) -> Partial:
    """What a journal that was not finished holds: its delta, and how much of that is there. DamagedError."""
    with path.open("rb") as file:
        delta = _header(file, path)
        return Partial(delta, sum(piece.range.length for piece in _pieces(file)))


def is_whole(path: Path) -> bool:
    """Whether the hash over all of it stands at its end, which is written when the delta was found right."""
    with path.open("rb") as file:
        try:
            _check_hash(file, path.stat().st_size - _HASH_BYTES, path)
        except DamagedError:
            return False
    return True


def read_header(path: Path) -> Delta:
    """What a journal holds. DamagedError."""
    with path.open("rb") as file:
        return _header(file, path)


def read_parts(path: Path) -> Iterator[Part]:
    """A whole journal's pieces, once the hash over all of it was found right. DamagedError."""
    with path.open("rb") as file:
        end = path.stat().st_size - _HASH_BYTES
        _check_hash(file, end, path)
        file.seek(0)
        cover = Cover(_header(file, path).ranges)
        try:
            while file.tell() < end:
                where, kind = _next(file)
                at = file.tell() if kind == _BLOCKS else -1
                if kind == _BLOCKS:
                    file.seek(where.length, os.SEEK_CUR)
                data = file.read(min(where.length, PIECE_BYTES)) if kind == _DATA else b""
                cover.take(where, len(data))
                yield Part(Piece(where, data), at)
            cover.finish()
        except (struct.error, InvalidError) as error:
            raise DamagedError(f"{path} is damaged ({error}).") from error


def _check_hash(file: BinaryIO, end: int, path: Path) -> None:
    digest, left = blake3(), end
    while left > 0:
        block = file.read(min(left, _READ_BYTES))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    if left != 0 or file.read() != digest.digest():
        raise DamagedError(f"{path} is damaged.", remedy="It is put aside; its sender sends it again.")


def _pieces(file: BinaryIO) -> Iterator[Piece]:
    """The whole pieces from here on. What follows the last of them is nothing: a header cut off, or data."""
    while True:
        try:
            where, kind = _next(file)
        except struct.error:
            return
        if kind not in (_ZEROS, _DATA, _BLOCKS) or not 0 < where.length <= PIECE_BYTES:
            return
        data = file.read(where.length) if kind else b""
        if len(data) != (where.length if kind else 0):
            return
        yield Piece(where, data)


def _next(file: BinaryIO) -> tuple[Range, int]:
    """The next piece's header; the file is then where its bytes are. struct.error when there is none."""
    offset, length, kind = _PIECE.unpack(file.read(_PIECE.size))
    if kind == _BLOCKS:
        file.seek(-file.tell() % _BLOCK_BYTES, os.SEEK_CUR)
    return Range(offset, length), kind


def _header(file: BinaryIO, path: Path) -> Delta:
    try:
        if file.read(len(_JOURNAL)) == _JOURNAL:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length <= _HEADER_BYTES:
                return msgspec.json.decode(file.read(length), type=Delta)
    except (struct.error, msgspec.DecodeError) as error:
        raise DamagedError(f"{path} is damaged ({error}).") from error
    raise DamagedError(f"{path} is no journal of ours.")

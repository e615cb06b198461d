"""The formats of what lies beside the disks: a volume's record, manifests, the journal of an accepted delta.

Each begins or ends with a BLAKE3 hash over itself, so that a flipped bit is told from an honest content. A record that is not
whole raises `DamagedError`; its owner puts the file aside.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from blake3 import blake3

from primordia.domain.ranges import Cover, Range
from primordia.domain.snapshots import Delta, Manifest
from primordia.kit import chunk_hash, files
from primordia.kit.errors import InvalidError, PermanentError
from primordia.ports.volumes import PIECE_BYTES, Partial, Piece

_JOURNAL = b"prim-jnl"
_LENGTH = struct.Struct("<I")
_PIECE = struct.Struct("<QIB")
_HASH_BYTES = 32
_READ_BYTES = 1 << 20
_HEADER_BYTES = 64 << 20

T = TypeVar("T")


class DamagedError(PermanentError):
    """A file of the pool is not what was written."""

    reason = "Damaged"


@dataclass(frozen=True)
class Restoring:
    """A restore that was begun: it is done again until it is done."""

    source: int
    number: int


@dataclass(frozen=True)
class Record:
    """A volume: the highest epoch seen and the highest number used, as far as no manifest says so."""

    name: str
    epoch: int
    floor: int = 0
    restoring: Restoring | None = None


def encode(value: Record | Manifest) -> bytes:
    """A small sealed file."""
    content = msgspec.json.encode(value)
    return chunk_hash.seal(content).hex().encode() + b"\n" + content + b"\n"


def decode(content: bytes, kind: type[T], path: Path) -> T:
    """The other way. DamagedError."""
    seal, _, body = content.partition(b"\n")
    body = body.removesuffix(b"\n")
    if chunk_hash.seal(body).hex().encode() != seal:
        raise DamagedError(f"{path} is damaged.", remedy="It is put aside; another copy heals it.")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise DamagedError(f"{path} is not of this version ({error}).") from error


class JournalWriter:
    """A delta being written: its header, its pieces in order, a hash over all. Not durable before `finish`.

    With `found`, the journal was begun before: it is given the pieces that are there, and what follows the last whole one goes.
    """

    def __init__(self, path: Path, delta: Delta, found: Callable[[Piece], None] | None = None) -> None:
        self._file: BinaryIO = path.open("xb" if found is None else "r+b", buffering=_READ_BYTES)
        self._digest = blake3()
        if found is None:
            self._put(header_of(delta))
        else:
            self._go_on(header_of(delta), found)

    def append(self, piece: Piece) -> None:
        """Write one piece."""
        self._put(_PIECE.pack(piece.range.offset, piece.range.length, 1 if piece.data else 0))
        self._put(piece.data)

    def begin_flush(self) -> None:
        """Have the kernel write what there is, and wait for nothing: less is left to `finish`."""
        self._file.flush()
        files.begin_flush(self._file.fileno())

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
        self._digest.update(header)
        whole = len(header)
        for piece in _pieces(self._file):
            found(piece)
            self._digest.update(_PIECE.pack(piece.range.offset, piece.range.length, 1 if piece.data else 0))
            self._digest.update(piece.data)
            whole = self._file.tell()
        self._file.seek(whole)
        self._file.truncate()

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


def header_of(delta: Delta) -> bytes:
    """What a delta's journal begins with."""
    header = msgspec.json.encode(delta)
    return _JOURNAL + _LENGTH.pack(len(header)) + header


def partial_of(path: Path) -> Partial:
    """What a journal that was not finished holds: its delta, and how much of that is there. DamagedError."""
    with path.open("rb") as file:
        delta = _header(file, path)
        return Partial(delta, sum(piece.range.length for piece in _pieces(file)))


def _pieces(file: BinaryIO) -> Iterator[Piece]:
    """The whole pieces from here on. What follows the last of them is nothing: a header cut off, or data."""
    while len(head := file.read(_PIECE.size)) == _PIECE.size:
        offset, length, has_data = _PIECE.unpack(head)
        data = file.read(length) if has_data and length <= PIECE_BYTES else b""
        if len(data) != length * has_data or not 0 < length <= PIECE_BYTES:
            return
        yield Piece(Range(offset, length), data)


def read_header(path: Path) -> Delta:
    """What a journal holds. DamagedError."""
    with path.open("rb") as file:
        return _header(file, path)


def read_journal(path: Path) -> Iterator[Piece]:
    """A journal's pieces, once the hash over all of it was found right. DamagedError."""
    with path.open("rb") as file:
        digest, left = blake3(), path.stat().st_size - _HASH_BYTES
        while left > 0:
            block = file.read(min(left, _READ_BYTES))
            if not block:
                break
            digest.update(block)
            left -= len(block)
        if left != 0 or file.read() != digest.digest():
            raise DamagedError(f"{path} is damaged.", remedy="It is put aside; its sender sends it again.")
        file.seek(0)
        cover = Cover(_header(file, path).ranges)
        end = path.stat().st_size - _HASH_BYTES
        try:
            while file.tell() < end:
                offset, length, has_data = _PIECE.unpack(file.read(_PIECE.size))
                data = file.read(min(length, PIECE_BYTES)) if has_data else b""
                cover.take(Range(offset, length), len(data))
                yield Piece(Range(offset, length), data)
            cover.finish()
        except (struct.error, InvalidError) as error:
            raise DamagedError(f"{path} is damaged ({error}).") from error


def _header(file: BinaryIO, path: Path) -> Delta:
    try:
        if file.read(len(_JOURNAL)) == _JOURNAL:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length <= _HEADER_BYTES:
                return msgspec.json.decode(file.read(length), type=Delta)
    except (struct.error, msgspec.DecodeError) as error:
        raise DamagedError(f"{path} is damaged ({error}).") from error
    raise DamagedError(f"{path} is no journal of ours.")

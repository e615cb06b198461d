"""A volume's content in a file of one's own: raw, or compressed where the file's name says so (.gz, .zst).

A raw file is sparse: what is zeros takes no room. What comes in is under a hidden name until the hash over all of it has shown
that it is what the soup holds; what goes out is read twice, for its hash is said before its bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from primordia.domain import ranges as spans
from primordia.domain.ranges import Range
from primordia.domain.snapshots import CHUNK_BYTES, Delta, Manifest
from primordia.kit import chunk_hash
from primordia.kit.errors import InvalidError, NotFoundError, PermanentError
from primordia.wire.deltas import LARGEST_PIECE, Part

_ZEROS = bytes(LARGEST_PIECE)


class DamagedImageError(PermanentError):
    """What arrived is not what was sent."""

    reason = "Damaged"


class ImageWriter:
    """Writes an image beside `path` and shows it there once it is whole. Close it, whatever happened."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._hidden = path.with_name(f".{path.name}.part")
        self._size_bytes = size_bytes
        self._hash = chunk_hash.Hasher(size_bytes)
        self._at = 0
        self._sparse = compression_of(path) == ""
        self._file = _opened(self._hidden, path, "wb")

    def close(self) -> None:
        """Leave nothing unfinished."""
        self._file.close()
        self._hidden.unlink(missing_ok=True)

    def put(self, part: Part) -> None:
        """The next part; they come in order."""
        if part.data:
            self._fill(part.range.offset)
            self._file.write(part.data)
            self._at = part.range.end
            self._hash.add(part.range.offset, part.data)

    def finish(self, root: str) -> None:
        """Show it. DamagedImageError when its content has not that root."""
        self._fill(self._size_bytes)
        if self._sparse:
            self._file.truncate(self._size_bytes)
        if self._hash.root() != root:
            raise DamagedImageError(f"{self._path} is not what the soup holds.", remedy="Export it again.")
        self._file.close()
        self._hidden.replace(self._path)

    def _fill(self, offset: int) -> None:
        """Zeros up to there."""
        if self._sparse:
            self._file.seek(offset)
            return
        while self._at < offset:
            self._at += self._file.write(_ZEROS[: min(len(_ZEROS), offset - self._at)])


class ImageReader:
    """Reads an image twice: first for what it is (`delta`), then for its bytes (`parts`)."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise NotFoundError(f"There is no file {path}.")
        self._path = path
        self.delta = self._look()

    def parts(self) -> Iterator[Part]:
        """Whatever is not zeros, in order."""
        for offset, block in _blocks(self._path):
            yield from _parts(offset, block)

    def _look(self) -> Delta:
        size, found = 0, []
        hasher = chunk_hash.Hasher(0)
        for offset, block in _blocks(self._path):
            size = offset + len(block)
            for part in _parts(offset, block):
                found.append(part.range)
                hasher.add(part.range.offset, part.data)
        size = max(size, self._path.stat().st_size if not compression_of(self._path) else 0)
        if not size:
            raise InvalidError("image", f"{self._path} is empty")
        size = -(-size // CHUNK_BYTES) * CHUNK_BYTES
        hasher.resize(size)
        changed = spans.merge(found)
        return Delta(Manifest("image", 1, 1, "", size, time.time(), changed, hasher.root()), "", changed)


def compression_of(path: Path) -> str:
    """`gz`, `zst`, or nothing, by the file's name."""
    return {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst"}.get(path.suffix, "")


def _opened(place: Path, named: Path, mode: str) -> IO[bytes]:
    match compression_of(named):
        case "gz":
            return cast("IO[bytes]", gzip.open(place, mode, compresslevel=6) if "w" in mode else gzip.open(place, mode))
        case "zst":
            return cast("IO[bytes]", zstandard.open(place, mode))
    return cast("IO[bytes]", place.open(mode))


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """What the file holds, in blocks that begin where pieces do; of a raw file not its holes."""
    try:
        with _opened(path, path, "rb") as file:
            if compression_of(path):
                yield from _in_a_row(file)
            else:
                yield from _without_holes(file)
    except (EOFError, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise InvalidError("image", f"{path} cannot be unpacked ({error})") from error


def _in_a_row(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while block := _whole_block(file):
        yield offset, block
        offset += len(block)


def _whole_block(file: IO[bytes]) -> bytes:
    """As much as a piece, or what is left."""
    gathered = bytearray()
    while len(gathered) < LARGEST_PIECE and (some := file.read(LARGEST_PIECE - len(gathered))):
        gathered += some
    return bytes(gathered)


def _without_holes(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    descriptor, at = file.fileno(), 0
    while True:
        with contextlib.suppress(OSError):
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            at = begin // LARGEST_PIECE * LARGEST_PIECE
            if block := os.pread(descriptor, LARGEST_PIECE, at):
                yield at, block
                at += LARGEST_PIECE
                continue
        return


def _parts(offset: int, block: bytes) -> Iterator[Part]:
    """The runs of chunks of a block that are not zeros; the last chunk is filled up."""
    block += bytes(-len(block) % CHUNK_BYTES)
    begin = None
    for at in range(0, len(block) + 1, CHUNK_BYTES):
        chunk = block[at : at + CHUNK_BYTES]
        empty = not chunk or chunk == _ZEROS[:CHUNK_BYTES]
        if begin is None and not empty:
            begin = at
        elif begin is not None and empty:
            yield Part(Range(offset + begin, at - begin), block[begin:at])
            begin = None

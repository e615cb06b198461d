"""Raw disk files: which parts hold data, hashes of their chunks, and laying pieces over them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from primordia.domain import ranges as spans
from primordia.domain.ranges import Range
from primordia.domain.snapshots import CHUNK_BYTES
from primordia.kit import chunk_hash
from primordia.ports.volumes import PIECE_BYTES, Piece

_PUNCH_HOLE_KEEP_SIZE = 0x03
_FICLONERANGE = 0x4020940D
_CLONE_RANGE = struct.Struct("<qQQQ")
_ZEROS = bytes(PIECE_BYTES)
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor for a while."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def data_of(descriptor: int) -> tuple[Range, ...]:
    """What of a file is not a hole (lseek(2)); no more than a few bytes of it need be other than zero."""
    found: list[Range] = []
    at, size = 0, os.fstat(descriptor).st_size
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        found.append(Range(begin, at - begin))
    return spans.merge(found)


def hash_chunks(descriptor: int, table: bytearray, chunks: Iterable[int]) -> None:
    """Bring the entries of those chunks up to date. OSError where the disk cannot be read."""
    for chunk in chunks:
        chunk_hash.set_entry(table, chunk, chunk_hash.entry_of(os.pread(descriptor, CHUNK_BYTES, chunk * CHUNK_BYTES)))


def whole_table(descriptor: int) -> bytearray:
    """The table of a whole disk; holes cost nothing."""
    table = chunk_hash.new_table(os.fstat(descriptor).st_size)
    hash_chunks(descriptor, table, spans.chunks_of(data_of(descriptor), CHUNK_BYTES))
    return table


def read_pieces(descriptor: int, ranges: Iterable[Range]) -> Iterator[Piece]:
    """Those ranges in pieces; what is all zeros comes without data."""
    for each in ranges:
        for offset in range(each.offset, each.end, PIECE_BYTES):
            length = min(PIECE_BYTES, each.end - offset)
            data = os.pread(descriptor, length, offset)
            yield Piece(Range(offset, length), b"" if data == _ZEROS[:length] else data)


def write_piece(descriptor: int, piece: Piece) -> None:
    """Write its bytes, or make a hole where it is zeros (fallocate(2))."""
    if piece.data:
        view = memoryview(piece.data)
        at = piece.range.offset
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
        return
    offset, length = ctypes.c_long(piece.range.offset), ctypes.c_long(piece.range.length)
    if _libc.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def share(source: int, at: int, target: int, where: Range) -> None:
    """Give a disk the extents of another file at `at`, all of it in whole blocks (ioctl_ficlonerange(2)).

    What the kernel does not share, as between a file with checksums and one without, is copied.
    """
    try:
        fcntl.ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, at, where.length, where.offset))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV):
            raise
        write_piece(target, Piece(where, os.pread(source, where.length, at)))


class Overlay:
    """The table that a disk will have once pieces are laid over it, known before anything is written.

    Pieces come in order. `base_chunk` gives a chunk as it is now: it is asked for only where a piece covers a part.
    """

    def __init__(self, base_chunk: Callable[[int], bytes], table: bytearray) -> None:
        self.table = table
        self._base_chunk = base_chunk
        self._chunk = -1
        self._content = bytearray()

    def lay(self, piece: Piece) -> None:
        """Note one piece."""
        at, view = piece.range.offset, memoryview(piece.data)
        while at < piece.range.end:
            chunk = at // CHUNK_BYTES
            end = min(piece.range.end, (chunk + 1) * CHUNK_BYTES)
            if end - at == CHUNK_BYTES and piece.data:
                self.finish()
                begin = at - piece.range.offset
                chunk_hash.set_entry(self.table, chunk, chunk_hash.entry_of(view[begin : begin + CHUNK_BYTES]))
                at = end
                continue
            if chunk != self._chunk:
                self.finish()
                whole = at % CHUNK_BYTES == 0 and end == (chunk + 1) * CHUNK_BYTES
                self._content = bytearray(CHUNK_BYTES) if whole else bytearray(self._base_chunk(chunk))
                self._chunk = chunk
            begin = at - chunk * CHUNK_BYTES
            data = piece.data[at - piece.range.offset : end - piece.range.offset] if piece.data else bytes(end - at)
            self._content[begin : begin + end - at] = data
            at = end

    def finish(self) -> None:
        """Count the chunk that was begun last."""
        if self._chunk >= 0:
            chunk_hash.set_entry(self.table, self._chunk, chunk_hash.entry_of(bytes(self._content)))
        self._chunk = -1

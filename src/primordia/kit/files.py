"""Files that are whole or absent: atomic replacement with fsync, and moving doubtful data aside instead of deleting it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_FICLONE = 0x40049409
_SYNC_FILE_RANGE_WRITE = 2
_COPY_BYTES = 1 << 30
_BLOCK_BYTES = 64 * 1024
_ZEROS = bytes(_BLOCK_BYTES)
_libc = ctypes.CDLL(None)


def fsync_dir(directory: Path) -> None:
    """Make the directory's own entries durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_flush(descriptor: int) -> None:
    """Have what was written to a file sent to its disk, and wait for nothing: an fsync then has less to do. Best effort.

    sync_file_range(2).
    """
    _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old or the new and nothing between.

    `durable=False` leaves out the fsync, for files that need not survive a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(content)
                file.flush()
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


def write_sealed(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a new file that tells by itself whether it is whole, with one fsync instead of two.

    What a power cut leaves is nothing, or something under the name `sealed_place(path)`: where that is whole, it *is* the
    file, and whoever opens the folder renames it (ext4, xfs and btrfs keep the name of a new file that was fsynced).
    """
    hidden = sealed_place(path)
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    hidden.rename(path)


def sealed_place(path: Path) -> Path:
    """Where `write_sealed` has a file until it is whole."""
    return path.with_name(f".{path.name}.sealed")


def quarantine(path: Path) -> Path:
    """Move a doubtful file or folder aside, beside itself, and return its new place."""
    place = path.with_name(f"{path.name}.quarantined-{time.time_ns()}")
    path.rename(place)
    return place


def tree_bytes(path: Path) -> int:
    """Bytes on disk below `path` (blocks in use, so holes of sparse files do not count)."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def clone_file(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """Make `target` a copy of `source`: sharing its blocks where the file system can, else copying only what is not a hole.

    Nothing is left of it when it raises OSError. FICLONE: ioctl_ficlone(2); holes: lseek(2).
    """
    with source.open("rb") as old:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            try:
                fcntl.ioctl(descriptor, _FICLONE, old.fileno())
            except OSError:
                _copy_data(old.fileno(), descriptor)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def content_hash(path: Path) -> str:
    """BLAKE2b of what the file holds, in hex; the same whether zeros lie on the disk or are a hole, which costs nothing then.

    Hashed are its size and each block that is not all zeros, with its offset. Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        descriptor = file.fileno()
        digest.update(os.fstat(descriptor).st_size.to_bytes(8, "little"))
        at = 0
        for begin, end in _data_of(descriptor):
            at = max(at, begin - begin % _BLOCK_BYTES)
            while at < end:
                block = os.pread(descriptor, _BLOCK_BYTES, at)
                if block != _ZEROS[: len(block)]:
                    digest.update(at.to_bytes(8, "little"))
                    digest.update(block)
                at += _BLOCK_BYTES
    return digest.hexdigest()


def _copy_data(source: int, target: int) -> None:
    """Copy the data of a sparse file, and leave its holes."""
    os.ftruncate(target, os.fstat(source).st_size)
    for begin, end in _data_of(source):
        at = begin
        while at < end:
            at += os.copy_file_range(source, target, min(end - at, _COPY_BYTES), at, at)


def _data_of(descriptor: int) -> Iterator[tuple[int, int]]:
    """What of the file is not a hole, as offsets from and to (lseek(2))."""
    at, size = 0, os.fstat(descriptor).st_size
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return
            raise
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, at

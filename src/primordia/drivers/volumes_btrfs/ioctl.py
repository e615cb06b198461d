"""What btrfs is asked by ioctl: subvolumes, snapshots, generations and the search of a file's extents.

Structures and numbers are those of the kernel's include/uapi/linux/btrfs.h and btrfs_tree.h (stable since 4.18, where
BTRFS_IOC_GET_SUBVOL_INFO came). A generation is the number of the transaction in which something was written; a snapshot
is made at the end of a transaction, so whatever its source gets afterwards has a higher one.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_MAGIC = 0x94
_WRITE, _READ = 1, 2
_ARGS = struct.Struct("<q4088s")
_ARGS_V2 = struct.Struct("<qQQ32x4040s")
_SEARCH = struct.Struct("<QQQQQQQIIII32xQ")
_ITEM = struct.Struct("<QQQII")
_EXTENT = struct.Struct("<QQBBHBQQQQ")
_FLAG_READONLY = 1 << 1
_EXTENT_DATA = 108
_INLINE = 0
_FOREVER = 2**64 - 1
_BUFFER_BYTES = 256 * 1024
_INFO_BYTES = 504
_INFO_GENERATION = 8 + 256 + 16
_INFO_CREATED = 8 + 256 + 4 * 8 + 3 * 16 + 8
_FS_INFO_BYTES = 1024


def _number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _MAGIC << 8 | number


_SYNC = _number(0, 8, 0)
_SNAP_DESTROY = _number(_WRITE, 15, _ARGS.size)
_TREE_SEARCH_V2 = _number(_READ | _WRITE, 17, _SEARCH.size)
_SNAP_CREATE_V2 = _number(_WRITE, 23, _ARGS_V2.size)
_SUBVOL_CREATE_V2 = _number(_WRITE, 24, _ARGS_V2.size)
_SUBVOL_GETFLAGS = _number(_READ, 25, 8)
_SUBVOL_SETFLAGS = _number(_WRITE, 26, 8)
_FS_INFO = _number(_READ, 31, _FS_INFO_BYTES)
_SUBVOL_INFO = _number(_READ, 60, _INFO_BYTES)


class Extent(NamedTuple):
    """A part of a file: `hole` when it reads as zeros and takes no room."""

    offset: int
    length: int
    hole: bool


def create_subvolume(path: Path) -> None:
    """A new, empty subvolume. OSError."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SUBVOL_CREATE_V2, bytearray(_ARGS_V2.pack(0, 0, 0, os.fsencode(path.name))))


def snapshot(source: Path, target: Path, *, readonly: bool) -> None:
    """Make `target` a snapshot of the subvolume `source`, with what its files' writers did not flush yet; durable. OSError."""
    with _opened(source) as origin, _opened(target.parent) as parent:
        flags = _FLAG_READONLY if readonly else 0
        fcntl.ioctl(parent, _SNAP_CREATE_V2, bytearray(_ARGS_V2.pack(origin, 0, flags, os.fsencode(target.name))))


def destroy_subvolume(path: Path) -> None:
    """Delete a subvolume with all it holds; its room comes back in the background. OSError."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SNAP_DESTROY, bytearray(_ARGS.pack(0, os.fsencode(path.name))))


def commit(path: Path) -> None:
    """End the file system's transaction now, and have what was deleted give its room back soon after. OSError."""
    with _opened(path) as folder:
        fcntl.ioctl(folder, _SYNC)


def set_readonly(path: Path, readonly: bool) -> None:
    """Freeze or open a subvolume. The kernel ends the transaction with it: what was fsynced or renamed before is durable."""
    with _opened(path) as subvolume:
        old = bytearray(8)
        fcntl.ioctl(subvolume, _SUBVOL_GETFLAGS, old)
        flags = int.from_bytes(old, "little") & ~_FLAG_READONLY | (_FLAG_READONLY if readonly else 0)
        fcntl.ioctl(subvolume, _SUBVOL_SETFLAGS, flags.to_bytes(8, "little"))


def generation(path: Path) -> int:
    """The generation in which the subvolume was last changed; taking a snapshot of it is a change as well. OSError."""
    return _of_subvolume(path, _INFO_GENERATION)


def created(path: Path) -> int:
    """The generation in which the subvolume was made, which stays as it is. OSError."""
    return _of_subvolume(path, _INFO_CREATED)


def _of_subvolume(path: Path, at: int) -> int:
    with _opened(path) as subvolume:
        answer = bytearray(_INFO_BYTES)
        fcntl.ioctl(subvolume, _SUBVOL_INFO, answer)
    return int.from_bytes(answer[at : at + 8], "little")


def filesystem_id(path: Path) -> str:
    """The file system's id, as the folders of /sys/fs/btrfs are named. OSError when it is no btrfs."""
    with _opened(path) as folder:
        answer = bytearray(_FS_INFO_BYTES)
        fcntl.ioctl(folder, _FS_INFO, answer)
    return str(uuid.UUID(bytes=bytes(answer[16:32])))


def changed_extents(path: Path, since: int) -> tuple[Extent, ...]:
    """The parts of a file that were written in a generation later than `since`, in order. What is not flushed is not seen.

    The kernel skips every node of the tree that is older, so this costs what changed, not what there is.
    """
    found: list[Extent] = []
    with _opened(path, directory=False) as file:
        inode, first = os.fstat(file).st_ino, 0
        while True:
            buffer = search_request(inode, first, since)
            fcntl.ioctl(file, _TREE_SEARCH_V2, buffer)
            extents, last = parse_extents(buffer, since)
            found += extents
            if last is None:
                return tuple(found)
            first = last + 1


def search_request(inode: int, first_offset: int, since: int) -> bytearray:
    """btrfs_ioctl_search_args_v2 for a file's extents, in the tree that the file is in. Pure."""
    buffer = bytearray(_SEARCH.size + _BUFFER_BYTES)
    key = (0, inode, inode, first_offset, _FOREVER, since + 1, _FOREVER, _EXTENT_DATA, _EXTENT_DATA, 2**32 - 1, 0)
    _SEARCH.pack_into(buffer, 0, *key, _BUFFER_BYTES)
    return buffer


def parse_extents(buffer: bytes | bytearray, since: int) -> tuple[list[Extent], int | None]:
    """The answer: extents newer than `since`, and the last offset seen (None: there is nothing more). Pure."""
    count = _SEARCH.unpack_from(buffer, 0)[9]
    found: list[Extent] = []
    last: int | None = None
    at = _SEARCH.size
    for _ in range(count):
        _, _, offset, _, length = _ITEM.unpack_from(buffer, at)
        at += _ITEM.size
        last = offset
        written, ram_bytes, _, _, _, kind = struct.unpack_from("<QQBBHB", buffer, at)
        if written > since:
            if kind == _INLINE:
                found.append(Extent(offset, ram_bytes, False))
            else:
                _, _, _, _, _, _, address, _, _, size = _EXTENT.unpack_from(buffer, at)
                found.append(Extent(offset, size, address == 0))
        at += length
    return found, last


@contextmanager
def _opened(path: Path, *, directory: bool = True) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_DIRECTORY if directory else 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)

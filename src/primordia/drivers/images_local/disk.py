"""Disks: a read-only ext4 root out of a folder, and empty scratch disks.

Both without a journal: the root is never written, and a scratch disk does not outlive its microVM. Every feature is named
here and the machine's mke2fs.conf is not read, so that the same tree gives the same kind of disk everywhere. The root's
metadata have checksums, because many microVMs read it for a long time; a scratch disk spares the work.
The file systems are as large as they say and the files are sparse, so room to spare costs nothing.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primordia.kit.command import CommandError, run
from primordia.kit.errors import CapacityError, InvalidError, PermanentError, PrimordiaError
from primordia.kit.units import human_bytes

_FULL = r"no space left on device|disk quota exceeded|not enough free space|short write"
_BLOCK = 4096
_INODE = 256
_MIB = 1024 * 1024
_FEATURES = "none,64bit,dir_index,dir_nlink,extent,extra_isize,filetype,flex_bg,huge_file,large_file,sparse_super"
_SMALLEST_SCRATCH = 8 * _MIB
_NO_ROOM_BYTES = 64 * 1024
_MAKE_ROOM = "Free some space: `primordia image prune` removes images that nothing uses."
_NAMESPACE = uuid.UUID("6f1f9b1e-0d64-5a83-9c55-3a0b8d0f52aa")
# No configuration of the machine's own, and a fixed time in the superblock (2026-01-01).
_ENV = {"MKE2FS_CONFIG": "/dev/null", "E2FSPROGS_FAKE_TIME": "1767225600", "LC_ALL": "C"}


@dataclass(frozen=True)
class TreeSize:
    """What a tree needs on disk: `content_bytes` in whole blocks, and its number of files of every kind."""

    content_bytes: int
    inodes: int


def measure(tree: Path) -> TreeSize:
    """Walk a tree and add up; a file with several names counts once, holes count as if they were full."""
    seen: set[int] = set()
    content = inodes = 0
    pending = [tree]
    while pending:
        folder = pending.pop()
        inodes += 1
        names = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                names += len(os.fsencode(entry.name)) + 12
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink > 1 and status.st_ino in seen:
                    continue
                seen.add(status.st_ino)
                inodes += 1
                content += _blocks(status.st_size)
        content += _blocks(names * 3 // 2 + 1)
    return TreeSize(content, inodes)


def _blocks(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK) * _BLOCK


def disk_bytes(size: TreeSize) -> int:
    """A disk on which the tree fits: an eighth and 8 MiB to spare, in whole MiB."""
    need = (size.content_bytes + size.inodes * _INODE) * 9 // 8 + 8 * _MIB
    return -(-need // _MIB) * _MIB


def root_argv(disk: Path, tree: Path, digest: str, inodes: int) -> list[str]:
    """mke2fs for a root; its uuid and hash seed come from the digest."""
    identity = str(uuid.uuid5(_NAMESPACE, digest))
    extended = f"hash_seed={identity},root_owner=0:0,lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard"
    return [
        *("mke2fs", "-q", "-F", "-b", str(_BLOCK), "-I", str(_INODE), "-m", "0", "-L", "root", "-U", identity),
        *(
            "-O",
            f"{_FEATURES},metadata_csum",
            "-E",
            extended,
            "-N",
            str(inodes + inodes // 16 + 64),
            "-d",
            str(tree),
            str(disk),
        ),
    ]


def scratch_argv(disk: Path) -> list[str]:
    """mke2fs for a scratch disk. The blank file is known to be zero, so no inode table is written, now or in the guest."""
    extended = "root_owner=0:0,lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard"
    return [
        *("mke2fs", "-q", "-F", "-b", str(_BLOCK), "-I", str(_INODE), "-m", "0", "-L", "scratch"),
        *("-O", _FEATURES, "-E", extended, str(disk)),
    ]


async def make_root(disk: Path, tree: Path, digest: str, size: TreeSize) -> None:
    """Write the tree to a new disk, read-only (mode 0444) and not yet fsynced. CapacityError when there is no room."""
    await _make(disk, disk_bytes(size), 0o444, root_argv(disk, tree, digest, size.inodes))


async def make_scratch(path: Path, size_bytes: int) -> None:
    """Make an empty scratch disk, sparse, in place of any that was there; a few milliseconds whatever its size."""
    if size_bytes < _SMALLEST_SCRATCH:
        raise InvalidError("scratch", f"{size_bytes} bytes are too few", remedy="Give at least 8Mi.")
    path.unlink(missing_ok=True)
    await _make(path, size_bytes // _BLOCK * _BLOCK, 0o600, scratch_argv(path))


async def _make(disk: Path, size_bytes: int, mode: int, argv: Sequence[str]) -> None:
    try:
        descriptor = os.open(disk, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        await run(argv, timeout_s=600, env=_ENV)
    except BaseException as error:
        disk.unlink(missing_ok=True)
        if isinstance(error, CommandError) and says_full(error.stderr):
            raise full(disk.parent) from error
        if isinstance(error, OSError):
            raise explain(error, disk.parent) from error
        raise


def says_full(words: str) -> bool:
    """Whether a program's last words (with LC_ALL=C) say that the disk or a quota is full.

    `short write` is how Go programs may say it: the kernel took a part of a write, and only a full disk makes it do so.
    """
    return re.search(_FULL, words, re.IGNORECASE) is not None


def has_no_room(folder: Path) -> bool:
    """Whether the file system of `folder` is as good as full."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize < _NO_ROOM_BYTES or (room.f_files > 0 and room.f_favail == 0)


def want_room(folder: Path, wanted_bytes: int) -> None:
    """Raises CapacityError when the file system of `folder` has not so much left."""
    room = os.statvfs(folder)
    free_bytes = room.f_bavail * room.f_frsize
    if wanted_bytes > free_bytes:
        raise CapacityError(
            f"The disk that holds {folder} is too full: {human_bytes(free_bytes)} are free, not {human_bytes(wanted_bytes)}.",
            remedy=_MAKE_ROOM,
            reason="DiskFull",
        )


def full(folder: Path) -> CapacityError:
    """The error for a disk without room."""
    return CapacityError(
        f"The disk that holds {folder} is full.",
        remedy=_MAKE_ROOM,
        reason="DiskFull",
    )


def explain(error: OSError, folder: Path) -> PrimordiaError:
    """What a failure to write below `folder` means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(folder)
    return PermanentError(f"{folder} cannot be written ({error.strerror or error}).")


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""File systems on the disks of volumes, made on the host, which never mounts them: they are a guest's from then on.

A new disk is all zeros, so no table is written that would only say zero: neither now nor in the guest, where the kernel would
fill them in the background and with them the pool.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from primordia.kit.command import CommandError, run
from primordia.kit.errors import InvalidError, PermanentError, UnsupportedError

LEAST_XFS_BYTES = 300 << 20
_TIMEOUT_S = 300.0
_REPAIR_TIMEOUT_S = 3600.0
_REPAIRED = 0b11
"""Exit code bits of e2fsck: errors were corrected, and the machine should be rebooted, which no guest of it runs on."""
_SAID = 500
_PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}


def mkfs_argv(disk: Path, kind: str, label: str) -> list[str]:
    """How it is made (mke2fs(8), mkfs.xfs(8)). Raises InvalidError for a kind that we have not."""
    if kind == "ext4":
        options = "nodiscard,assume_storage_prezeroed=1"
        return ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", label[:16], "-E", options, "--", str(disk)]
    if kind == "xfs":
        return ["mkfs.xfs", "-q", "-f", "-K", "-L", label[:12], str(disk)]
    raise InvalidError("filesystem", f"{kind[:40]!r} cannot be made", remedy="Use ext4 or xfs.")


async def make_filesystem(disk: Path, kind: str, label: str) -> None:
    """Make a file system on a disk of zeros; durable once it returns.

    Raises UnsupportedError where the program is missing, InvalidError, PermanentError with what it said.
    """
    argv = mkfs_argv(disk, kind, label)
    if kind == "xfs" and disk.stat().st_size < LEAST_XFS_BYTES:
        raise InvalidError("data.size", "an xfs has 300 MiB at least", remedy="Ask for more, or for ext4.")
    if shutil.which(argv[0]) is None:
        raise UnsupportedError(f"{argv[0]} is missing on this node.", remedy=f"Run: apt-get install {_PACKAGES[kind]}")
    try:
        await run(argv, timeout_s=_TIMEOUT_S)
    except CommandError as error:
        raise PermanentError(f"No {kind} could be made on {disk}: {error.stderr.strip() or error.message}") from error
    await asyncio.to_thread(_flush, disk)


async def repair_filesystem(disk: Path, kind: str) -> None:
    """Do what loses nothing to make a file system whole that could not be mounted (e2fsck(8) -p, xfs_repair(8)).

    Raises PermanentError (`DataDamaged`) where that is not enough: what to give up is a person's to decide.
    """
    argv = ["e2fsck", "-p", "--", str(disk)] if kind == "ext4" else ["xfs_repair", str(disk)]
    try:
        done = await run(argv, timeout_s=_REPAIR_TIMEOUT_S, check=False)
    except CommandError as error:
        raise PermanentError(
            f"The file system of the data cannot be repaired: {error.message}", reason="DataDamaged"
        ) from error
    if done.status & ~(_REPAIRED if kind == "ext4" else 0):
        said = " ".join((done.stdout + done.stderr).decode(errors="replace").split())[-_SAID:]
        raise PermanentError(
            f"The {kind} of the data is damaged, and no safe repair was enough: {said}",
            remedy=f"Restore a snapshot (`primordia volume restore`), or run {argv[0]} on {disk} yourself.",
            reason="DataDamaged",
        )
    await asyncio.to_thread(_flush, disk)


def _flush(disk: Path) -> None:
    descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Making, mounting and finding pools: a device, or a file behind a loop device.

The options are not taste. `-m single` halves the cost of each commit, which is what a snapshot costs. `^no-holes` makes a
discard visible to the search for changes. The loop file is allocated after mkfs, so that a full host never turns the pool
read-only, and mounted `nodiscard`, so that it stays allocated. The loop device is the kernel's to free: it goes with the mount.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from primordia.drivers.volumes_btrfs import ioctl
from primordia.kit import command
from primordia.kit.command import CommandError
from primordia.kit.errors import (
    AlreadyExistsError,
    CapacityError,
    ConflictError,
    InvalidError,
    PermanentError,
    UnsupportedError,
)
from primordia.kit.units import human_bytes

LEAST_BYTES = 256 << 20
LOOP_FILE = "pool.btrfs"
"""What a pool's loop file is called, wherever it lies: by it ours are told from others'."""

_HOST_RESERVE_BYTES = 1 << 30
_LET_GO_WITHIN_S = 10.0
_LOOK_AGAIN_S = 0.02
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class PoolMount:
    """A mounted pool: `source` is the loop device, `file` what is behind it."""

    point: Path
    source: str
    file: Path


def mkfs_argv(target: Path, *, overwrite: bool = False) -> list[str]:
    """How a pool is made (mkfs.btrfs(8))."""
    options = ["-q", "-K", "-m", "single", "-d", "single", "-O", "^no-holes", "-L", "primordia"]
    return ["mkfs.btrfs", *options, *(["-f"] if overwrite else []), "--", str(target)]


def mount_argv(source: Path, point: Path, *, loop: bool) -> list[str]:
    """How a pool is mounted (btrfs(5))."""
    options = ("loop," if loop else "") + "nodiscard,noatime,nosuid,nodev,noexec"
    return ["mount", "-t", "btrfs", "-o", options, "--", str(source), str(point)]


def btrfs_mounts(mountinfo: str) -> dict[Path, str]:
    """Mount points of btrfs and their sources, by the text of /proc/self/mountinfo (proc(5)). Pure."""
    found = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, source, *_ = [*after.split(" "), "", ""]
        if kind == "btrfs":
            found[Path(_plain(before.split(" ")[4]))] = _plain(source)
    return found


def pool_mounts(mountinfo: str, loops: Mapping[str, str]) -> tuple[PoolMount, ...]:
    """Our pools among the mounts; `loops` maps loop devices to the files behind them. Pure."""
    return tuple(
        PoolMount(point, source, Path(loops[source]))
        for point, source in sorted(btrfs_mounts(mountinfo).items())
        if Path(loops.get(source, "")).name == LOOP_FILE
    )


def mounted_pools() -> tuple[PoolMount, ...]:
    """Every pool of ours that is mounted on this machine, whoever made it: what a leak report compares with what should be."""
    return pool_mounts(Path("/proc/self/mountinfo").read_text(), _loops())


async def make_loop_pool(file: Path, size_bytes: int) -> None:
    """Make a pool in a new file named LOOP_FILE, with all its room taken from the host.

    Raises InvalidError, AlreadyExistsError, CapacityError (host disk), UnsupportedError (no btrfs, no mkfs.btrfs).
    """
    if size_bytes < LEAST_BYTES or file.name != LOOP_FILE:
        raise InvalidError("pool", f"{file} of {human_bytes(size_bytes)} is no pool (at least {human_bytes(LEAST_BYTES)})")
    if file.exists():
        raise AlreadyExistsError(f"The pool {file} exists.", remedy="Open it, or delete it with all data in it.")
    require_btrfs(Path("/proc/filesystems").read_text(), shutil.which("mkfs.btrfs"))
    free = shutil.disk_usage(file.parent).free
    if size_bytes + _HOST_RESERVE_BYTES > free:
        raise CapacityError(
            f"A pool of {human_bytes(size_bytes)} does not fit into {file.parent}: {human_bytes(free)} are free.",
            remedy="Ask for a smaller pool, or use --pool-device.",
        )
    unfinished = file.with_name(f".{file.name}.new")
    try:
        await asyncio.to_thread(_empty_file, unfinished, size_bytes)
        await command.run(mkfs_argv(unfinished))
        await asyncio.to_thread(_allocate, unfinished, size_bytes)
        unfinished.rename(file)
    finally:
        unfinished.unlink(missing_ok=True)


async def make_device_pool(device: Path, *, overwrite: bool = False) -> None:
    """Make a pool on a block device. ConflictError when anything is on it already, unless that is to be overwritten."""
    require_btrfs(Path("/proc/filesystems").read_text(), shutil.which("mkfs.btrfs"))
    if not device.is_block_device():
        raise InvalidError("poolDevice", f"{device} is no block device")
    try:
        await command.run(mkfs_argv(device, overwrite=overwrite), timeout_s=600)
    except CommandError as error:
        if "overwrite" in error.stderr or "mounted" in error.stderr:
            raise ConflictError(
                f"{device} holds a file system or partitions already.", remedy=f"If nobody needs it: wipefs --all {device}"
            ) from error
        raise


async def mount_pool(source: Path, point: Path) -> None:
    """Mount a pool where it is not mounted yet. Raises ConflictError (mounted elsewhere, or something else there),
    PermanentError (no pool), UnsupportedError."""
    require_btrfs(Path("/proc/filesystems").read_text(), "unneeded")
    point.mkdir(mode=0o700, parents=True, exist_ok=True)
    source, point = source.resolve(), point.resolve()
    loops, mounts = _loops(), btrfs_mounts(Path("/proc/self/mountinfo").read_text())
    for place, device in mounts.items():
        same = Path(loops.get(device, device)) == source
        if same and place == point:
            return
        if same or place == point:
            raise ConflictError(
                f"{point} cannot be the pool {source}: {loops.get(device, device)} is mounted at {place}.",
                remedy=f"Unmount it first: umount {place}",
            )
    try:
        await command.run(mount_argv(source, point, loop=not source.is_block_device()))
    except CommandError as error:
        raise PermanentError(f"The pool {source} cannot be mounted: {error.stderr.strip()}", remedy="See dmesg.") from error
    if (Path("/sys/fs/btrfs") / ioctl.filesystem_id(point) / "features" / "no_holes").exists():
        await unmount_pool(point)
        raise PermanentError(
            f"The file system on {source} hides discards (no-holes), so that copies would not follow them.",
            remedy="Make it anew: mkfs.btrfs -m single -O ^no-holes",
        )


async def unmount_pool(point: Path) -> None:
    """Unmount exactly that one; fine when it is not. ConflictError while something has files of it open.

    The kernel lets go of the loop device a moment later, when the last process that had a copy of the mount is all gone:
    that is waited for.
    """
    point = point.resolve()
    source = btrfs_mounts(Path("/proc/self/mountinfo").read_text()).get(point)
    if source is None:
        return
    file = _loops().get(source)
    try:
        await command.run(["umount", "--", str(point)])
    except CommandError as error:
        raise ConflictError(
            f"The pool at {point} is in use: {error.stderr.strip()}", remedy=f"See who: fuser -vm {point}"
        ) from error
    end_s = time.monotonic() + _LET_GO_WITHIN_S
    while file is not None and _loops().get(source) == file and time.monotonic() < end_s:  # noqa: ASYNC110 (nobody is told)
        await asyncio.sleep(_LOOK_AGAIN_S)


def require_btrfs(filesystems: str, mkfs: str | None) -> None:
    """UnsupportedError when the kernel has no btrfs (by the text of /proc/filesystems) or there is no mkfs.btrfs. Pure."""
    if not any(line.split()[-1:] == ["btrfs"] for line in filesystems.splitlines()):
        raise UnsupportedError("This kernel has no btrfs, on which volumes lie.", remedy="Try: modprobe btrfs")
    if mkfs is None:
        raise UnsupportedError("mkfs.btrfs is missing, with which pools are made.", remedy="Run: apt install btrfs-progs")


def _loops() -> dict[str, str]:
    found = {}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found[f"/dev/{path.parts[3]}"] = path.read_text().rstrip("\n")
        except OSError:  # it is being let go at this moment
            continue
    return found


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)


def _empty_file(path: Path, size_bytes: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def _allocate(path: Path, size_bytes: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

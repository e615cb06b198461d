"""Each node's pool: made and mounted by `up` and `join`, mounted again by the daemon after a reboot, gone with the node.

A pool is a loop file in the node's state folder, with all its room taken from the host's disk at once, or a whole device. A
machine where none can be made (no btrfs, no room, no loop devices) is a node all the same: without data, and it says why.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from primordia.drivers.volumes_btrfs import pool
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.host.soup import SoupFile, SoupNode, read_config
from primordia.kit import command
from primordia.kit.errors import ConflictError, InvalidError, PermanentError, PrimordiaError, TemporaryError
from primordia.kit.paths import NodePaths, SoupPaths
from primordia.kit.units import human_bytes
from primordia.ports.volumes import Volumes
from primordia.wire.nodeconfig import NodeConfig

USUAL_BYTES = 2 << 30
"""What a pool gets where nobody says a size: six of them suit a laptop."""
_SHARE = 4
_MIB = 1 << 20
_OPEN_WITHIN_S = 15.0
_LABEL = "primordia"


def usual_bytes(free_bytes: int, nodes: int) -> int:
    """The size of each of so many new pools: USUAL_BYTES, or less where they would take over a quarter of the free disk.

    0 where that would be too small for a pool. Pure.
    """
    each = min(USUAL_BYTES, free_bytes // _SHARE // max(1, nodes)) // _MIB * _MIB
    return each if each >= pool.LEAST_BYTES else 0


@dataclass(frozen=True)
class PoolWish:
    """What was asked for by flags: the size of each new loop file, or a device; 0 and empty leave it to us.

    `overwrite` lets the device lose what is on it.
    """

    size_bytes: int = 0
    device: str = ""
    overwrite: bool = False


@dataclass(frozen=True)
class _Plan:
    """One node's pool to be: a device, or a loop file of so many bytes (0: no room) which may be there already."""

    here: NodePaths
    source: Path
    size_bytes: int
    asked: bool

    @property
    def is_new_file(self) -> bool:
        return self.source == self.here.pool_file and not self.source.exists()


async def ensure(
    soup: SoupFile, paths: SoupPaths, wish: PoolWish, announce: Callable[[str], None]
) -> dict[str, tuple[str, str]]:
    """Make and mount every node's pool; by node its file or device, or nothing and why there is none.

    New files are announced before they are made. What the user asked for by name (a device, a size) is an error where it
    cannot be had: raises PrimordiaError.
    """
    plans = {node.name: _plan(node, paths.node(node.name), wish) for node in soup.nodes}
    new = [each for each in plans.values() if each.is_new_file]
    if wish.device and len(plans) > 1:
        raise InvalidError("--pool-device", "a device is one node's, and this soup has several.", remedy="Say --pool-size.")
    usual = usual_bytes(shutil.disk_usage(paths.state).free, sum(not each.size_bytes for each in new))
    sizes = [each.size_bytes or usual for each in new]
    if any(sizes):
        announce(announcement(sizes, paths.state))
    made = {name: await _made(plan, plan.size_bytes or usual, overwrite=wish.overwrite) for name, plan in plans.items()}
    for why in sorted({why for _, why in made.values() if why}):
        announce(f"Lifeforms with data will not run here. {why}")
    return made


def announcement(sizes: Sequence[int], place: Path) -> str:
    """What making pools of those sizes takes of the machine, for people. Pure."""
    each = human_bytes(max(sizes))
    what = f"a pool of {each}" if len(sizes) == 1 else f"{len(sizes)} pools of {each}"
    return f"This takes {human_bytes(sum(sizes))} of the disk at {place} for lifeforms' data: {what} (see --pool-size)."


def _plan(node: SoupNode, here: NodePaths, wish: PoolWish) -> _Plan:
    known = Path(read_config(here.config).pool) if here.config.exists() else Path()
    size = wish.size_bytes or node.pool_bytes
    if here.pool_file.exists():
        found = here.pool_file.stat().st_size
        if wish.device or wish.size_bytes not in (0, found):
            raise InvalidError(
                "--pool-device" if wish.device else "--pool-size",
                f"node {node.name} has a pool of {human_bytes(found)} in {here.pool_file}, and keeps it.",
                remedy="Leave it out.",
            )
        return _Plan(here, here.pool_file, found, asked=False)
    if wish.device or (known.is_absolute() and known != here.pool_file):
        return _Plan(here, Path(wish.device) if wish.device else known, 0, asked=bool(wish.device))
    return _Plan(here, here.pool_file, size, asked=bool(size))


async def _made(plan: _Plan, size_bytes: int, *, overwrite: bool) -> tuple[str, str]:
    try:
        if plan.source != plan.here.pool_file:
            await _ensure_device(plan.source, overwrite=overwrite)
        elif plan.is_new_file:
            await _make_file(plan.source, size_bytes)
        await pool.mount_pool(plan.source, plan.here.volumes)
    except PrimordiaError as error:
        if plan.asked:
            raise
        return "", str(error)
    return str(plan.source), ""


async def _make_file(file: Path, size_bytes: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not size_bytes:
        raise PermanentError(
            f"A quarter of the free disk at {file.parent} is too little for pools.",
            remedy="Free some of it, or give a size with --pool-size.",
        )
    await pool.make_loop_pool(file, size_bytes)


async def _ensure_device(device: Path, *, overwrite: bool) -> None:
    """Make a pool on the device unless one of ours is there."""
    if not device.is_block_device():
        raise InvalidError("--pool-device", f"{device} is no block device.", remedy="See `lsblk`.")
    found = content_of((await command.run(["blkid", "-p", "-o", "export", "--", str(device)], check=False)).text())
    if found == _LABEL:
        return
    if found and not overwrite:
        raise ConflictError(
            f"{device} holds {found}.", remedy="Say --pool-format to delete that for good, or give another device."
        )
    await pool.make_device_pool(device, overwrite=overwrite)


def content_of(probed: str) -> str:
    """What blkid(8) found on a device, in a word or two: empty for nothing, `primordia` for a pool of ours. Pure."""
    fields = dict(line.split("=", 1) for line in probed.splitlines() if "=" in line)
    kind = fields.get("TYPE", "")
    if kind == "btrfs" and fields.get("LABEL") == _LABEL:
        return _LABEL
    if kind:
        return f"a file system or the like ({kind})"
    return f"partitions ({fields['PTTYPE']})" if "PTTYPE" in fields else ""


async def open_pool(config: NodeConfig) -> tuple[Volumes | None, str]:
    """The node's volumes for its daemon, or none and why. Mounts the pool where a reboot has unmounted it.

    Waits for an earlier daemon that has not let go of it yet.
    """
    here = NodePaths(Path(config.state_dir), Path(config.run_dir))
    if config.volumes == "memory":
        here.volumes.mkdir(parents=True, exist_ok=True)
        return MemoryVolumes(here.volumes), ""
    if not config.pool:
        return None, config.pool_reason or "This node was made without a pool; `primordia up` makes one."
    deadline = asyncio.get_running_loop().time() + _OPEN_WITHIN_S
    while True:
        try:
            await pool.mount_pool(Path(config.pool), here.volumes)
            return await BtrfsVolumes.open(here.volumes), ""
        except TemporaryError as error:
            if asyncio.get_running_loop().time() > deadline:
                return None, str(error)
            await asyncio.sleep(0.1)
        except PrimordiaError as error:
            return None, str(error)


async def unmount(here: NodePaths) -> None:
    """Let go of the node's pool; its data stays. Raises ConflictError while something of it is open."""
    if here.volumes.exists():
        await pool.unmount_pool(here.volumes)


def remove_file(here: NodePaths) -> None:
    """Delete an unmounted loop file with all that is in it. A device keeps what it has."""
    here.pool_file.unlink(missing_ok=True)

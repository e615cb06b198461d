"""How a mounted pool is: its room, and what its devices counted as errors."""

from __future__ import annotations

import os
from pathlib import Path

from primordia.drivers.volumes_btrfs import ioctl
from primordia.ports.volumes import PoolStatus

_RESERVE_SHARE = 20
_RESERVE_LEAST_BYTES = 32 << 20
_SYS = Path("/sys/fs/btrfs")


def status(folder: Path, problems: tuple[str, ...] = ()) -> PoolStatus:
    """Room and health; `problems` are known already. OSError when nothing is mounted there."""
    seen = os.statvfs(folder)
    total, free = seen.f_blocks * seen.f_frsize, seen.f_bavail * seen.f_frsize
    found = list(problems)
    if seen.f_flag & os.ST_RDONLY:
        found.append(f"The pool {folder} is read-only; see dmesg.")
    devices = _SYS / ioctl.filesystem_id(folder) / "devinfo"
    for path in sorted(devices.glob("*/error_stats")):
        found += device_problems(path.parent.name, path.read_text())
    return PoolStatus(total, total - free, free, max(_RESERVE_LEAST_BYTES, total // _RESERVE_SHARE), tuple(found))


def device_problems(device: str, text: str) -> list[str]:
    """What of a device's error counters (`write_errs 0` and so on) is not zero. Pure."""
    problems = []
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if count.strip().isdecimal() and int(count):
            problems.append(f"Device {device} of the pool counted {int(count)} {name.replace('_errs', ' errors')}.")
    return problems

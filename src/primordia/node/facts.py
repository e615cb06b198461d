"""What the machine has, as the kernel tells it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Protocol

from primordia.kit import identity


class Host(Protocol):
    """The machine's own figures; sizes in bytes."""

    def boot_id(self) -> str: ...
    def kernel_version(self) -> str: ...
    def cpus(self) -> int: ...
    def memory_total(self) -> int: ...
    def memory_available(self) -> int: ...
    def memory_stalled_percent(self) -> float:
        """Share of the last ten seconds in which some task waited for memory; 0 where the kernel does not tell."""

    def disk(self, path: Path) -> tuple[int, int]:
        """Size and free bytes of the file system that holds `path`."""


class LinuxHost:
    """The machine this runs on."""

    def boot_id(self) -> str:
        return identity.boot_id()

    def kernel_version(self) -> str:
        return platform.release()

    def cpus(self) -> int:
        return len(os.sched_getaffinity(0))

    def memory_total(self) -> int:
        return _meminfo("MemTotal")

    def memory_available(self) -> int:
        return _meminfo("MemAvailable")

    def memory_stalled_percent(self) -> float:
        # Documentation/accounting/psi.rst
        try:
            return float(Path("/proc/pressure/memory").read_text().split("avg10=", 1)[1].split()[0])
        except (OSError, ValueError, IndexError):
            return 0.0

    def disk(self, path: Path) -> tuple[int, int]:
        figures = os.statvfs(path)
        return figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize


def parse_meminfo(text: str, field: str) -> int:
    """Bytes of a field of /proc/meminfo; 0 when it is not there."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return 0


def _meminfo(field: str) -> int:
    return parse_meminfo(Path("/proc/meminfo").read_text(), field)

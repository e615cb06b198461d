"""Control groups: where every process of a node lives, so that none can be lost and none can take more than its share.

A name such as `primordia/S/N/vm/UID` is one path in every hierarchy we use: the v2 (unified) one, which can kill a whole
group at once, and, on machines that still bind their controllers to v1, the `cpu` and `memory` hierarchies for limits.
Some machines have both. A controller that cannot be had degrades to no limit and is reported, never silently ignored.

The invariant: a process enters its group before it becomes the program it runs (exec), and a group is removed only after
it reads empty. Standard library only, since the supervisor uses it too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from primordia.kit.errors import TemporaryError, UnsupportedError

CPU_PERIOD_US = 100_000
_POLL_S = 0.005


@dataclass(frozen=True)
class Limits:
    """`cpu_milli` thousandths of a core, `memory_bytes` everything charged to the group; 0 is no limit."""

    cpu_milli: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class Hierarchies:
    """Where this machine mounts its control groups. `controllers` are those the v2 hierarchy can give.

    The v1 freezer is used where there is no v2 alone, which freezes by itself.
    """

    unified: Path | None = None
    cpu_v1: Path | None = None
    memory_v1: Path | None = None
    controllers: frozenset[str] = frozenset()
    freezer_v1: Path | None = None

    def roots(self) -> tuple[Path, ...]:
        """The mount points in use, each once; v1 controllers may share one."""
        freezer = self.freezer_v1 if self.unified is None else None
        places = (self.unified, self.cpu_v1, self.memory_v1, freezer)
        return tuple(dict.fromkeys(root for root in places if root is not None))

    def missing(self) -> tuple[str, ...]:
        """What cannot be had here, in sentences for people."""
        found = []
        if self.unified is None:
            found.append("The cgroup v2 hierarchy is not mounted: microVMs are killed one process at a time.")
        if self.cpu_v1 is None and "cpu" not in self.controllers:
            found.append("The cpu controller is not available: CPU limits do not hold.")
        if self.memory_v1 is None and "memory" not in self.controllers:
            found.append("The memory controller is not available: memory limits do not hold.")
        return tuple(found)


def parse_mountinfo(text: str) -> Hierarchies:
    """Read /proc/self/mountinfo (proc(5)) for cgroup mounts; without `controllers`, which only the file system knows."""
    found: dict[str, Path] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) < 5 or len(tail) < 3:
            continue
        place = Path(fields[4].replace("\\040", " "))
        if tail[0] == "cgroup2":
            found.setdefault("unified", place)
        elif tail[0] == "cgroup":
            for option in {"cpu", "memory", "freezer"} & set(tail[2].split(",")):
                found.setdefault(option, place)
    return Hierarchies(found.get("unified"), found.get("cpu"), found.get("memory"), freezer_v1=found.get("freezer"))


@functools.cache
def hierarchies() -> Hierarchies:
    """This machine's hierarchies; they do not change while a process lives."""
    found = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    controllers: frozenset[str] = frozenset()
    if found.unified is not None:
        with contextlib.suppress(OSError):
            controllers = frozenset((found.unified / "cgroup.controllers").read_text().split())
    return replace(found, controllers=controllers)


def make(name: str, limits: Limits | None = None) -> None:
    """Make the group and set its limits; harmless when it exists.

    Raises UnsupportedError when this process may not make groups at all, or a limit cannot be set.
    """
    here = hierarchies()
    if not here.roots():
        raise UnsupportedError("No cgroup hierarchy is mounted.", remedy="Mount cgroup2 at /sys/fs/cgroup.")
    try:
        for root in here.roots():
            (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnsupportedError(
            f"The cgroup {name} cannot be made ({error.strerror}).", remedy="Run as root, with cgroups writable."
        ) from error
    if limits is not None:
        limit(name, limits)


def limit(name: str, limits: Limits) -> None:
    """Set limits of a group that exists; those that are 0 stay as they are. Raises UnsupportedError when one cannot be set."""
    for file, value in _limit_files(name, limits, hierarchies()):
        _write(file, value)


def cpu_milli(name: str) -> int:
    """The group's CPU limit in thousandths of a core; 0 without one, or without a cpu controller."""
    here = hierarchies()
    with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
        if here.cpu_v1 is not None:
            return max(0, int((here.cpu_v1 / name / "cpu.cfs_quota_us").read_text())) * 1000 // CPU_PERIOD_US
        if here.unified is not None:
            return int((here.unified / name / "cpu.max").read_text().split()[0]) * 1000 // CPU_PERIOD_US
    return 0


def enter_self(name: str) -> None:
    """Move this process, and all it will start, into the group."""
    make(name)
    for file in procs_files(name):
        file.write_text(str(os.getpid()))


def procs_files(name: str) -> tuple[Path, ...]:
    """The files a process writes its pid into to enter the group."""
    return tuple(root / name / "cgroup.procs" for root in hierarchies().roots())


def pids(name: str) -> frozenset[int]:
    """Every process in the group and below it."""
    found: set[int] = set()
    for folder in _folders(name):
        with contextlib.suppress(FileNotFoundError, OSError):
            found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return frozenset(found)


def signal_kill(name: str) -> None:
    """SIGKILL everything in the group and below it, without waiting; harmless when it does not exist."""
    here = hierarchies()
    if here.unified is not None:
        # Linux 5.14 and newer: all at once, so nothing can fork its way out.
        with contextlib.suppress(OSError):
            (here.unified / name / "cgroup.kill").write_text("1")
    for pid in pids(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if here.unified is None and here.freezer_v1 is not None:
        # Frozen by v1, a process does not even die; thawed, it dies before its next instruction.
        with contextlib.suppress(OSError):
            (here.freezer_v1 / name / "freezer.state").write_text("THAWED")


def kill_tree(name: str, *, timeout_s: float = 10.0) -> None:
    """Kill everything in the group and below it, wait until it reads empty, and remove it. Blocks up to `timeout_s`.

    Raises TemporaryError when something does not die (a process stuck in the kernel).
    """
    deadline = time.monotonic() + timeout_s
    while True:
        signal_kill(name)
        if not pids(name):
            break
        if time.monotonic() > deadline:
            stuck = ", ".join(str(pid) for pid in sorted(pids(name)))
            raise TemporaryError(
                f"Processes {stuck} of cgroup {name} did not die within {timeout_s:g} s.",
                remedy="They wait for a disk or the kernel; try again, or reboot the machine.",
            )
        time.sleep(_POLL_S)
    remove_tree(name)


def remove_tree(name: str, *, timeout_s: float = 2.0) -> None:
    """Remove the empty group and all below it; harmless when it does not exist.

    A process that has just died may hold its group for a moment, so removal is tried until `timeout_s` has passed.
    Raises TemporaryError when the group is still in use then.
    """
    deadline = time.monotonic() + timeout_s
    for folder in _folders(name):
        while not _removed(folder):
            if time.monotonic() > deadline:
                raise TemporaryError(f"The cgroup {folder} is still in use.", remedy="End its processes, then try again.")
            time.sleep(_POLL_S)


def remove_if_empty(name: str) -> None:
    """Remove the group unless something is in it or below it."""
    for root in hierarchies().roots():
        with contextlib.suppress(OSError):
            (root / name).rmdir()


def exists(name: str) -> bool:
    """Whether the group is there in any hierarchy."""
    return any((root / name).is_dir() for root in hierarchies().roots())


def oom_kills(name: str) -> int:
    """How many processes of the group the kernel killed for going over its memory limit."""
    here = hierarchies()
    places = []
    if here.unified is not None:
        places.append(here.unified / name / "memory.events")
    if here.memory_v1 is not None:
        places.append(here.memory_v1 / name / "memory.oom_control")
    for place in places:
        with contextlib.suppress(OSError):
            for line in place.read_text().splitlines():
                word, _, count = line.partition(" ")
                if word == "oom_kill":
                    return int(count)
    return 0


def _limit_files(name: str, limits: Limits, here: Hierarchies) -> Iterator[tuple[Path, str]]:
    quota_us = limits.cpu_milli * CPU_PERIOD_US // 1000
    if limits.cpu_milli:
        if here.cpu_v1 is not None:
            yield here.cpu_v1 / name / "cpu.cfs_period_us", str(CPU_PERIOD_US)
            yield here.cpu_v1 / name / "cpu.cfs_quota_us", str(quota_us)
        elif _delegated(name, "cpu", here):
            yield _unified(here) / name / "cpu.max", f"{quota_us} {CPU_PERIOD_US}"
    if limits.memory_bytes:
        if here.memory_v1 is not None:
            yield here.memory_v1 / name / "memory.limit_in_bytes", str(limits.memory_bytes)
        elif _delegated(name, "memory", here):
            yield _unified(here) / name / "memory.max", str(limits.memory_bytes)
            yield _unified(here) / name / "memory.oom.group", "1"


def _delegated(name: str, controller: str, here: Hierarchies) -> bool:
    """Hand a v2 controller down every step from the root to the group's parent; no step may hold processes."""
    if here.unified is None or controller not in here.controllers:
        return False
    folder = here.unified
    for part in Path(name).parts:
        control = folder / "cgroup.subtree_control"
        if controller not in control.read_text().split():
            _write(control, f"+{controller}")
        folder /= part
    return True


def _unified(here: Hierarchies) -> Path:
    assert here.unified is not None
    return here.unified


def _write(file: Path, value: str) -> None:
    try:
        file.write_text(value)
    except OSError as error:
        raise UnsupportedError(
            f"The limit {value!r} cannot be set in {file} ({error.strerror}).",
            remedy="Run as root on a machine whose cgroups may be changed.",
        ) from error


def _folders(name: str) -> Iterator[Path]:
    """The group's folders and those below them, children first."""
    for root in hierarchies().roots():
        for folder, _, _ in os.walk(root / name, topdown=False):
            yield Path(folder)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True

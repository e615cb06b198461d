"""Naming a process beyond doubt: pid, start time and boot id. A pid alone may belong to somebody else by now."""

from __future__ import annotations

import json
import os
from pathlib import Path


def boot_id() -> str:
    """The kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 when there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def write_pid_file(path: Path, pid: int) -> None:
    """Record the identity of a running process, whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"pid": pid, "startTicks": start_ticks(pid), "bootId": boot_id()}))
    temporary.replace(path)


def running_pid(path: Path) -> int:
    """The pid in a pid file if that very process still runs, else 0."""
    try:
        record = json.loads(path.read_text())
        pid, ticks, boot = int(record["pid"]), int(record["startTicks"]), str(record["bootId"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0
    return pid if ticks and boot == boot_id() and start_ticks(pid) == ticks else 0

"""Making everything in a control group stand still, and go on again, whatever this machine has for it.

A frozen process runs no instruction, so it writes nothing; it holds its memory, files and sockets, and notices only that
the clocks have moved. Cgroup v2 freezes a whole tree and says when all of it stands. Where there is no v2, the v1 freezer
does the same. Where there is neither, each process gets SIGSTOP until all are seen to stand: what one of them started
meanwhile is found by the next look.

A process that enters a frozen group stands from that moment on, except with SIGSTOP: there `freeze` must be repeated.
Standard library only, since the supervisor uses it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from primordia.kit import cgroup

_POLL_S = 0.002


def freeze(name: str, *, timeout_s: float = 1.0) -> bool:
    """Freeze the group and all below it, making it if there is none; whether everything stands by then.

    False does not mean that anything goes on for long: what is asked for stays asked for, and the kernel sees to it.
    Raises UnsupportedError when the group cannot be made.
    """
    cgroup.make(name)
    _ask(name, stand=True)
    deadline = time.monotonic() + timeout_s
    while not stands(name) and (_switch(name) is not None or cgroup.pids(name)):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
        if _switch(name) is None:
            _ask(name, stand=True)
    return True


def thaw(name: str) -> None:
    """Let everything go on; harmless when it does, or when there is no such group."""
    _ask(name, stand=False)


def stands(name: str) -> bool:
    """Whether all of the group is frozen now. An empty group stands once it was told to, where the kernel can be told."""
    switch = _switch(name)
    with contextlib.suppress(OSError):
        if switch is None:
            found = cgroup.pids(name)
            return bool(found) and all(_stopped(pid) for pid in found)
        if switch.name == "freezer.state":
            return switch.read_text().strip() == "FROZEN"
        return "frozen 1" in (switch.parent / "cgroup.events").read_text().splitlines()
    return False


def _switch(name: str) -> Path | None:
    """The file that freezes the group; None where the kernel has none."""
    here = cgroup.hierarchies()
    if here.unified is not None:
        switch = here.unified / name / "cgroup.freeze"
        return switch if switch.exists() else None
    return here.freezer_v1 / name / "freezer.state" if here.freezer_v1 is not None else None


def _ask(name: str, *, stand: bool) -> None:
    switch = _switch(name)
    if switch is None:
        for pid in cgroup.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if stand else signal.SIGCONT)
        return
    words = ("FROZEN", "THAWED") if switch.name == "freezer.state" else ("1", "0")
    with contextlib.suppress(OSError):
        switch.write_text(words[0] if stand else words[1])


def _stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in (b"T", b"t", b"Z", b"X")

"""Starting and ending one child: its own session, its log file, the right network namespace, and death with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from pathlib import Path

from primordia.kit import netns
from primordia.supervisor.children import ChildSpec

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOG_LIMIT_BYTES = 16 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Let orphaned microVMs become our children, so that their ends are reaped whoever started them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(spec: ChildSpec, host_netns: int | None) -> int:
    """Start the child and return its pid. Raises OSError when the program cannot be started.

    A child dies with the supervisor, but for one that `outlives`: without its parent nobody would restart it, and the next
    supervisor starts its own.
    """
    parent = os.getpid()

    def prepare() -> None:
        if not spec.outlives:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)
        if spec.in_host_netns and host_netns is not None:
            netns.enter(host_netns)

    Path(spec.log).parent.mkdir(parents=True, exist_ok=True)
    with Path(spec.log).open("ab") as log:
        process = subprocess.Popen(
            spec.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **spec.env},
            start_new_session=True,
            pass_fds=() if host_netns is None else (host_netns,),
            preexec_fn=prepare,  # noqa: PLW1509 - no lock of another thread is needed in it
        )
    pid = process.pid
    process.returncode = 0  # reaped by the supervisor's own wait, so Popen's must not look for it
    return pid


def bound_log(path: Path) -> None:
    """Keep a log file and one predecessor below a limit; the writer appends, so it may go on meanwhile."""
    try:
        if path.stat().st_size <= _LOG_LIMIT_BYTES:
            return
    except FileNotFoundError:
        return
    previous = path.with_suffix(path.suffix + ".1")
    with path.open("rb") as source, previous.open("wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    os.truncate(path, 0)


def send(pid: int, number: int) -> None:
    """Signal a child; one that has just ended is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

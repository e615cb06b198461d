"""A machine's run folder: two listening sockets, the pid file, the note of what it is made of, QEMU's standard error, and
while the virtual CPUs stand for a freeze, a file that says so: whoever adopts such a machine lets it go on.

The sockets are bound here and handed to QEMU listening, so whoever connects never finds nobody.

Standard error is a named pipe that nobody but the kernel fills: it keeps the first 64 KiB, what a failed start has to say,
and refuses the rest without blocking. A guest can make QEMU complain without end, and must not fill the host's disk.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from primordia.kit.unix import short_address

MONITOR, AGENT, STDERR, PID = "qmp.sock", "agent.sock", "qemu.err", "qemu.pid"
NOTE, STANDING = "machine.json", "standing"
_NAMES = (MONITOR, AGENT, STDERR, PID, NOTE, STANDING)
_BACKLOG = 8


def prepare(run_dir: Path) -> int:
    """Make the folder and the pipe; returns the pipe's reading end, which the caller closes."""
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.mkfifo(run_dir / STDERR, 0o600)
    return open_stderr(run_dir)


def open_stderr(run_dir: Path) -> int:
    """The reading end of QEMU's standard error, -1 when it is not there."""
    try:
        descriptor = os.open(run_dir / STDERR, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return -1
    return descriptor


def read_stderr(descriptor: int) -> str:
    """What QEMU said and nobody has read yet."""
    if descriptor < 0:
        return ""
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, 65536).decode(errors="replace")
    return ""


def listen(run_dir: Path, name: str) -> socket.socket:
    """A listening socket of that name in the folder."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(run_dir / name) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(run_dir: Path, name: str) -> socket.socket:
    """A socket connected to that name in the folder. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with short_address(run_dir / name) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def clear(run_dir: Path) -> None:
    """Remove what a machine left; the folder itself only if nothing else is in it."""
    for name in _NAMES:
        (run_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run_dir.rmdir()

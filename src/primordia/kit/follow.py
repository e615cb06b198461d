"""Waiting for a change in a folder without looking again and again: inotify(7), by way of the C library."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# From <sys/inotify.h>: a file was renamed into the folder, or was closed after being written.
_IN_CLOSE_WRITE = 0x00000008
_IN_MOVED_TO = 0x00000080
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def followed(folder: Path) -> Iterator[asyncio.Event]:
    """An event that is set whenever a file of the folder was replaced or written. Raises OSError."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), folder)

    def changed() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(descriptor, 65536)
        event.set()

    try:
        _checked(_libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_CLOSE_WRITE | _IN_MOVED_TO), folder)
        loop.add_reader(descriptor, changed)
        try:
            yield event
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def _checked(result: int, folder: Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))
    return result

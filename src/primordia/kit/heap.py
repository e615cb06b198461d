"""Memory that a process keeps while much passes through it, instead of giving each buffer back to the kernel and asking anew.

glibc maps large buffers one by one, and shortens its heap whenever the top of it is free: a stream of buffers of some hundred
KiB then costs a page fault for each page of each of them, which was a third of the processor time of receiving one over TLS.
Where it is not glibc, nothing happens. mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 << 20
_USUAL_BYTES = 128 << 10
"""What glibc begins with."""

_libc = ctypes.CDLL(None)
_guard = threading.Lock()
_users = 0


@contextmanager
def kept() -> Iterator[None]:
    """Keep what was freed while anybody is within; afterwards all of it is given back."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(by: int) -> None:
    global _users
    with _guard:
        before, _users = _users, _users + by
        if bool(before) == bool(_users) or not hasattr(_libc, "mallopt"):
            return
        size = _KEPT_BYTES if _users else _USUAL_BYTES
        _libc.mallopt(_TRIM_THRESHOLD, size)
        _libc.mallopt(_MMAP_THRESHOLD, min(size, _KEPT_BYTES // 2))
    if not _users:
        _libc.malloc_trim(0)

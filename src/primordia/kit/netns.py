"""Network namespaces: making sockets in another one than the process lives in.

setns changes the calling thread only, and a later bind lands in the new namespace. So each visit runs in a thread of its
own that ends afterwards; no thread of the event loop ever changes its namespace.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def argv_in(name: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in a named namespace.

    Not `ip netns exec` and not `ip -n`: both make the mounts below `/` slaves first, which fails in a chroot, whose `/` is
    no mount point.
    """
    return ["nsenter", f"--net=/run/netns/{name}", "--", *argv]


def open_current() -> int:
    """A descriptor of the namespace the process is in; the caller closes it."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def open_named(name: str) -> int:
    """A descriptor of a namespace that `ip netns` knows by name; the caller closes it."""
    return os.open(Path("/run/netns") / name, os.O_RDONLY | os.O_CLOEXEC)


def enter(descriptor: int) -> None:
    """Move the calling thread into the namespace. Raises OSError."""
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter the network namespace: {os.strerror(number)}")


def call_in(descriptor: int, function: Callable[[], T]) -> T:
    """The result of `function` called in the namespace, by a thread that ends with it."""
    result: list[T] = []
    error: list[BaseException] = []

    def visit() -> None:
        try:
            enter(descriptor)
            result.append(function())
        except BaseException as raised:
            error.append(raised)

    thread = threading.Thread(target=visit, name="netns-visit")
    thread.start()
    thread.join()
    if error:
        raise error[0]
    return result[0]

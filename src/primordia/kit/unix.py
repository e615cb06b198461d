"""Addresses of unix sockets whose path may be any length.

A socket's address holds 107 bytes (unix(7)), and the path of somebody's own state or run folder may not fit. Through a
descriptor of the folder every one does. Standard library only: the supervisor uses it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address for `path` to bind or connect within the block. Raises OSError when its folder is not there."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)

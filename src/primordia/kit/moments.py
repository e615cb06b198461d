"""A few numbers in memory that processes share and that outlive them: a file of doubles, mapped.

A store of eight aligned bytes is one store, so nobody reads half of a number; several numbers together may be read in
between, so who writes and who reads agree on an order. Standard library only: the supervisor uses it.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

_NUMBER = struct.Struct("@d")


class Moments:
    """`count` numbers at `path`, made as not-a-number where there is no such file. Raises OSError."""

    def __init__(self, path: Path, count: int) -> None:
        size = count * _NUMBER.size
        if not path.exists() or path.stat().st_size != size:
            path.write_bytes(_NUMBER.pack(math.nan) * count)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)

    def __getitem__(self, index: int) -> float:
        """A number."""
        return float(_NUMBER.unpack_from(self._memory, index * _NUMBER.size)[0])

    def __setitem__(self, index: int, value: float) -> None:
        """Seen by everybody at once."""
        _NUMBER.pack_into(self._memory, index * _NUMBER.size, value)

"""One number in memory that outlives the supervisor: from when on everything the node runs must stand.

`run_dir/standing` is a file of eight bytes that the fence maps and moves on, each second, and that the warden
(`supervisor/warden.py`) and the next supervisor read. A store of eight aligned bytes is one store, so nobody reads half of
one. Seconds on CLOCK_BOOTTIME; infinity is never,
its negative that nobody needs it.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

STANDING_FILE = "standing"
_NUMBER = struct.Struct("@d")
_ENDED = -math.inf


class Standing:
    """The number of one run folder; made, with `make`, where it is not there. Raises OSError."""

    def __init__(self, run_dir: Path, *, make: bool = True) -> None:
        self._path = run_dir / STANDING_FILE
        if make and not (self._path.exists() and self._path.stat().st_size == _NUMBER.size):
            self._path.write_bytes(_NUMBER.pack(math.nan))
        with self._path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _NUMBER.size)

    def read(self) -> float | None:
        """From when on everything must stand; None where no moment was said."""
        (value,) = _NUMBER.unpack_from(self._memory)
        return float(value) if math.isfinite(value) else None

    def write(self, until: float | None) -> None:
        """Say it anew; None is never."""
        _NUMBER.pack_into(self._memory, 0, math.inf if until is None else until)

    def end(self) -> None:
        """Nobody needs it any more: nothing runs, and nothing will. Whoever reads it ends."""
        _NUMBER.pack_into(self._memory, 0, _ENDED)

    @property
    def ended(self) -> bool:
        """Whether that was said."""
        return bool(_NUMBER.unpack_from(self._memory)[0] == _ENDED)

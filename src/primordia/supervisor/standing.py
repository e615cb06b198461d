"""One number in memory that outlives the supervisor: from when on everything the node runs must stand.

The fence moves it on, each second, in `run_dir/standing`; the warden (`supervisor/warden.py`) and the next supervisor read it.
Seconds on CLOCK_BOOTTIME; infinity is never, its negative that nobody needs it.
"""

from __future__ import annotations

import math
from pathlib import Path

from primordia.kit.moments import Moments

STANDING_FILE = "standing"
_ENDED = -math.inf


class Standing:
    """The number of one run folder. Raises OSError at construction."""

    def __init__(self, run_dir: Path) -> None:
        self._numbers = Moments(run_dir / STANDING_FILE, 1)

    def read(self) -> float | None:
        """From when on everything must stand; None where no moment was said."""
        value = self._numbers[0]
        return value if math.isfinite(value) else None

    def write(self, until: float | None) -> None:
        """Say it anew; None is never."""
        self._numbers[0] = math.inf if until is None else until

    def end(self) -> None:
        """Nobody needs it any more: nothing runs, and nothing will. Whoever reads it ends."""
        self._numbers[0] = _ENDED

    @property
    def ended(self) -> bool:
        """Whether that was said."""
        return self._numbers[0] == _ENDED

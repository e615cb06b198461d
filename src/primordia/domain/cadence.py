"""When a volume's next snapshot is due. Pure.

Cuts that fall due at the same moment share one commit of the pool, so they all keep to the same beats: the multiples of
their interval. A cut may take a tenth of the time at most; one that took longer lets beats pass.
"""

from __future__ import annotations

import math

SHARE = 10
"""How many times as long as its cut a volume then has peace."""
_ROUNDING = 1e-6


def next_beat_s(after_s: float, interval_s: float) -> float:
    """The first beat that is not before `after_s`."""
    return math.ceil(after_s / interval_s - _ROUNDING) * interval_s


def due_s(begun_s: float, cost_s: float, interval_s: float) -> float:
    """When to cut again after a cut that began at `begun_s` and took `cost_s` (0: there was nothing to cut)."""
    return next_beat_s(begun_s + max(cost_s * SHARE, _ROUNDING * 10), interval_s)

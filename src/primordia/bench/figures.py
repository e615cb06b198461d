"""Samples into figures, in the one shape that every benchmark gives.

Percentiles are by nearest rank: a figure is always a time that really happened. Samples and their baseline are taken in
turns in the same run, so that a busy machine slows both. The ratio is that of the medians; where each sample has a partner
in the baseline, taken just before or after it, it is the median of the partners' ratios, which a machine that is busy
for a part of the run does not move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured thing. `baseline` is the median of the same work without us, and `ratio` how much longer ours takes.

    Where ours replaces its baseline (`faster`), the ratio says how much longer that takes.
    """

    name: str
    unit: str
    n: int
    min: float
    p50: float
    p99: float
    max: float
    baseline: float | None = None
    ratio: float | None = None

    def plain(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "n": self.n,
            "min": self.min,
            "p50": self.p50,
            "p99": self.p99,
            "max": self.max,
            "baseline": self.baseline,
            "ratio": self.ratio,
        }


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile. Raises ValueError without samples."""
    if not samples:
        raise ValueError("There are no samples.")
    rank = max(1, math.ceil(percent / 100 * len(samples)))
    return sorted(samples)[rank - 1]


def figure(name: str, unit: str, samples: Sequence[float], baseline: Sequence[float] = ()) -> Figure:
    """A figure from samples and, where there are some, those of its baseline. Rounded to what is meant."""
    base = percentile(baseline, 50) if baseline else None
    return _figure(name, unit, samples, base, percentile(samples, 50) / base if base else None)


def faster(name: str, unit: str, samples: Sequence[float], baseline: Sequence[float]) -> Figure:
    """A figure of what replaces its baseline: the ratio says how many times as long the baseline takes."""
    base, own = percentile(baseline, 50), percentile(samples, 50)
    return _figure(name, unit, samples, base, base / own if own else None)


def paired(name: str, unit: str, samples: Sequence[float], baseline: Sequence[float]) -> Figure:
    """A figure whose samples have a partner each in the baseline. Raises ValueError when there are not as many."""
    ratios = [sample / base for sample, base in zip(samples, baseline, strict=True) if base]
    return _figure(name, unit, samples, percentile(baseline, 50), percentile(ratios, 50) if ratios else None)


def _figure(name: str, unit: str, samples: Sequence[float], base: float | None, ratio: float | None) -> Figure:
    return Figure(
        name=name,
        unit=unit,
        n=len(samples),
        min=_round(min(samples)),
        p50=_round(percentile(samples, 50)),
        p99=_round(percentile(samples, 99)),
        max=_round(max(samples)),
        baseline=None if base is None else _round(base),
        ratio=None if ratio is None else _round(ratio),
    )


def _round(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")

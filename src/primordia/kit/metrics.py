"""Counters, histograms and gauges, and the text that Prometheus reads (exposition format 0.0.4).

Counting is cheap and never fails; reading calls whoever registered gauges, and one that fails costs only its own lines.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Sample:
    """One value of a gauge (or, with `kind` counter, of a count kept elsewhere) as it is read."""

    name: str
    value: float
    help: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    kind: str = "gauge"


Source = Callable[[], Iterable[Sample]]


class Counter:
    """Counts by label values."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help_text, tuple(labels)
        self._counts: dict[tuple[str, ...], float] = {}

    def add(self, *values: str, by: float = 1) -> None:
        """Count one more (or `by`) under these label values."""
        self._counts[values] = self._counts.get(values, 0) + by

    def lines(self) -> Iterable[str]:
        """Its lines of the exposition."""
        yield from _head(self.name, self.help, "counter")
        for values, count in sorted(self._counts.items()):
            yield f"{self.name}{_labels(zip(self.labels, values, strict=True))} {_number(count)}"


class Histogram:
    """Durations in seconds by label values, in cumulative buckets."""

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str] = (), buckets_s: Sequence[float] = LATENCY_BUCKETS_S
    ) -> None:
        self.name, self.help, self.labels = name, help_text, tuple(labels)
        self._bounds = tuple(buckets_s)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, seconds: float, *values: str) -> None:
        """Note one duration under these label values."""
        counts = self._counts.setdefault(values, [0] * (len(self._bounds) + 1))
        counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._sums[values] = self._sums.get(values, 0.0) + seconds

    def lines(self) -> Iterable[str]:
        """Its lines of the exposition."""
        yield from _head(self.name, self.help, "histogram")
        for values, counts in sorted(self._counts.items()):
            pairs = list(zip(self.labels, values, strict=True))
            total = 0
            for bound, count in zip([*map(str, self._bounds), "+Inf"], counts, strict=True):
                total += count
                yield f"{self.name}_bucket{_labels([*pairs, ('le', bound)])} {total}"
            yield f"{self.name}_sum{_labels(pairs)} {_number(self._sums[values])}"
            yield f"{self.name}_count{_labels(pairs)} {total}"


class Metrics:
    """Everything one process tells of itself."""

    def __init__(self) -> None:
        self._kept: list[Counter | Histogram] = []
        self._sources: list[Source] = []

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter; its name ends in `_total`."""
        counter = Counter(name, help_text, labels)
        self._kept.append(counter)
        return counter

    def histogram(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Histogram:
        """A new histogram of seconds; its name ends in `_seconds`."""
        histogram = Histogram(name, help_text, labels)
        self._kept.append(histogram)
        return histogram

    def source(self, read: Source) -> None:
        """Ask `read` for samples whenever somebody reads the metrics. It must not block."""
        self._sources.append(read)

    def render(self) -> str:
        """The exposition text."""
        lines: list[str] = []
        for kept in self._kept:
            lines += kept.lines()
        told: set[str] = set()
        for sample in sorted(self._samples(), key=lambda each: each.name):
            if sample.name not in told:
                told.add(sample.name)
                lines += _head(sample.name, sample.help, sample.kind)
            lines.append(f"{sample.name}{_labels(sample.labels.items())} {_number(sample.value)}")
        return "\n".join(lines) + "\n"

    def _samples(self) -> list[Sample]:
        samples: list[Sample] = []
        for source in self._sources:
            try:
                samples += source()
            except Exception:
                log.exception("a source of metrics failed")
        return samples


def _head(name: str, help_text: str, kind: str) -> Iterable[str]:
    yield f"# HELP {name} {_escape(help_text)}"
    yield f"# TYPE {name} {kind}"


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    inner = ",".join(f'{key}="{_escape(value, quotes=True)}"' for key, value in pairs)
    return f"{{{inner}}}" if inner else ""


def _escape(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))

"""What the node counts about its forks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from primordia.kit.metrics import Metrics, Sample


class ForkMeters:
    """Counts claims, forks and what did not confirm who it is. `waiting` tells the pool's sizes by template."""

    def __init__(self, metrics: Metrics, waiting: Callable[[], dict[str, int]], forks: Callable[[], int]) -> None:
        self._waiting = waiting
        self._forks = forks
        self._claims = metrics.counter("primordia_claims_total", "Boxes handed out, by what they were made from.", ("from",))
        self._children = metrics.counter("primordia_forks_total", "Children of running contexts, by outcome.", ("outcome",))
        self._unconfirmed = metrics.counter(
            "primordia_forks_unconfirmed_total", "Forks that were destroyed, for they did not confirm their identity."
        )
        self._claim_s = metrics.histogram("primordia_claim_seconds", "From the claim to the confirmed identity.", ("from",))
        self._pause_s = metrics.histogram("primordia_fork_pause_seconds", "How long a parent stood still for its children.")
        metrics.source(self._samples)

    def claimed(self, *, warm: bool, took_s: float) -> None:
        """A box was handed out."""
        source = "warm" if warm else "cold"
        self._claims.add(source)
        self._claim_s.observe(took_s, source)

    def unconfirmed(self) -> None:
        """A fork was destroyed, for nobody knows who it would have been."""
        self._unconfirmed.add()

    def forked(self, *, made: int, failed: int, pause_s: float) -> None:
        """A parent was forked."""
        self._children.add("made", by=made)
        self._children.add("failed", by=failed)
        self._pause_s.observe(pause_s)

    def _samples(self) -> Iterable[Sample]:
        yield Sample("primordia_forks", self._forks(), "Boxes and forks that run on this node.")
        for template, count in self._waiting().items():
            yield Sample("primordia_pool_waiting", count, "Forks that wait to be claimed.", {"template": template})

"""Results of many seeds as one table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from primordia.sim.world import Result


@dataclass
class Summary:
    """What happened in all runs so far."""

    runs: int = 0
    commits: int = 0
    virtual_s: float = 0.0
    terms: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """One more run."""
        self.runs += 1
        self.commits += result.commits
        self.virtual_s += result.virtual_s
        self.terms += result.terms
        self.faults += result.faults
        self.deeds += result.deeds
        if result.violations:
            self.failed.append(result)

    def lines(self, seconds: float) -> list[str]:
        """The table; `seconds` is how long it all took by the wall clock."""
        return [
            f"{self.runs} seeds, {self.virtual_s / 3600:.1f} simulated hours in {seconds:.0f} s, {self.commits} revisions, "
            f"{self.terms} terms of office",
            "",
            *_table("FAULT", self.faults),
            "",
            *_table("DEED", self.deeds),
            "",
            f"{len(self.failed)} seeds failed" if self.failed else "no violation",
        ]


def explain(result: Result, world: str = "control", most: int = 5) -> list[str]:
    """A failed run, in lines: what was violated, and how to see it again."""
    shown = [f"  {violation}" for violation in result.violations[:most]]
    left = len(result.violations) - len(shown)
    return [
        f"{world} seed {result.seed} failed:",
        *shown,
        *([f"  and {left} more"] if left else []),
        f"  again: python -m primordia.sim --world {world} --seed {result.seed}",
    ]


def _table(title: str, counts: Mapping[str, int]) -> Iterable[str]:
    width = max([len(title), *(len(name) for name in counts)])
    yield f"{title:<{width}}  COUNT"
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield f"{name:<{width}}  {count:>5}"

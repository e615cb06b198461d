"""Which fault comes next: pure, from a seeded random source, so that a run can be had again by its seed.

A fault names whom it hurts by the part that a node plays (the one that has a workload, one that holds a copy, any), for where
things are depends on time; `Cast.node` turns that into a name once the cycle begins.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "kill daemon",
    "kill supervisor and daemon",
    "kill microVM",
    "partition",
    "partition, hears nothing",
    "partition, says nothing",
    "partition from the engine",
    "freeze daemon",
    "freeze node",
    "power cut",
    "rack loss",
]
KINDS: tuple[Kind, ...] = (
    "kill daemon",
    "kill supervisor and daemon",
    "kill microVM",
    "partition",
    "partition, hears nothing",
    "partition, says nothing",
    "partition from the engine",
    "freeze daemon",
    "freeze node",
    "power cut",
    "rack loss",
)
POWER: frozenset[Kind] = frozenset({"power cut", "rack loss"})
_OWNER_SHARE = 0.75
_FREEZE_S = (2.0, 15.0)
_CUT_S = (2.0, 20.0)
_OFF_S = (10.0, 25.0)
_DOWN_S = (1.0, 15.0)


@dataclass(frozen=True)
class Fault:
    """`role` is owner or any, `pick` in [0, 1) chooses among those that play it; `seconds` is how long it lasts."""

    kind: Kind
    role: Literal["owner", "any"]
    pick: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Cast:
    """Who plays what: `owners` has the node of each workload, `racks` the nodes of each rack."""

    owners: Mapping[str, str]
    racks: Mapping[str, Sequence[str]]

    @property
    def nodes(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(node for rack in sorted(self.racks) for node in self.racks[rack])

    def workload(self, fault: Fault) -> str:
        """The workload that it hurts, where it is an owner's fault."""
        names = sorted(self.owners)
        return names[int(fault.pick * len(names))]

    def victims(self, fault: Fault) -> tuple[str, ...]:
        """The nodes that it hurts."""
        owner = self.owners[self.workload(fault)]
        node = owner if fault.role == "owner" else self.nodes[int(fault.pick * len(self.nodes))]
        if fault.kind != "rack loss":
            return (node,)
        return next(tuple(nodes) for nodes in self.racks.values() if node in nodes)


def shuffled(rng: random.Random, cycles: int, among: Sequence[Kind] = KINDS) -> list[Fault]:
    """So many faults. Every kind comes once before any comes again."""
    kinds: list[Kind] = []
    while len(kinds) < cycles:
        turn = list(among)
        rng.shuffle(turn)
        kinds += turn
    return [fault(rng, kind) for kind in kinds[:cycles]]


def fault(rng: random.Random, kind: Kind) -> Fault:
    """A fault of that kind."""
    role: Literal["owner", "any"] = "owner" if rng.random() < _OWNER_SHARE or kind == "kill microVM" else "any"
    pick = rng.random()
    low, high = _RANGES[kind]
    return Fault(kind, role, pick, round(rng.uniform(low, high), 1))


_RANGES: Mapping[Kind, tuple[float, float]] = {
    "kill daemon": (0.0, 0.0),
    "kill supervisor and daemon": _DOWN_S,
    "kill microVM": (0.0, 0.0),
    "partition": _CUT_S,
    "partition, hears nothing": _CUT_S,
    "partition, says nothing": _CUT_S,
    "partition from the engine": _CUT_S,
    "freeze daemon": _FREEZE_S,
    "freeze node": _FREEZE_S,
    "power cut": _OFF_S,
    "rack loss": _OFF_S,
}

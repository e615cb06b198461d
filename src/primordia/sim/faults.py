"""What goes wrong in a run, and when: decided by the seed before anything begins."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar


class Kind(StrEnum):
    """Every way to hurt a soup."""

    STORE_AWAY = "store away"
    ANSWERS_LOST = "answers lost"
    WATCHES_CUT = "watches cut"
    WATCHES_LATE = "watches late"
    WATCHES_REPEAT = "changes told twice"
    COMPACTION = "compaction"
    CONTROLLER_CRASH = "controller crash"
    CONTROLLER_CUT = "controller cut in a call"
    CONTROLLER_STALL = "controller stalled"
    CONTROLLER_RESTART = "controller restart"
    NODE_CRASH = "node crash"
    NODE_HANG = "node hang"
    NODE_CORDON = "node cordon"
    NODE_SHRINK = "node loses memory"


LONGEST_S: Mapping[Kind, float] = {
    Kind.STORE_AWAY: 20,
    Kind.ANSWERS_LOST: 20,
    Kind.WATCHES_CUT: 0,
    Kind.WATCHES_LATE: 20,
    Kind.WATCHES_REPEAT: 20,
    Kind.COMPACTION: 0,
    Kind.CONTROLLER_CRASH: 15,
    Kind.CONTROLLER_CUT: 0,
    Kind.CONTROLLER_STALL: 25,
    Kind.CONTROLLER_RESTART: 2,
    Kind.NODE_CRASH: 60,
    Kind.NODE_HANG: 40,
    Kind.NODE_CORDON: 250,
    Kind.NODE_SHRINK: 250,
}
"""The longest each lasts; what keeps news back is well below the checkers' LATENESS_S."""


K = TypeVar("K", bound=StrEnum)


@dataclass(frozen=True)
class Fault(Generic[K]):
    """From `at_s` on (seconds of the run), for `for_s`. `dice` is chance for whoever carries it out, in [0, 1)."""

    at_s: float
    kind: K
    for_s: float
    dice: float


def schedule(rng: random.Random, duration_s: float, pause_s: float, kinds: Sequence[Kind]) -> tuple[Fault[Kind], ...]:
    """Faults in order of time, on average one in `pause_s`; every one of the kinds is as likely as any other."""
    faults = []
    at_s = rng.expovariate(1 / pause_s)
    while at_s < duration_s:
        kind = rng.choice(kinds)
        faults.append(Fault(at_s, kind, rng.uniform(0, LONGEST_S[kind]), rng.random()))
        at_s += rng.expovariate(1 / pause_s)
    return tuple(faults)

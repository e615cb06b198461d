"""How many forks of each template wait, paused, for somebody to claim them: pure.

One step at a time, decided again after each, from the state alone: so a pool follows demand, and gives way, without any
plan that could be out of date. A pool is never a promise: an empty one costs its claimer some milliseconds, no more.

Invariants: a step never goes past a pool's maximum, the node's limit on forks, or the memory that the machine keeps for
itself; and where memory is short, pools shrink before anything else has to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

STALLED_PERCENT = 10.0
"""Share of the last ten seconds in which some task waited for memory, from which on memory counts as short."""


@dataclass(frozen=True)
class Pool:
    """The forks of one template. `lately` counts claims of the last minute, `paused_bytes` is what one that waits costs."""

    template: str
    minimum: int
    maximum: int
    waiting: int = 0
    arriving: int = 0
    lately: int = 0
    paused_bytes: int = 0

    @property
    def wanted(self) -> int:
        """What it should hold: its minimum, more where that has lately been claimed, never more than its maximum."""
        return max(0, min(self.maximum, max(self.minimum, self.lately)))

    @property
    def held(self) -> int:
        """What it has, with what is on its way."""
        return self.waiting + self.arriving


@dataclass(frozen=True)
class Room:
    """The node. `free_bytes` is memory that could be had now, `reserve_bytes` what must stay free of it; `forks_left` is
    what its limit leaves."""

    free_bytes: int
    reserve_bytes: int
    forks_left: int
    stalled_percent: float = 0.0

    @property
    def is_short(self) -> bool:
        """Whether others need now what waits here."""
        return self.free_bytes < self.reserve_bytes or self.stalled_percent > STALLED_PERCENT or self.forks_left < 0


@dataclass(frozen=True)
class Step:
    """What to do next with the pool of `template`, and why."""

    verb: Literal["add", "drop", "rest"]
    template: str = ""
    reason: str = ""


def plan(pools: Sequence[Pool], room: Room) -> Step:
    """The next step."""
    full = [pool for pool in pools if pool.waiting]
    if room.is_short:
        if not full:
            return Step("rest", reason="the node is short of room, and nothing waits")
        fullest = max(full, key=lambda pool: (pool.waiting, pool.template))
        return Step("drop", fullest.template, "the node is short of room")
    for pool in full:
        if pool.held > pool.wanted:
            return Step("drop", pool.template, f"{pool.held} wait, {pool.wanted} are wanted")
    lacking = [pool for pool in pools if pool.held < pool.wanted]
    if not lacking:
        return Step("rest", reason="every pool is full")
    return _fill(lacking, room)


def _fill(lacking: Sequence[Pool], room: Room) -> Step:
    """Fill the pool that has the smallest share of what it wants."""
    neediest = min(lacking, key=lambda pool: (pool.held / pool.wanted, pool.template))
    if room.forks_left <= 0:
        return Step("rest", reason="the node has as many forks as it may")
    if room.free_bytes - neediest.paused_bytes < room.reserve_bytes:
        return Step("rest", reason="the memory that is left is the machine's reserve")
    return Step("add", neediest.template, f"{neediest.held} wait, {neediest.wanted} are wanted")

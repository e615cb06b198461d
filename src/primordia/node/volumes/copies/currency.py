"""Until when a copy here is known to have had all that its owner's disk held, by the owner's word and this node's clock alone.

A copy of a volume that nobody writes is old and lacks nothing; one of a volume that its owner cannot cut may be as old and lack
much. Only the owner knows, and its word may have been under way for any time. So each answer to its question carries a stamp,
the moment on this node's clock, and the owner gives the stamp back once it has looked at its disk after hearing it: whatever
the wire did meanwhile, the copy was whole at that moment.

Invariant: what is said here is never too late a moment. It is forgotten with the process; then only clocks can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from primordia.kit.clock import Clock


@dataclass(frozen=True)
class _Known:
    owner: str
    number: int
    at_s: float


class Currency:
    """One node's. Seconds are those of its CLOCK_BOOTTIME."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stamps: dict[tuple[str, str], float] = {}
        self._known: dict[str, _Known] = {}

    def stamp(self, uid: str, asker: str) -> float:
        """For an answer to that node about that volume."""
        stamp = self._stamps[uid, asker] = self._clock.boottime()
        return stamp

    def confirm(self, uid: str, owner: str, number: int, stamp: float) -> None:
        """The owner has found, after it had heard the stamp, that its disk holds nothing beyond that snapshot."""
        if self._stamps.get((uid, owner)) == stamp:  # else it is of an answer before, or of another process
            self._known[uid] = _Known(owner, number, stamp)

    def at_s(self, uid: str, owner: str, number: int) -> float | None:
        """The latest moment at which that owner's disk is known to have held nothing that snapshot `number` lacks."""
        known = self._known.get(uid)
        return known.at_s if known is not None and known.owner == owner and known.number <= number else None

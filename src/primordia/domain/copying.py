"""What an owner sends next to a node that is to hold a copy of its volume, and how that copy is then spoken of. Pure.

Content decides, never position: what both have is found by its root. Of the common ones the newest is the best to begin at,
and the newest of all is where to go: snapshots in between are skipped. A holder with a tail that the owner lacks puts that
aside and begins at the newest common one; where nothing is common, it begins with nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from primordia.domain.ranges import Range
from primordia.domain.snapshots import Delta, Lag, Manifest

State = Literal["Seeding", "InSync", "Behind", "Unreachable", "Failed"]
BEHIND_S, BEHIND_INTERVALS = 5.0, 3
"""A copy is in sync while it lags by no more than the larger of so many seconds and so many of the volume's intervals."""


@dataclass(frozen=True)
class Held:
    """A snapshot that a node holds, acknowledged."""

    number: int
    root: str


@dataclass(frozen=True)
class Begun:
    """A delta that was cut off at a holder: it led from the root `base` to the snapshot of that number and root."""

    number: int
    root: str
    base: str
    bytes_done: int


@dataclass(frozen=True)
class Send:
    """Snapshot `number`, from the owner's `since` (0: from `base` itself: nothing, or the very same content).

    `begin` is how many of its bytes the holder has already; with `aside` the holder first puts aside what it has that is
    newer than `base`.
    """

    number: int
    since: int
    base: str
    begin: int = 0
    aside: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is all of the content, for one who has nothing."""
        return not self.base


def next_send(
    owner: Sequence[Manifest], held: Sequence[Held], begun: Begun | None = None, *, damaged: Collection[int] = ()
) -> Send | None:
    """What goes next to a holder of `held` (oldest first); None when it has the owner's newest already.

    `damaged` are the owner's own that it had to put aside: what a holder has of them is the only good one there is, and stays
    until the owner has something newer to put in its place.
    """
    if not owner:
        return None
    newest, tip = owner[-1], held[-1] if held else None
    if tip is not None and (tip.number, tip.root) == (newest.number, newest.root):
        return None
    if any((each.number, each.root) == (newest.number, newest.root) for each in held) and all(
        each.number <= newest.number or each.number in damaged for each in held
    ):
        return None
    base = _common(owner, [each for each in held if each.number < newest.number])
    aside = tip is not None and (tip.root != base or tip.number >= newest.number)
    if begun is not None and begun.base == base and not aside:
        wanted = next((each for each in owner if (each.number, each.root) == (begun.number, begun.root)), None)
        if wanted is not None and wanted.number > (tip.number if tip else 0):
            return Send(wanted.number, _since(owner, base, wanted.number), base, begun.bytes_done)
    return Send(newest.number, _since(owner, base, newest.number), base, aside=aside)


def empty_delta(owner: Sequence[Manifest], send: Send) -> Delta | None:
    """The delta of a snapshot with the very content of its base, which no snapshot before it need stand for."""
    wanted = next(each for each in owner if each.number == send.number)
    return Delta(wanted, send.base, ()) if send.base and not send.since and wanted.root == send.base else None


def held_number(owner: Sequence[Manifest], held: Sequence[Held]) -> int:
    """The newest of the owner's snapshots that the holder has, by number and content; 0 for none."""
    ours = {(each.number, each.root) for each in owner}
    return max((each.number for each in held if (each.number, each.root) in ours), default=0)


def relied_on(owner: Sequence[Manifest], held: Sequence[Held]) -> frozenset[int]:
    """The owner's snapshots that must stay, so that this holder can be sent deltas: its newest common one."""
    base = _common(owner, held)
    return frozenset(each.number for each in owner[::-1] if base and each.root == base)


def state_of(held: int, lag: Lag, interval_s: float, unreachable: bool, failure: str) -> State:
    """How a copy is spoken of. `failure` says what keeps it from going on, empty while nothing does."""
    if unreachable:
        return "Unreachable"
    if failure:
        return "Failed"
    if not held:
        return "Seeding"
    return "Behind" if lag.seconds > max(BEHIND_S, BEHIND_INTERVALS * interval_s) else "InSync"


Site = tuple[str, str]
"""Segment and rack."""


def nearest(sources: Mapping[str, Site], here: Site, owner: str) -> tuple[str, ...]:
    """Nodes to fetch from: of the same rack, of the same segment, elsewhere; the owner after its equals, for it is busy."""

    def distance(node: str) -> tuple[int, bool, str]:
        segment, rack = sources[node]
        far = 0 if (segment, rack) == here else 1 if segment == here[0] else 2
        return far, node == owner, node

    return tuple(sorted(sources, key=distance))


def enough(acknowledged: Mapping[str, int], sites: Mapping[str, Site], owner: Site, number: int) -> tuple[str, ...]:
    """The nodes that have the snapshot, one for each rack that is not the owner's, in order of name."""
    racks: dict[Site, str] = {}
    for node in sorted(acknowledged):
        site = sites.get(node, ("", ""))
        if acknowledged[node] >= number and all(site) and site != owner:
            racks.setdefault(site, node)
    return tuple(sorted(racks.values()))


def _common(owner: Sequence[Manifest], held: Sequence[Held]) -> str:
    """The root of the newest snapshot of the holder whose content the owner has too; empty for none."""
    ours = {each.root for each in owner}
    return next((each.root for each in reversed(held) if each.root in ours), "")


def _since(owner: Sequence[Manifest], base: str, number: int) -> int:
    return max((each.number for each in owner if base and each.root == base and each.number < number), default=0)


def batches(ranges: Sequence[Range], most_bytes: int) -> list[list[Range]]:
    """The same ranges in order, cut into groups of at most so many bytes."""
    found: list[list[Range]] = []
    room = 0
    for each in ranges:
        at = each.offset
        while at < each.end:
            if room <= 0:
                found.append([])
                room = most_bytes
            length = min(room, each.end - at)
            found[-1].append(Range(at, length))
            at, room = at + length, room - length
    return found

"""Where the copies of a volume lie, and why nowhere else. Pure.

Hard rules (G5), never bent: each copy on a rack of its own and none on the owner's (on a segment of its own with
`spread: segment`); a node that does not know its rack and segment holds none; a copy fits above the pool's reserve. Where
the rules leave too few places the answer is short and names the rule. Racks are told apart by segment and name.

Copies that lie well stay. For the others a node wins that has data of the volume already, then one that has copies of what
belongs to it (so that one node can take over all of a lifeform), then the emptiest pool, the one with the fewest copies, the
name. One rack takes one copy, so the best node of each of the best racks is the best choice of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from primordia.kit.units import human_bytes

Spread = Literal["rack", "segment"]
Site = tuple[str, ...]


@dataclass(frozen=True)
class Holder:
    """A node as a place for copies. `free_bytes` is above its pool's reserve; `copies` is how many it holds already."""

    name: str
    segment: str
    rack: str
    ready: bool = True
    unschedulable: bool = False
    total_bytes: int = 0
    free_bytes: int = 0
    copies: int = 0
    healthy: bool = True


@dataclass(frozen=True)
class CopyRequest:
    """`count` copies besides the owner's, each of up to `size_bytes`. `present` are nodes that are to hold one already.

    `holding` are those that have data of it, perhaps no more than what was put aside, `company` those of the copies that
    belong to it.
    """

    owner: str
    size_bytes: int
    count: int
    spread: Spread = "rack"
    present: frozenset[str] = frozenset()
    holding: frozenset[str] = frozenset()
    company: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CopyPlacement:
    """`nodes` are the places found, those with a copy first; `short` how many are missing, `message` why."""

    nodes: tuple[str, ...]
    short: int
    message: str


@dataclass(frozen=True)
class Blast:
    """What the loss of a rack costs: volumes that would be gone, and those that would be on their last copy."""

    segment: str
    rack: str
    lost: tuple[str, ...]
    last_copy: tuple[str, ...]


def place_copies(request: CopyRequest, holders: Sequence[Holder]) -> CopyPlacement:
    """Choose the nodes. Asked for none, it is content with none."""
    owner = next((each for each in holders if each.name == request.owner), None)
    if owner is None or not _knows_its_place(owner):
        problem = "does not know its segment and rack" if owner is not None else "is not there"
        return CopyPlacement(
            (), request.count, f"The owner's node {request.owner} {problem}, so nothing is known to lie apart."
        )
    taken = {_site(owner, request.spread)}
    chosen: list[Holder] = []
    refusals: Counter[str] = Counter()
    for holder in sorted(holders, key=lambda each: _preference(each, request)):
        if holder.name == request.owner or len(chosen) == request.count:
            continue
        refusal = _refusal(holder, request, taken)
        if refusal:
            refusals[refusal] += 1
            continue
        taken.add(_site(holder, request.spread))
        chosen.append(holder)
    nodes = tuple(each.name for each in chosen)
    short = request.count - len(nodes)
    if short:
        return CopyPlacement(nodes, short, _explain(request, len(nodes), refusals))
    return CopyPlacement(nodes, 0, f"Each of the {len(nodes)} copies has a {request.spread} of its own.")


def blast_radius(volumes: Mapping[str, Collection[Holder]]) -> tuple[Blast, ...]:
    """For each rack that holds anything: what its loss would do. `volumes` maps each to all its holders, the owner too."""
    sites = sorted({(holder.segment, holder.rack) for holders in volumes.values() for holder in holders})
    found = []
    for segment, rack in sites:
        left = {
            name: {holder.name for holder in holders if (holder.segment, holder.rack) != (segment, rack)}
            for name, holders in sorted(volumes.items())
            if any((holder.segment, holder.rack) == (segment, rack) for holder in holders)
        }
        lost = tuple(name for name, rest in left.items() if not rest)
        last = tuple(name for name, rest in left.items() if len(rest) == 1)
        found.append(Blast(segment, rack, lost, last))
    return tuple(found)


def _site(holder: Holder, spread: Spread) -> Site:
    return (holder.segment,) if spread == "segment" else (holder.segment, holder.rack)


def _knows_its_place(holder: Holder) -> bool:
    return bool(holder.segment and holder.rack)


def _preference(holder: Holder, request: CopyRequest) -> tuple[bool, bool, bool, float, int, str]:
    share, name = (holder.free_bytes - request.size_bytes) / holder.total_bytes if holder.total_bytes > 0 else 0.0, holder.name
    known = name not in request.present, name not in request.holding, name not in request.company
    return (*known, -share, holder.copies, name)


def _refusal(holder: Holder, request: CopyRequest, taken: Collection[Site]) -> str:
    """Why not there, as the tail of a sentence; empty when it may."""
    if not _knows_its_place(holder):
        return "without segment and rack"
    if _site(holder, request.spread) in taken:
        return f"on a {request.spread} that holds the owner or a copy"
    if not holder.ready:
        return "not ready"
    if not holder.healthy:
        return "with an unhealthy pool"
    if holder.name in request.present:
        return ""  # it holds the data already: neither cordon nor room speak against that
    if holder.unschedulable:
        return "cordoned"
    if holder.free_bytes < request.size_bytes:
        return f"without {human_bytes(request.size_bytes)} free above the reserve"
    return ""


def _explain(request: CopyRequest, found: int, refusals: Mapping[str, int]) -> str:
    ordered = sorted(refusals.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{count} {reason}" for reason, count in ordered) or "there is no other node"
    return (
        f"{found} of {request.count} copies have a place: each needs a {request.spread} of its own, "
        f"apart from the owner's. Of the others: {reasons}."
    )

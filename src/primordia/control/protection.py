"""How many copies a volume is to have, who holds them, and whether it is protected. Pure.

A copy that was placed stays where it is, also while its node is away or full: its data is there, and seeding another for
every reboot would cost more than it saves. It goes elsewhere when its node has left the soup or has been dead for long, or
when it no longer lies apart from the owner and the others. One that is lost and has nowhere else to go keeps its place: its
node may come back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from primordia.domain.conditions import Verdict
from primordia.domain.copies import CopyPlacement, CopyRequest, Holder, place_copies
from primordia.kit.units import parse_bytes, parse_duration_s
from primordia.wire.conditions import holds, is_dead
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Node, Volume
from primordia.wire.volumes import Replication, VolumeCopy, holder_finalizer

OVERCOMMIT = 4
"""Disks are thin: of volumes and copies a pool may be promised so many times its size, while there is room for the next one."""
_FAR_BEHIND_S = 30.0
_FAR_BEHIND_INTERVALS = 10

DEFAULT = Replication()


@dataclass(frozen=True)
class Copies:
    """What is decided about a volume's copies: how many are wanted, who holds them, and what there is to say of it.

    `lost` are those of them that are no copies any more unless their nodes come back.
    """

    wanted: int
    nodes: tuple[str, ...]
    message: str
    lost: frozenset[str] = frozenset()

    @property
    def short(self) -> bool:
        """Whether a change of the nodes may allow more."""
        return len(self.nodes) - len(self.lost) < self.wanted


def holder_of(node: Node, promised_bytes: int = 0, copies: int = 0) -> Holder:
    """A node as a place for a volume's data. The share that is not promised decides among those with room."""
    labels, pool = node.metadata.labels, node.status.pool
    promise = max(0, OVERCOMMIT * (pool.total_bytes - pool.reserve_bytes) - promised_bytes)
    return Holder(
        name=node.metadata.name,
        segment=labels.get(LABEL_SEGMENT, ""),
        rack=labels.get(LABEL_RACK, ""),
        ready=holds(node.status.conditions, "Ready") and node.metadata.deletion_timestamp is None,
        unschedulable=node.spec.unschedulable,
        total_bytes=OVERCOMMIT * pool.total_bytes,
        free_bytes=promise,
        copies=copies,
        healthy=pool.total_bytes > 0 and not pool.problems,
    )


def with_room(holder: Holder, node: Node, size_bytes: int) -> Holder:
    """The holder, free for as much as is really free where a volume of this size does not fit into that."""
    room = node.status.pool.room_bytes
    return holder if size_bytes <= room else dataclasses.replace(holder, free_bytes=min(holder.free_bytes, room))


def replication_of(volume: Volume) -> Replication:
    """How its copies are kept, with the default where nothing is said."""
    return volume.spec.replication or DEFAULT


def wanted_copies(volume: Volume, racks: int, present: int = 0) -> int:
    """How many copies besides the owner's: as asked for, else one where there are two racks to tell apart.

    One that is `present` stays when the second rack is not seen for a while.
    """
    mirror = replication_of(volume).layout.mirror
    return mirror if mirror is not None else int(racks >= 2 or present > 0)


def choose_copies(
    volume: Volume,
    holders: Mapping[str, Holder],
    racks: int,
    *,
    lost: frozenset[str] = frozenset(),
    company: frozenset[str] = frozenset(),
) -> Copies:
    """Who holds the copies of a volume that has an owner: those who do, as far as they may, and others for the rest.

    `lost` are nodes that have been dead for long, `company` those that hold the copies of its lifeform's other volumes.
    """
    kept = tuple(name for name in volume.status.replicas if name in holders)
    present = frozenset(kept) - lost
    wanted = wanted_copies(volume, racks, len(kept))
    if not wanted:
        return Copies(0, (), "")
    owner = holders.get(volume.status.node)
    if owner is None or not (owner.segment and owner.rack):
        return Copies(wanted, kept, f"Its owner's node {volume.status.node} is not in the soup, or of no rack.")
    seen = [_staying(each) if each.name in present else each for each in holders.values()]
    size = parse_bytes(volume.spec.size)
    request = CopyRequest(
        volume.status.node, size, wanted, replication_of(volume).spread, present, holding_of(volume, holders), company
    )
    placement: CopyPlacement = place_copies(request, seen)
    staying = [name for name in kept if name in placement.nodes]
    added = [name for name in placement.nodes if name not in staying]
    nowhere = [name for name in kept if name in lost and _lies_apart(name, (*staying, *added, owner.name), holders, request)]
    nodes = (*staying, *added, *nowhere[: placement.short])
    return Copies(wanted, nodes, placement.message if placement.short else "", frozenset(nodes) & lost)


def holding_of(volume: Volume, nodes: Iterable[str]) -> frozenset[str]:
    """Which of these nodes have data of the volume: each has put its finalizer there before its first byte."""
    return frozenset(name for name in nodes if holder_finalizer(name) in volume.metadata.finalizers)


def choose_owner(size_bytes: int, holders: Iterable[Holder]) -> str:
    """Where a volume of no lifeform is made: the emptiest pool with room; empty when there is none."""
    fit = [each for each in holders if each.ready and each.healthy and not each.unschedulable and each.free_bytes >= size_bytes]
    best = min(fit, key=lambda each: (-(each.free_bytes - size_bytes) / each.total_bytes, each.name), default=None)
    return best.name if best is not None else ""


def protection(volume: Volume, copies: Copies, nodes: Mapping[str, Node]) -> Verdict:
    """The Protected condition: whether the volume survives the loss of any one rack, as far as its owner has told."""
    if not volume.status.node:
        return Verdict("Protected", "False", "Unprotected", "It has no node yet, and no data.")
    if not copies.wanted:
        return Verdict("Protected", "False", "Unprotected", _why_none(volume))
    if not copies.nodes:
        return Verdict("Protected", "False", "Unprotected", copies.message)
    told = {copy.node: copy for copy in volume.status.copies}
    worries = [_worry(name, told.get(name), nodes.get(name), _far_behind_s(volume)) for name in copies.nodes]
    bad = [worry for worry in worries if worry]
    good = len(worries) - len(bad)
    if good < copies.wanted:
        count = f"{good} of {copies.wanted} copies {'is' if good == 1 else 'are'} good"
        return Verdict("Protected", "False", "Degraded", f"{count}: {'; '.join([*bad, *_shortage(copies)])}.")
    where = ", ".join(f"{name} ({_rack(nodes.get(name))})" for name in copies.nodes)
    return Verdict("Protected", "True", "Protected", f"{good} {_copies(good)} on other racks: {where}.")


def _lies_apart(name: str, others: Iterable[str], holders: Mapping[str, Holder], request: CopyRequest) -> bool:
    sites = [_site(holders[other], request.spread) for other in others]
    return _site(holders[name], request.spread) not in sites


def _site(holder: Holder, spread: str) -> tuple[str, ...]:
    return (holder.segment,) if spread == "segment" else (holder.segment, holder.rack)


def _staying(holder: Holder) -> Holder:
    """One that holds a copy, as if all were well with it."""
    return dataclasses.replace(holder, ready=True, healthy=True)


def _why_none(volume: Volume) -> str:
    if replication_of(volume).layout.mirror == 0:
        return "No copies are asked for: layout.mirror is 0."
    return "The soup has not two racks with pools, so that no copy could lie apart from it."


def _worry(name: str, copy: VolumeCopy | None, node: Node | None, far_s: float) -> str:
    """What is wrong with a copy; empty when it is good."""
    where = f"{name} ({_rack(node)})"
    if node is not None and is_dead(node.status.conditions):
        return f"the copy on {where} is on a dead node"
    if copy is None:
        return f"nothing is known yet of the copy on {where}"
    if copy.state in ("InSync", "Behind"):
        return f"the copy on {where} is {copy.lag_seconds:.0f} s behind" if copy.lag_seconds > far_s else ""
    words = {"Seeding": "is being made", "Unreachable": "cannot be reached", "Failed": "has failed"}[copy.state]
    return f"the copy on {where} {words}" + (f" ({copy.message.rstrip('.')})" if copy.message else "")


def _shortage(copies: Copies) -> Sequence[str]:
    return [copies.message.rstrip(".")] if copies.short and copies.message else []


def _far_behind_s(volume: Volume) -> float:
    interval = replication_of(volume).interval or volume.spec.snapshots.interval
    try:
        return max(_FAR_BEHIND_S, _FAR_BEHIND_INTERVALS * parse_duration_s(interval))
    except ValueError:
        return _FAR_BEHIND_S


def _rack(node: Node | None) -> str:
    return (node.metadata.labels.get(LABEL_RACK, "") if node is not None else "") or "no rack"


def _copies(count: int) -> str:
    return "copy" if count == 1 else "copies"

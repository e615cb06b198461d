"""Copies besides those that the layout asks for: where a lifeform is about to go, and on nodes that copies are to leave. Pure.

A copy on a node that is being evacuated goes once every copy of the layout lies elsewhere and is whole, so nothing is less
protected meanwhile. One that is made for a move counts for the layout only where that would be short without it.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from primordia.control.protection import Copies, replication_of
from primordia.wire.resources import Volume


def settled(volume: Volume, goal: str, leaving: Collection[str]) -> Volume:
    """The volume with the copies that may be there to stay, for the layout to be chosen from."""
    mirror = replication_of(volume).layout.mirror
    there = tuple(name for name in volume.status.replicas if name not in leaving)
    others = tuple(name for name in there if name != goal)
    kept = others if len(others) >= (mirror if mirror is not None else 1) else there
    if kept == volume.status.replicas:
        return volume
    return msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, replicas=kept))


def extra_copies(volume: Volume, copies: Copies, goal: str, leaving: Collection[str]) -> tuple[str, ...]:
    """The nodes that hold copies besides those of the layout, for the time being."""
    told = {copy.node: copy.state for copy in volume.status.copies}
    whole = not copies.short and all(told.get(name) == "InSync" for name in copies.nodes)
    extra = [] if whole else [name for name in volume.status.replicas if name in leaving]
    if goal and goal != volume.status.node:
        extra.append(goal)
    return tuple(name for name in dict.fromkeys(extra) if name not in copies.nodes)

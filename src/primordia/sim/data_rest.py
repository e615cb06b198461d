"""What must hold of data once the world has come to rest; and which waits data excuses."""

from __future__ import annotations

from collections.abc import Iterator

from primordia.sim.history import State
from primordia.wire.conditions import find
from primordia.wire.resources import Lifeform, Node, Volume

_UNITS = {"Mi": 2**20, "Gi": 2**30}


def data_fits(lifeform: Lifeform, node: Node, state: State) -> bool:
    """Whether the lifeform's data allows it to be, and to become what its manifest says, on this node."""
    new_bytes = 0
    for template in lifeform.spec.contexts:
        if template.data is None:
            continue
        volume = state.volume_named(f"{lifeform.metadata.name}.{template.name}")
        if volume is None:
            new_bytes += int(template.data.size[:-2]) * _UNITS[template.data.size[-2:]]
        elif volume.status.node != node.metadata.name:
            return False
    pool = node.status.pool
    return not new_bytes or (pool.total_bytes > 0 and new_bytes <= pool.free_bytes - pool.reserve_bytes)


def data_problems(state: State) -> Iterator[tuple[str, str]]:
    """What is wrong with volumes, as a checker's name and a sentence."""
    lifeforms = {lifeform.metadata.name: lifeform for lifeform in state.lifeforms.values()}
    for volume in sorted(state.volumes.values(), key=lambda each: each.metadata.name):
        name = volume.metadata.name
        if volume.metadata.deletion_timestamp is not None:
            yield "Deletion", f"{name} is still being destroyed, held by {', '.join(volume.metadata.finalizers)}."
            continue
        lifeform, _, context = name.partition(".")
        yield from _phase(volume, lifeforms.get(lifeform), context)
        yield from _holders(volume)
        yield from _copies(volume)


def _phase(volume: Volume, lifeform: Lifeform | None, context: str) -> Iterator[tuple[str, str]]:
    """Its phase tells whether a lifeform has it. One that has a node without being bound waits, and says why itself."""
    wants = lifeform is not None and any(each.name == context and each.data is not None for each in lifeform.spec.contexts)
    wanted = "Bound" if wants else "Available"
    if volume.status.phase != wanted:
        yield "Volumes", f"{volume.metadata.name} is {volume.status.phase} and should be {wanted}."


def _holders(volume: Volume) -> Iterator[tuple[str, str]]:
    """The nodes that hold it are those that should: its owner, once it was opened, and all the copies."""
    held = {name.partition("/")[2] for name in volume.metadata.finalizers}
    status = volume.status
    if not set(status.replicas) <= held or not held <= {status.node, *status.replicas}:
        wanted = ", ".join((status.node, *status.replicas))
        yield "Volumes", f"{volume.metadata.name} is held by {', '.join(sorted(held))}, and should be by {wanted}."


def _copies(volume: Volume) -> Iterator[tuple[str, str]]:
    found = find(volume.status.conditions, "Protected")
    if found is None or not found.message:
        yield "Volumes", f"{volume.metadata.name} does not say whether it is protected."
    elif found.status == "True" and not volume.status.replicas:
        yield "Volumes", f"{volume.metadata.name} says it is protected, and has no copies."
    elif found.reason == "Degraded" and {copy.node for copy in volume.status.copies} == set(volume.status.replicas):
        mirror = volume.spec.replication.layout.mirror if volume.spec.replication is not None else None
        if len(volume.status.replicas) >= (mirror if mirror is not None else 1):
            yield "Volumes", f"{volume.metadata.name} has all its copies, and says: {found.message}"

"""What the loss of a rack would cost: the lifeforms whose data would be gone, or on its last copy. Pure.

A copy counts when it is good: one that is still being made, has failed, or lies on a dead node would not bring anything back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from primordia.domain.copies import Blast, Holder, blast_radius
from primordia.wire.conditions import is_dead
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Node, Volume
from primordia.wire.tables import volume_protection

_GOOD = ("InSync", "Behind")


def blasts_of(nodes: Iterable[Node], volumes: Iterable[Volume]) -> dict[tuple[str, str], Blast]:
    """For each rack that holds data, by segment and name: what its loss would do."""
    nodes = list(nodes)
    places = {node.metadata.name: _holder(node) for node in nodes}
    dead = {node.metadata.name for node in nodes if is_dead(node.status.conditions)}
    found = [volume for volume in volumes if volume.status.node]
    owners = {_title(volume): _owner(volume) for volume in found}
    blasts = blast_radius({_title(volume): _holders(volume, places, dead) for volume in found})
    return {(blast.segment, blast.rack): _by_owner(blast, owners) for blast in blasts}


def blast_sentences(racks: Iterable[tuple[str, str]], blasts: Mapping[tuple[str, str], Blast]) -> list[str]:
    """One sentence for each rack that holds data, in the given order."""
    lines = []
    for place in racks:
        blast = blasts.get(place)
        if blast is None:
            continue
        lost = f" ({', '.join(blast.lost)})" if blast.lost else ""
        words = f"losing {blast.rack or 'nodes of no rack'} loses {_lifeforms(len(blast.lost))}{lost}"
        lines.append(f"{words}, {len(blast.last_copy)} would be on their last copy")
    return lines


def plain(blast: Blast | None) -> dict[str, Any]:
    """As plain values."""
    return {"lost": list(blast.lost if blast else ()), "lastCopy": list(blast.last_copy if blast else ())}


def protection_counts(volumes: Iterable[Volume]) -> dict[str, int]:
    """How many volumes are Protected, Degraded, Unprotected."""
    return dict(Counter(map(volume_protection, volumes)))


def _title(volume: Volume) -> str:
    return f"{volume.metadata.namespace}/{volume.metadata.name}"


def _owner(volume: Volume) -> str:
    """Whose data it is: a lifeform's, else its own."""
    return f"{volume.metadata.namespace}/{volume.spec.lifeform or volume.metadata.name}"


def _by_owner(blast: Blast, owners: Mapping[str, str]) -> Blast:
    """Lifeforms instead of volumes: one is lost with any of its volumes."""
    lost = {owners[each] for each in blast.lost}
    last = {owners[each] for each in blast.last_copy} - lost
    return Blast(blast.segment, blast.rack, tuple(sorted(lost)), tuple(sorted(last)))


def _holders(volume: Volume, places: Mapping[str, Holder], dead: Collection[str]) -> list[Holder]:
    """Who has the data: the owner, and every good copy that is to be there."""
    status = volume.status
    good = {copy.node for copy in status.copies if copy.state in _GOOD and copy.node in status.replicas}
    names = {status.node, *good.difference(dead)}
    return [places.get(name, Holder(name, "", "")) for name in sorted(names)]


def _holder(node: Node) -> Holder:
    labels = node.metadata.labels
    return Holder(node.metadata.name, labels.get(LABEL_SEGMENT, ""), labels.get(LABEL_RACK, ""))


def _lifeforms(count: int) -> str:
    return f"{count} lifeform{'' if count == 1 else 's'}"

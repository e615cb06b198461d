"""A lifeform and its volumes: which it has, what they are to be, and what they ask of its place. Pure.

A context with `data` has the Volume of its own name. Nothing owns that Volume: it outlives its lifeform, and one of the same
namespace and name takes it up again. All volumes of a lifeform, and it itself, say one node and one epoch, and the next
epoch is above every one that any of them has ever had: an earlier life of the lifeform may have counted further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from primordia.domain.conditions import Verdict
from primordia.domain.lifeforms import context_object_name
from primordia.kit.units import parse_bytes
from primordia.wire.meta import LABEL_CONTEXT, LABEL_LIFEFORM, ObjectMeta
from primordia.wire.resources import ContextTemplate, Lifeform, Volume
from primordia.wire.volumes import Data, VolumeSpec, VolumeStatus, owned_by

Volumes = Mapping[str, Volume]
"""The volumes that exist, of those a lifeform wants, by the name of its context."""

NO_VOLUMES: Volumes = {}


@dataclass(frozen=True)
class DataNeeds:
    """`node` has the data already (empty: there is none); `disk_bytes` are the volumes yet to be made, None without any."""

    node: str = ""
    disk_bytes: int | None = None


def templates_with_data(lifeform: Lifeform) -> dict[str, tuple[ContextTemplate, Data]]:
    """The contexts that want a volume, by name."""
    return {template.name: (template, template.data) for template in lifeform.spec.contexts if template.data is not None}


def volume_name(lifeform: Lifeform, context: str) -> str:
    """What the volume of a lifeform's context is called: as the context is."""
    return context_object_name(lifeform.metadata.name, context)


def data_needs(lifeform: Lifeform, volumes: Volumes) -> DataNeeds:
    """What the data asks of the lifeform's place. Raises ValueError for a bad quantity."""
    wanted = templates_with_data(lifeform)
    placed = {name: volume for name, volume in volumes.items() if volume.status.node}
    fresh = [parse_bytes(data.size) for name, (_, data) in wanted.items() if name not in placed]
    return DataNeeds(min((each.status.node for each in placed.values()), default=""), sum(fresh) if fresh else None)


def obstacle(lifeform: Lifeform, volumes: Volumes, gone: frozenset[str] = frozenset()) -> Verdict | None:
    """Why the lifeform cannot have its data, if it cannot. `gone` are its contexts whose volume was there and is no more."""
    for name in sorted(gone):
        message = f"Volume {volume_name(lifeform, name)}, which it ran with, is gone. Nothing is made in its place meanwhile."
        return _blocked("DataLost", f"{message} Delete the lifeform and create it anew to begin with an empty one.")
    where: dict[str, str] = {}
    for name, (_, data) in templates_with_data(lifeform).items():
        volume = volumes.get(name)
        if volume is None:
            continue
        title = f"Volume {volume.metadata.name}"
        if volume.metadata.deletion_timestamp is not None:
            return _blocked("VolumeDestroyed", f"{title} is being destroyed; a new one is made once it is gone.")
        if volume.spec.filesystem != data.filesystem:
            kinds = f"has {volume.spec.filesystem}, and contexts[{name}].data asks for {data.filesystem}"
            return _blocked("VolumeMismatch", f"{title} {kinds}. Ask for what it has, or destroy the volume.")
        if volume.status.node:
            where[volume.status.node] = title
    places = set(where) | ({lifeform.status.node} if lifeform.status.node else set())
    if where and len(places) > 1:
        said = ", ".join(f"{title} is on {node}" for node, title in sorted(where.items()))
        also = f", and the lifeform is on {lifeform.status.node}" if lifeform.status.node not in (*where, "") else ""
        return _blocked(
            "DataApart", f"Its data is not in one place: {said}{also}. A lifeform is on one node with all its data."
        )
    return None


def is_bound(lifeform: Lifeform, volumes: Volumes) -> bool:
    """Whether every volume that the lifeform wants says its node and its epoch."""
    mine = (lifeform.status.node, lifeform.status.epoch)
    return all(
        name in volumes and (volumes[name].status.node, volumes[name].status.epoch) == mine
        for name in templates_with_data(lifeform)
    )


def next_epoch(lifeform: Lifeform, volumes: Volumes) -> int:
    """The epoch of the lifeform's next binding."""
    known = [max(volume.status.epoch, volume.status.epoch_base) for volume in volumes.values()]
    return 1 + max([lifeform.status.epoch, lifeform.status.epoch_base, *known])


def epoch_to_bind(lifeform: Lifeform, volumes: Volumes) -> int:
    """The epoch in which a placed lifeform takes its volumes: its own for new ones, the next when one comes from another.

    That is a volume of an earlier life, or one that a restore has put into an epoch of its own.
    """
    same = all(volume.status.epoch == lifeform.status.epoch for volume in volumes.values() if volume.status.node)
    return lifeform.status.epoch if same else next_epoch(lifeform, volumes)


def bound_volumes(lifeform: Lifeform, volumes: Volumes, node: str, epoch: int) -> list[tuple[Volume | None, Volume]]:
    """Every volume of the lifeform as it was (None: new) and as it is when the lifeform is on that node in that epoch."""
    pairs: list[tuple[Volume | None, Volume]] = []
    for name, (template, data) in templates_with_data(lifeform).items():
        before = volumes.get(name)
        wanted = before or _new_volume(lifeform, template, data)
        status = msgspec.structs.replace(owned_by(wanted.status, node, epoch), phase="Bound")
        pairs.append((before, msgspec.structs.replace(followed(lifeform, wanted), status=status)))
    return pairs


def followed(lifeform: Lifeform, volume: Volume) -> Volume:
    """The volume with the spec that its lifeform's manifest gives it. It never becomes smaller."""
    for name, (_, data) in templates_with_data(lifeform).items():
        if volume_name(lifeform, name) == volume.metadata.name:
            spec = msgspec.structs.replace(
                volume.spec,
                size=_larger(volume.spec.size, data.size),
                lifeform=lifeform.metadata.name,
                context=name,
                replication=lifeform.spec.replication,
                snapshots=data.snapshots,
            )
            return volume if spec == volume.spec else msgspec.structs.replace(volume, spec=spec)
    return volume


def _new_volume(lifeform: Lifeform, template: ContextTemplate, data: Data) -> Volume:
    meta = lifeform.metadata
    return Volume(
        metadata=ObjectMeta(
            name=volume_name(lifeform, template.name),
            namespace=meta.namespace,
            labels={LABEL_LIFEFORM: meta.name, LABEL_CONTEXT: template.name},
        ),
        spec=VolumeSpec(size=data.size, filesystem=data.filesystem, lifeform=meta.name, context=template.name),
        status=VolumeStatus(),
    )


def _larger(one: str, other: str) -> str:
    """The larger of two quantities; the first when they are equal or cannot be read."""
    try:
        return other if parse_bytes(other) > parse_bytes(one) else one
    except ValueError:
        return one


def _blocked(reason: str, message: str) -> Verdict:
    return Verdict("Scheduled", "False", reason, message)

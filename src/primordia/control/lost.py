"""Between resources and the plan of failovers: what dead nodes left, and what taking it over makes of the objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from primordia.control.blueprint import blueprints, is_suspended, needs_of, topology
from primordia.control.data import Volumes, bound_volumes, next_epoch, templates_with_data, volume_name
from primordia.control.lifebook import Page
from primordia.control.planning import mine_of, redrawn
from primordia.control.protection import replication_of
from primordia.domain.conditions import Verdict
from primordia.domain.lost import Held, Lost, LostVolume, Taken
from primordia.domain.placement import Demand
from primordia.kit.units import parse_bytes
from primordia.registry.rules import moment
from primordia.wire.conditions import RECOVERED, merge
from primordia.wire.meta import ANNOTATION_ALLOW_LOSS, ANNOTATION_MOVE, ObjectMeta
from primordia.wire.resources import (
    Context,
    Lifeform,
    LifeformStatus,
    Moving,
    Node,
    Recovered,
    RecoveredVolume,
    Recovery,
    Resource,
    Volume,
)
from primordia.wire.volumes import LastSync, RestoredFrom, VolumeStatus, holder_finalizer, holders_of, is_tail

_DEFAULT = Recovery()
_OVER = ("Succeeded", "Failed")
_EARLIER = 16
"""Takeovers that a volume remembers beside its last."""


@dataclass(frozen=True)
class Estate:
    """A lifeform of a dead node with all that it had there, as it was read."""

    lifeform: Lifeform
    volumes: Volumes
    contexts: Mapping[str, Context]
    page: Page


def estate_dead_on(lifeform: Lifeform, volumes: Volumes) -> str:
    """The node that it is on: its own or, while it has none, that of its data; empty for none."""
    if lifeform.status.node:
        return lifeform.status.node
    return min((volume.status.node for volume in volumes.values() if volume.status.node), default="")


def is_over(lifeform: Lifeform, contexts: Mapping[str, Context]) -> bool:
    """Whether its programs have ended for good: elsewhere they would run again."""
    mine = mine_of(lifeform, contexts)
    complete = all(template.name in mine for template in lifeform.spec.contexts)
    ended = all(each.status.phase in _OVER and each.spec.epoch == lifeform.status.epoch for each in mine.values())
    return lifeform.spec.restart_policy != "Always" and bool(mine) and complete and ended and not is_suspended(lifeform)


def lost_of(estate: Estate, beside: frozenset[str] | None) -> Lost:
    """The lifeform, as the plan takes it. Raises ValueError for a manifest that cannot be read."""
    lifeform, meta = estate.lifeform, estate.lifeform.metadata
    recovery = lifeform.spec.recovery or _DEFAULT
    allowed = meta.annotations.get(ANNOTATION_ALLOW_LOSS, "") == str(lifeform.status.epoch)
    runs = not is_suspended(lifeform)
    return Lost(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        dead=estate.page.node,
        created=meta.creation_timestamp or "",
        priority=recovery.priority,
        seed=recovery.seed,
        allow_loss=recovery.allow_loss or allowed,
        runs=runs,
        demand=needs_of(lifeform, {})[0] if runs else Demand(),
        node_selector=lifeform.spec.node_selector,
        beside=beside,
        volumes=tuple(_volume_of(estate, name) for name in templates_with_data(lifeform)),
    )


def _volume_of(estate: Estate, name: str) -> LostVolume:
    lifeform, volume = estate.lifeform, estate.volumes.get(name)
    size = parse_bytes(templates_with_data(lifeform)[name][1].size)
    context = estate.contexts.get(name)
    if volume is None or not volume.status.node:
        # One that it ran with and that is gone is no new one: what was on it is lost, and that has to be allowed.
        vanished = volume is None and context is not None and bool(context.spec.volume_uid)
        return LostVolume(volume_name(lifeform, name), size, begun=vanished)
    status, replication, uid = volume.status, replication_of(volume), volume.metadata.uid
    started = context is not None and bool(context.status.started_at)
    answers = {node: each for node, each in estate.page.holdings.items() if each.life == estate.page.life}
    held = [
        Held(node, found.epoch, found.number, _wall(found.at), found.behind_s)
        for node, answer in sorted(answers.items())
        if (found := answer.volumes.get(uid)) is not None and not is_tail(status.restored_from, found.epoch, found.number)
    ]
    # The dead node says that it holds it before it makes the disk, and only later how large that is.
    holds = holder_finalizer(estate.page.node) in volume.metadata.finalizers
    begun = bool(holds or status.size_bytes or status.number or status.last_sync is not None or held or started)
    return LostVolume(
        name=volume.metadata.name,
        size_bytes=parse_bytes(volume.spec.size),
        used_bytes=status.used_bytes,
        synced=(status.last_sync.epoch, status.last_sync.number) if status.last_sync is not None else None,
        begun=begun,
        born_s=_wall(volume.metadata.creation_timestamp or ""),
        bandwidth=parse_bytes(replication.bandwidth) if replication.bandwidth else 0,
        replicas=_expected(volume, estate.page.node),
        held=tuple(held),
    )


def _expected(volume: Volume, dead: str) -> tuple[str, ...]:
    """Who should hold something of it: who is to, and who has not let go yet."""
    return tuple(
        node for node in dict.fromkeys((*volume.status.replicas, *holders_of(volume.metadata.finalizers))) if node != dead
    )


def _wall(text: str) -> float:
    """RFC 3339 as seconds; 0 for what is no time."""
    found = moment(text)
    return found.timestamp() if found is not None else 0.0


# ---------------------------------------------------------------- taking over


@dataclass(frozen=True)
class Claim:
    """Who takes over, from what and why. With `onto` the node has no room for the microVMs: they move there, data and all."""

    node: Node
    taken: Sequence[Taken]
    message: str
    onto: str = ""


def taken_over(estate: Estate, claim: Claim, nodes: Mapping[str, Node], now: str) -> list[tuple[Resource | None, Resource]]:
    """Every object as it was (None: new) and as it is when the lifeform is on that node in its next epoch; it comes first."""
    node, taken = claim.node, claim.taken
    lifeform, volumes = estate.lifeform, estate.volumes
    epoch, name = next_epoch(lifeform, volumes), node.metadata.name
    _, rack, segment = topology(node)
    parts = {each.volume: each for each in taken}
    recovered = Recovered(
        from_node=estate.page.node,
        epoch=epoch,
        at=now,
        reason="NodeDead",
        volumes=tuple(_told(each) for each in taken),
        lost_seconds=round(max((each.lost_s for each in taken), default=0.0), 3),
    )
    status = msgspec.structs.replace(
        with_recovered(lifeform, Verdict(RECOVERED, "True", "NodeDead", claim.message), now),
        node=name,
        rack=rack,
        segment=segment,
        epoch=epoch,
        phase="Suspended" if is_suspended(lifeform) else "Starting",
        recovered=recovered,
        moving=_move(claim, epoch, now),
    )
    after = msgspec.structs.replace(lifeform, status=status, metadata=_with_wish(lifeform, claim.onto))
    pairs: list[tuple[Resource | None, Resource]] = [(lifeform, after)]
    bound: dict[str, Volume] = {}
    for before, fresh in bound_volumes(after, volumes, name, epoch):
        wanted = fresh
        if before is not None:
            began = _began(before, epoch, parts.get(before.metadata.name), now)
            held = msgspec.structs.replace(_taken_status(before, fresh.status, parts, node, nodes), restored_from=began)
            wanted = msgspec.structs.replace(fresh, status=held)
        bound[wanted.spec.context] = wanted
        pairs.append((before, wanted))
    if any(before is None for before, _ in pairs):
        return pairs  # contexts name their volumes by uid: they follow by the ordinary plan
    mine = mine_of(lifeform, estate.contexts)
    for context, blueprint in blueprints(after, mine, bound).items():
        known = mine.get(context)
        if known is not None and known.metadata.deletion_timestamp is None:
            pairs.append((known, _standing(redrawn(known, blueprint)) if claim.onto else redrawn(known, blueprint)))
    return pairs


def _move(claim: Claim, epoch: int, now: str) -> Moving | None:
    """The move that begins with it; one that was under way is over."""
    if not claim.onto:
        return None
    name = claim.node.metadata.name
    return Moving(phase="Seeding", to=claim.onto, from_node=name, epoch=epoch, since=now, wish=f"node/{claim.onto}")


def _with_wish(lifeform: Lifeform, onto: str) -> ObjectMeta:
    """Whatever node it was to leave is dead; what it is to do now is said anew."""
    annotations = {key: value for key, value in lifeform.metadata.annotations.items() if key != ANNOTATION_MOVE}
    if onto:
        annotations[ANNOTATION_MOVE] = f"node/{onto}"
    return msgspec.structs.replace(lifeform.metadata, annotations=annotations)


def _standing(context: Context) -> Context:
    """The context without its microVM."""
    return msgspec.structs.replace(context, spec=msgspec.structs.replace(context.spec, wanted="Stopped"))


def with_recovered(lifeform: Lifeform, verdict: Verdict, now: str) -> LifeformStatus:
    """The lifeform's status with that word about its recovery."""
    before = lifeform.status.conditions
    mine = tuple(each for each in before if each.type == RECOVERED)
    others = tuple(each for each in before if each.type != RECOVERED)
    said = merge(mine, [verdict], now, lifeform.metadata.generation)
    return msgspec.structs.replace(lifeform.status, conditions=(*others, *said))


def _told(taken: Taken) -> RecoveredVolume:
    return RecoveredVolume(
        name=taken.volume,
        restored_from=taken.held.number if taken.held is not None else 0,
        synced_number=taken.synced_number,
        lost_seconds=round(taken.lost_s, 3),
    )


def _taken_status(
    before: Volume, status: VolumeStatus, parts: Mapping[str, Taken], owner: Node, nodes: Mapping[str, Node]
) -> VolumeStatus:
    """The volume's status under its new owner. The dead one stays a holder: it has the data, if it ever comes back."""
    taken = parts.get(before.metadata.name)
    status = msgspec.structs.replace(
        status, replicas=remaining_replicas(before, owner, nodes), copies=(), handover=None, handed_over=None
    )
    if taken is None or taken.sufficient:
        return status
    if taken.held is None:
        return msgspec.structs.replace(status, number=0, size_bytes=0, used_bytes=0, last_sync=None, checkpoints=())
    synced = LastSync(epoch=taken.held.epoch, number=taken.held.number, copies=(owner.metadata.name,))
    return msgspec.structs.replace(status, number=taken.held.number, last_sync=synced)


def _began(before: Volume, epoch: int, taken: Taken | None, now: str) -> RestoredFrom | None:
    """How the volume's epoch begins; None where there was nothing yet that could have been lost."""
    if taken is None:
        return None
    last = before.status.restored_from
    return RestoredFrom(
        epoch=epoch,
        node=before.status.node,
        number=taken.held.number if taken.held is not None else 0,
        lost_seconds=round(taken.lost_s, 3),
        allow_loss=not taken.sufficient,
        at=now,
        earlier=(*last.earlier, (last.epoch, last.number))[-_EARLIER:] if last is not None else (),
    )


def remaining_replicas(volume: Volume, owner: Node, nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """Who is still to hold copies: those that did, and the dead owner last, as far as each lies on a rack of its own (G5)."""
    taken, found = {_site(owner, volume)}, []
    for name in (*volume.status.replicas, volume.status.node):
        node = nodes.get(name)
        if name == owner.metadata.name or node is None or _site(node, volume) in taken:
            continue
        taken.add(_site(node, volume))
        found.append(name)
    wanted = len(volume.status.replicas)
    return tuple(found[:wanted])


def _site(node: Node, volume: Volume) -> tuple[str, ...]:
    _, rack, segment = topology(node)
    return (segment,) if replication_of(volume).spread == "segment" else (segment, rack)

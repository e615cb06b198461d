"""What must hold of data at every single revision: one owner, where its lifeform is, copies apart, and no end unasked."""

from __future__ import annotations

from collections.abc import Iterator

from primordia.sim.checkers import Checker
from primordia.sim.history import Moment, State
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Context, Lifeform, Node, Resource, Volume
from primordia.wire.volumes import VolumeStatus


class Owners(Checker):
    """A volume goes nowhere but where all of it has been handed over to, in a later epoch; its epoch never falls, and contexts
    that have it are of its node and no later epoch."""

    def judge(self, moment: Moment) -> Iterator[str]:
        for move in moment.moves:
            if isinstance(move.old, Volume) and isinstance(move.new, Volume):
                yield from _judge_volume(move.old, move.new)
            elif isinstance(move.new, Context) and move.new.spec.volume and not _same_spec(move.old, move.new):
                volume = moment.state.volumes.get(move.new.spec.volume_uid)
                if volume is not None and move.new.spec.node != volume.status.node:
                    yield f"{move.new.metadata.name} is on {move.new.spec.node}, and its data on {volume.status.node}."
                elif volume is not None and move.new.spec.epoch > volume.status.epoch:
                    yield f"{move.new.metadata.name} is ahead of its data: epoch {move.new.spec.epoch}."


class Together(Checker):
    """A lifeform comes to a node with all its data, in one epoch that is above all that its data has seen."""

    def judge(self, moment: Moment) -> Iterator[str]:
        before = {move.old.metadata.name: move.old for move in moment.moves if isinstance(move.old, Volume)}
        for move in moment.moves:
            old, new = move.old, move.new
            if not isinstance(new, Lifeform) or not new.status.node:
                continue
            was = (old.status.node, old.status.epoch) if isinstance(old, Lifeform) else ("", 0)
            if was != (new.status.node, new.status.epoch):
                yield from _judge_binding(new, moment.state, before)


class Copies(Checker):
    """No two holders of a volume are on one rack, and none is of no rack. Judged when the copies are chosen."""

    def judge(self, moment: Moment) -> Iterator[str]:
        for move in moment.moves:
            old, new = move.old, move.new
            if isinstance(new, Volume) and _chooses(old, new):
                names = [
                    new.status.node,
                    *(name for name in new.status.replicas if name not in _destination(new, moment.state)),
                ]
                racks = [_rack(node) for name in names if (node := moment.state.nodes.get(name)) is not None]
                if new.status.replicas and (len(set(racks)) < len(racks) or ("", "") in racks):
                    yield f"{new.metadata.name} is on {', '.join(names)}: {racks}."


class Kept(Checker):
    """A volume goes only after somebody asked for its end, and what has become of its lifeform does not ask."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()
        """Uids of the volumes whose end users asked for."""

    def judge(self, moment: Moment) -> Iterator[str]:
        for move in moment.moves:
            about = move.either
            if not isinstance(about, Volume) or about.metadata.uid in self.asked:
                continue
            if move.new is None or about.metadata.deletion_timestamp is not None:
                yield f"{about.metadata.name} is deleted, and nobody asked for that."


def _judge_volume(old: Volume, new: Volume) -> Iterator[str]:
    before, after = old.status, new.status
    if old.metadata.uid != new.metadata.uid:
        return
    if before.node and after.node != before.node and not _handed_over(before, after):
        yield f"{new.metadata.name} went from {before.node} to {after.node or 'nowhere'}."
    if after.epoch < before.epoch:
        yield f"The epoch of {new.metadata.name} fell from {before.epoch} to {after.epoch}."


def _same_spec(old: Resource | None, new: Context) -> bool:
    """Whether only its node has said something: it may, of one that is stopped and about to be bound elsewhere."""
    return isinstance(old, Context) and old.spec == new.spec


def _handed_over(before: VolumeStatus, after: VolumeStatus) -> bool:
    handed, asked = before.handed_over, before.handover
    done = handed is not None and asked is not None and (handed.to, handed.at) == (asked.to, asked.at)
    return done and asked is not None and asked.to == after.node and after.epoch > before.epoch


def _judge_binding(lifeform: Lifeform, state: State, before: dict[str, Volume]) -> Iterator[str]:
    name, status = lifeform.metadata.name, lifeform.status
    for template in lifeform.spec.contexts:
        if template.data is None:
            continue
        volume = state.volume_named(f"{name}.{template.name}")
        if volume is None or (volume.status.node, volume.status.epoch) != (status.node, status.epoch):
            where = "is not there" if volume is None else f"is on {volume.status.node} in epoch {volume.status.epoch}"
            yield f"{name} is on {status.node} in epoch {status.epoch}, and the data of {template.name} {where}."
        elif (known := before.get(volume.metadata.name)) is not None and known.status.epoch >= status.epoch:
            yield f"{name} takes its data in epoch {status.epoch}, which that has seen."


def _chooses(old: Resource | None, new: Volume) -> bool:
    """Whether its copies were chosen; with another owner they are the old ones, until the next look."""
    before = old.status if isinstance(old, Volume) else VolumeStatus()
    return before.replicas != new.status.replicas and before.node in ("", new.status.node)


def _destination(volume: Volume, state: State) -> tuple[str, ...]:
    """Where its lifeform is being moved: the copy there is no copy for long."""
    name = volume.metadata.name.rpartition(".")[0]
    moving = [each.status.moving for each in state.lifeforms.values() if each.metadata.name == name]
    return tuple(each.to for each in moving if each is not None)


def _rack(node: Node) -> tuple[str, str]:
    labels = node.metadata.labels
    return labels.get(LABEL_SEGMENT, ""), labels.get(LABEL_RACK, "")

"""What must hold of a soup whose machines died, once all of them are back and nothing changes any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from primordia.sim.checkers import is_ready
from primordia.sim.history import Moment, State
from primordia.sim.survival.contents import Content, Contents
from primordia.sim.survival.machine import Machine
from primordia.sim.survival.pool import SimVolume
from primordia.sim.survival.process import true_s
from primordia.wire.resources import Context, Event, Lifeform, Resource, Volume

_DEFAULT_MIRROR = 1
_LATEST_S = 30.0


class Quiet:
    """When something changed last that matters: what the owners tell of their snapshots goes on for ever."""

    def __init__(self) -> None:
        self.last_s = 0.0
        self.last = ""

    def seen(self, moment: Moment) -> None:
        """One revision has come to be."""
        for move in moment.moves:
            if not isinstance(move.either, Event) and _gist(move.old) != _gist(move.new):
                self.last_s = moment.time_s
                self.last = f"{move.either.metadata.name} at {moment.time_s:.1f} s"


def _gist(resource: Resource | None) -> object:
    if resource is None:
        return None
    if isinstance(resource, Volume):
        volume = resource.status
        return resource.spec, volume.node, volume.epoch, volume.replicas, volume.phase, resource.metadata.finalizers
    status = getattr(resource, "status", None)
    return msgspec.structs.replace(resource.metadata, resource_version=""), getattr(resource, "spec", None), status


def problems_at_rest(state: State, machines: Mapping[str, Machine], contents: Contents) -> Iterator[tuple[str, str]]:
    """What is wrong, as a checker's name and a sentence."""
    for name, machine in sorted(machines.items()):
        node = state.nodes[name]
        if not is_ready(node):
            yield "Recovery", f"{name} is back, and not ready: {node.status.conditions}."
        if machine.frozen:
            yield "Recovery", f"The microVMs of {name} are frozen, and nothing is wrong."
    for lifeform in sorted(state.lifeforms.values(), key=lambda each: each.metadata.name):
        yield from _runs(lifeform, state, machines)
    for context in state.all_contexts():
        if context.spec.lifeform_uid not in state.lifeforms:
            yield "Orphans", f"{context.metadata.name} outlived its lifeform."
    yield from _strays(state, machines)
    for volume in sorted(state.volumes.values(), key=lambda each: each.metadata.name):
        yield from _protected(volume, state, machines, contents)


def _runs(lifeform: Lifeform, state: State, machines: Mapping[str, Machine]) -> Iterator[tuple[str, str]]:
    """Everything that can run runs; everything else says why not."""
    name = lifeform.metadata.name
    if lifeform.metadata.deletion_timestamp is not None:
        yield "Deletion", f"{name} is still being deleted."
        return
    if lifeform.spec.operating_mode == "Suspended":
        return
    contexts = {context.spec.template.name: context for context in state.contexts_of(lifeform.metadata.uid)}
    missing = [template.name for template in lifeform.spec.contexts if not _is_running(contexts.get(template.name), machines)]
    missing = [each for each in missing if not _has_rotted(contexts.get(each), machines)]
    if missing and not _says_why(lifeform):
        phases = {each: contexts[each].status.phase if each in contexts else "absent" for each in missing}
        yield "Recovery", f"{name} on {lifeform.status.node or 'no node'} does not run, and does not say why: {phases}."


def _is_running(context: Context | None, machines: Mapping[str, Machine]) -> bool:
    if context is None or context.status.phase != "Running":
        return False
    vm = machines[context.spec.node].vms.get(context.metadata.uid)
    return vm is not None and vm.epoch == context.spec.epoch and machines[context.spec.node].writes(vm)


def _has_rotted(context: Context | None, machines: Mapping[str, Machine]) -> bool:
    """Whether the copy that it is to start from rotted after it had been chosen: no start is right before that is found."""
    if context is None or not context.spec.volume_uid:
        return False
    copy = machines[context.spec.node].shelf.volumes.get(context.spec.volume_uid)
    return copy is not None and copy.head is None and bool(copy.rotted)


def _says_why(lifeform: Lifeform) -> bool:
    """Some condition that is not true has a reason and a sentence of its own, about the present."""
    return any(
        each.status == "False" and each.type in ("Scheduled", "Recovered", "Parked") and each.message
        for each in lifeform.status.conditions
    )


def _strays(state: State, machines: Mapping[str, Machine]) -> Iterator[tuple[str, str]]:
    bound = {context.metadata.uid: context.spec.node for context in state.all_contexts()}
    for name, machine in sorted(machines.items()):
        for uid, vm in machine.vms.items():
            if bound.get(uid) != name:
                yield "Strays", f"A microVM of {vm.name} runs on {name}, and its context is on {bound.get(uid) or 'no node'}."


def _protected(volume: Volume, state: State, machines: Mapping[str, Machine], contents: Contents) -> Iterator[tuple[str, str]]:
    """As many copies as are wanted, on racks of their own, each with the last sync."""
    name, status, uid = volume.metadata.name, volume.status, volume.metadata.uid
    if volume.metadata.deletion_timestamp is not None or not status.node or not (status.size_bytes or status.number):
        return
    mirror = volume.spec.replication.layout.mirror if volume.spec.replication is not None else None
    wanted = _DEFAULT_MIRROR if mirror is None else mirror
    racks = {machine.rack for machine in machines.values()}
    if len(status.replicas) < min(wanted, len(racks) - 1):
        yield "Protection", f"{name} has copies on {', '.join(status.replicas) or 'no node'}, and asks for {wanted}."
    goals = [
        each.status.moving.to
        for each in state.lifeforms.values()
        if each.status.moving and name.startswith(f"{each.metadata.name}.")
    ]
    held = [machines[node].rack for node in (status.node, *status.replicas) if node not in goals]
    if len(set(held)) < len(held):
        yield "Protection", f"{name} is on {', '.join((status.node, *status.replicas))}, of which two are on one rack."
    owner = machines[status.node].shelf.volumes.get(uid)
    if owner is None or owner.head is None:
        return
    for node in status.replicas:
        copy = machines[node].shelf.volumes.get(uid)
        if copy is None or copy.newest is None or copy.newest.number in copy.bad:
            yield "Protection", f"{name} is to have a copy on {node}, and there is none that is whole."
        elif any(not contents.of(copy.newest.root).has(each) for each in _of_old(owner, contents)):
            yield "Protection", f"The copy of {name} on {node} has not got what {status.node} cut long ago."
        elif not owner.head.has(contents.of(copy.newest.root)):
            yield "Protection", f"The copy of {name} on {node} is of another line than its disk on {status.node}."


def _of_old(owner: SimVolume, contents: Contents) -> list[Content]:
    """What the owner has had in snapshots for so long that every copy has it."""
    cut = [contents.of(each.root) for each in owner.snapshots]
    return [each for each in cut if each.at_s < true_s() - _LATEST_S]

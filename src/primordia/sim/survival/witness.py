"""The outside witness: it sees every write, every start and every promise as they are, and says which of them must not be.

It shares no code with what it watches. What it takes for granted is only what the world itself knows: who writes when, which
content a disk, a snapshot or a copy has, and when who could act.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from primordia.domain.snapshots import Manifest
from primordia.sim.checkers import Checker, Violation
from primordia.sim.history import Moment
from primordia.sim.survival.contents import Content, Contents
from primordia.sim.survival.machine import Machine, Vm
from primordia.sim.survival.process import true_s
from primordia.wire.resources import Lifeform, Volume

_GRAIN_S = 1.0
"""The engine tells what is left of a lease in whole seconds, and so nobody can tell a loss any better."""


@dataclass(frozen=True)
class Promise:
    """A sync that was recorded: its content, and the nodes that are said to have it."""

    number: int
    content: Content
    nodes: tuple[str, ...]
    at_s: float


@dataclass(frozen=True)
class Left:
    """What a dead node had on a disk when it was taken over: the last cut's content, and what was written since. In `stood`
    the whole machine stood and then went on, for the moment that its fence takes; the time between is nobody's loss."""

    head: Content
    dirty_s: float | None
    written_s: float
    stood: tuple[tuple[float, float], ...] = ()

    def lost_s(self, restored: Content) -> float:
        """The time from the first write that is not in `restored` to the last of all, in which it could be written."""
        first_s, last_s, at = self.dirty_s, max(self.written_s, self.head.at_s), self.head
        while at is not restored and at.parent is not None:
            first_s, at = at.since_s, at.parent
        if at is not restored:
            first_s = restored.at_s if restored.parent is not None else at.at_s
        if first_s is None or last_s <= first_s:
            return 0.0
        stood_s = sum(max(0.0, min(last_s, until_s) - max(first_s, from_s)) for from_s, until_s in self.stood)
        return last_s - first_s - stood_s


class SimWitness(Checker):
    """`machines` are filled in by the world, as is `loss_allowed`: uids of lifeforms that may start with less."""

    def __init__(self, contents: Contents) -> None:
        super().__init__()
        self.machines: dict[str, Machine] = {}
        self.loss_allowed: set[str] = set()
        self.overlaps_excused = 0
        self.takeovers = 0
        self.losses = 0
        self.promises = 0
        self._contents = contents
        self._cuts: dict[tuple[str, int, int], Content] = {}
        self._promises: dict[str, list[Promise]] = defaultdict(list)
        self._first_start_s: dict[tuple[str, int], float] = {}
        self._accepted_epoch: dict[tuple[str, str], int] = defaultdict(int)
        self._began: dict[str, list[tuple[int, Content]]] = defaultdict(list)
        self._left: dict[tuple[str, int], dict[str, Left]] = {}
        self._given_up: dict[str, int] = {}
        self._lifeforms: dict[str, Lifeform] = {}
        self._volumes: dict[str, Volume] = {}
        self._revision = 0

    def say(self, checker: str, message: str) -> None:
        """Something that must never be."""
        self.violations.append(Violation(checker, true_s(), self._revision, message))

    # ------------------------------------------------------------ what the machines tell

    def runs(self, machine: Machine, vm: Vm) -> None:
        """G1: nobody else writes for the same context of the same lifeform."""
        for other in self.machines.values():
            for rival in other.vms.values():
                if rival is vm or (rival.lifeform_uid, rival.name) != (vm.lifeform_uid, vm.name) or not other.writes(rival):
                    continue
                late = machine if vm.epoch < rival.epoch else other
                if self._cannot_act(late):
                    self.overlaps_excused += 1
                else:
                    self.say(
                        "G1",
                        f"{vm.name} writes on {machine.name} in epoch {vm.epoch}, and on {other.name} in epoch {rival.epoch}.",
                    )

    def started(self, machine: Machine, vm: Vm) -> None:
        """G2 and G4: what it starts with has all that was promised, or the loss was allowed; and what is told of it is true."""
        if not vm.volume_uid:
            return
        key = vm.volume_uid, vm.epoch
        first = key not in self._first_start_s
        self._first_start_s.setdefault(key, true_s())
        disk = machine.shelf.volumes.get(vm.volume_uid)
        if disk is None or disk.head is None:
            self.say("G2", f"{vm.name} was started on {machine.name} without its disk.")
            return
        if first:
            self._judge_content(machine, vm, disk.head)
            self._judge_line(machine, vm, disk.head)
            self._judge_recovered(machine, vm, disk.head)

    def crashed(self, machine: Machine, error: Exception) -> None:
        """No fault of the world is one of these."""
        self.say("Crash", f"The daemon of {machine.name} ended: {_innermost(error)!r}.")

    def cut(self, machine: Machine, uid: str, manifest: Manifest) -> None:
        """A snapshot: what its number stands for."""
        self._cuts[uid, manifest.epoch, manifest.number] = self._contents.of(manifest.root)

    def accepted(self, machine: Machine, uid: str, manifest: Manifest) -> None:
        """G1: a replica takes nothing of an epoch that is older than one it has taken; no late writes at all."""
        key = machine.name, uid
        if manifest.epoch < self._accepted_epoch[key]:
            self.say("G1", f"{machine.name} took a delta of epoch {manifest.epoch} after {self._accepted_epoch[key]}.")
        self._accepted_epoch[key] = max(self._accepted_epoch[key], manifest.epoch)
        self._want_timely(uid, self._contents.of(manifest.root), f"{machine.name} took a delta")

    # ------------------------------------------------------------ what the registry tells

    def judge(self, moment: Moment) -> Iterator[str]:
        """G2: a sync that is recorded is where it says, and in what its volume is."""
        self._revision = moment.revision
        for move in moment.moves:
            about = move.either
            if isinstance(about, Lifeform):
                if isinstance(move.new, Lifeform):
                    self._lifeforms[about.metadata.uid] = move.new
                    self._note_recovery(move.new)
            elif isinstance(about, Volume):
                uid = about.metadata.uid
                if not isinstance(move.new, Volume):
                    self._volumes.pop(uid, None)
                    self._promises.pop(uid, None)
                    continue
                self._volumes[uid] = move.new
                old = move.old.status if isinstance(move.old, Volume) else move.new.status
                # With another owner it is not a sync, but what is left of one where a loss was allowed.
                if old.node == move.new.status.node and move.new.status.last_sync not in (None, old.last_sync):
                    self._record(move.new)
        yield from ()

    def _note_recovery(self, lifeform: Lifeform) -> None:
        """When the dead node wrote last, as of the takeover."""
        recovered, uid = lifeform.status.recovered, lifeform.metadata.uid
        if recovered is None or (uid, recovered.epoch) in self._left:
            return
        machine = self.machines[recovered.from_node]
        machine.settle()
        names = {f"{lifeform.metadata.name}.{each.name}" for each in lifeform.spec.contexts}
        uids = [volume.metadata.uid for volume in self._volumes.values() if volume.metadata.name in names]
        if uid in self.loss_allowed:  # the lifeform may be deleted before it starts, and another adopt its volume
            self._given_up.update(dict.fromkeys(uids, recovered.epoch))
        held = {each: machine.shelf.volumes[each] for each in uids if each in machine.shelf.volumes}
        stood = tuple(machine.stood)
        self._left[uid, recovered.epoch] = {
            each: Left(disk.head, disk.dirty_s, disk.written_s, stood) for each, disk in held.items() if disk.head is not None
        }

    def _record(self, volume: Volume) -> None:
        synced, name, uid = volume.status.last_sync, volume.metadata.name, volume.metadata.uid
        assert synced is not None
        content = self._cuts.get((uid, synced.epoch, synced.number))
        if content is None:
            self.say("G2", f"A sync of {name} names snapshot {synced.number} of epoch {synced.epoch}, which was never cut.")
            return
        self._want_timely(uid, content, f"A sync of {name} was recorded")
        self.promises += 1
        self._promises[uid].append(Promise(synced.number, content, synced.copies, true_s()))
        replication = volume.spec.replication
        acks = replication.acks if replication is not None else 1
        owner = self.machines[volume.status.node]
        racks = {self.machines[node].rack for node in synced.copies} - {owner.rack}
        # What is recorded with a hand-over nobody has asked for as a sync, and it returns to nobody.
        handed = volume.status.handed_over
        if len(racks) < acks and (handed is None or handed.number != synced.number):
            where = ", ".join(synced.copies) or "no node"
            self.say("G2", f"A sync of {name} was recorded with copies on {where}, and asks for {acks}.")
        for node in (volume.status.node, *synced.copies):
            held = self.machines[node].shelf.volumes.get(uid)
            if not self._holds(node, uid, content) and (held is None or synced.number not in held.rotted):
                self.say("G2", f"A sync of {name} was recorded with snapshot {synced.number}, and {node} has not got it.")

    # ------------------------------------------------------------ judging

    def _want_timely(self, uid: str, content: Content, what: str) -> None:
        """No write of an epoch may count after the first start of a later one."""
        for (other, epoch), at_s in self._first_start_s.items():
            if other == uid and epoch > content.epoch and content.at_s > at_s:
                self.say(
                    "G1", f"{what} with writes of epoch {content.epoch}, made {content.at_s - at_s:.2f} s after {epoch} began."
                )

    def _judge_content(self, machine: Machine, vm: Vm, head: Content) -> None:
        lost = [each for each in self._promises[vm.volume_uid] if not head.has(each.content)]
        if not lost:
            return
        survivors = sorted({node for each in lost for node in self._survivors(vm.volume_uid, each)})
        words = f"{vm.name} starts on {machine.name} in epoch {vm.epoch} without sync {lost[-1].number}"
        given_up = all(each.content.epoch < self._given_up.get(vm.volume_uid, 0) for each in lost)
        if vm.lifeform_uid in self.loss_allowed or given_up:
            self.losses += 1
            self._promises[vm.volume_uid] = [each for each in self._promises[vm.volume_uid] if head.has(each.content)]
        elif survivors:
            self.say("G2", f"{words}, which {', '.join(survivors)} has.")
        else:
            self.say("G4", f"{words}, and no loss was allowed.")

    def _judge_line(self, machine: Machine, vm: Vm, head: Content) -> None:
        """What an epoch went on without, and was said to be lost, must not come back in a later one."""
        for epoch, began in self._began[vm.volume_uid]:
            before: Content | None = head
            while before is not None and before.epoch >= epoch:
                before = before.parent
            if before is not None and not began.has(before):
                self.say("G4", f"{vm.name} starts on {machine.name} with writes that epoch {epoch} had gone on without.")
        self._began[vm.volume_uid].append((vm.epoch, head))

    def _judge_recovered(self, machine: Machine, vm: Vm, head: Content) -> None:
        """What the status says of a takeover must be so: from which snapshot, and at least how much was lost."""
        lifeform, volume = self._lifeforms.get(vm.lifeform_uid), self._volumes.get(vm.volume_uid)
        if lifeform is None or volume is None:
            return
        recovered = lifeform.status.recovered
        if recovered is None or recovered.epoch != vm.epoch:
            return
        self.takeovers += 1
        told = next((each for each in recovered.volumes if each.name in (volume.metadata.name, vm.name)), None)
        left = self._left.get((vm.lifeform_uid, vm.epoch), {}).get(vm.volume_uid)
        if told is None and left is None:
            return  # it had no disk yet
        if told is None:
            self.say("G4", f"{vm.name} was recovered, and its status says nothing of {volume.metadata.name}.")
            return
        disk = machine.shelf.volumes[vm.volume_uid]
        if not self._is_snapshot(vm, told.restored_from, head) and told.restored_from not in disk.rotted:
            newest = disk.newest
            number = newest.number if newest is not None else 0
            self.say("G4", f"{vm.name} starts from snapshot {number}, and its status says {told.restored_from}.")
        lost_s = left.lost_s(head) if left is not None else 0.0
        if told.lost_seconds < lost_s - _GRAIN_S or recovered.lost_seconds < told.lost_seconds - 0.001:
            self.say("G4", f"{vm.name} lost {lost_s:.2f} s, and its status says {told.lost_seconds:.2f}.")

    # ------------------------------------------------------------ what is true

    def _is_snapshot(self, vm: Vm, number: int, head: Content) -> bool:
        """Whether the content has all of a snapshot of this number, of an epoch before; 0 is an empty disk.

        It may have more: what the dead owner had sent may come after the copy's node has said what it holds.
        """
        if not number:
            return head.parent is None and head.epoch == vm.epoch
        return any(
            head.has(content) and (uid, cut) == (vm.volume_uid, number) and epoch < vm.epoch
            for (uid, epoch, cut), content in self._cuts.items()
        )

    def _cannot_act(self, machine: Machine) -> bool:
        """Whether nobody on the machine could have stopped its microVMs by now: all of it stood until a moment ago."""
        return true_s() < machine.excused_until_s

    def _survivors(self, uid: str, promise: Promise) -> Iterable[str]:
        return [node for node in promise.nodes if self._holds(node, uid, promise.content, whole=True)]

    def _holds(self, node: str, uid: str, content: Content, *, whole: bool = False) -> bool:
        """Whether it is there; `whole`: and can be read."""
        volume = self.machines[node].shelf.volumes.get(uid)
        if volume is None:
            return False
        kept = any(self._contents.of(each.root).has(content) for each in volume.kept(rotten=not whole))
        return kept or (volume.head is not None and volume.head.has(content))


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

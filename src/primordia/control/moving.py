"""Carries out what `domain/moving.py` decides: a lifeform goes to another node by request, and says how that goes.

The wish is an annotation, the move a part of the status; both change in one transaction. Contexts are stopped and started
by the ordinary plan, from what the status says. The hand-over itself is one transaction: it compares the lifeform, its volumes
and every context it can have with what was read, and writes node and epoch of all, with the owner key.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from primordia.control.blueprint import is_suspended, needs_of, topology
from primordia.control.data import Volumes, bound_volumes, next_epoch
from primordia.control.planning import is_mine, mine_of
from primordia.control.scheduler import Key, Scheduler
from primordia.domain.lifeforms import context_object_name
from primordia.domain.moving import (
    Choose,
    Done,
    Enter,
    GiveUp,
    HandOver,
    Move,
    Nothing,
    Step,
    View,
    Wait,
    decide,
    read_destination,
)
from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError
from primordia.kit.units import parse_bytes
from primordia.ports.store import Compare, Put
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.keys import key_of
from primordia.registry.ownership import owner_put
from primordia.registry.registry import Registry, unchanged
from primordia.registry.rules import timestamp
from primordia.registry.together import Pair, write_together
from primordia.wire.conditions import find, is_silent
from primordia.wire.meta import ANNOTATION_MOVE, ObjectMeta
from primordia.wire.resources import Context, Lifeform, LifeformStatus, Moved, Moving, Node, Recovered, Volume
from primordia.wire.volumes import Handover

log = logging.getLogger(__name__)

_LONGEST_WALK = 6
_HAND_OVER_S = 60.0
"""So long, besides its grace, a lifeform may stand still before the move is given up."""
_OVER = ("Succeeded", "Failed")


class Mover:
    """Moves lifeforms. `again` wants another look at one, in that many seconds."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        scheduler: Scheduler,
        events: EventRecorder,
        clock: Clock,
        again: Callable[[Key, float], None],
    ) -> None:
        self._registry = registry
        self._lifeforms = informers.of(Lifeform)
        self._volumes = informers.of(Volume)
        self._nodes = informers.of(Node)
        self._scheduler = scheduler
        self._events = events
        self._clock = clock
        self._again = again

    async def step(self, lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes) -> Lifeform:
        """Go on as far as can be gone now; the lifeform as it then is. Raises ConflictError when the caches are behind."""
        move = move_of(lifeform)
        if move is None or move.phase == "Starting":
            self._scheduler.stay(lifeform)  # whatever was promised when nobody knew what came of it
        if lifeform.status.moving is None and ANNOTATION_MOVE not in lifeform.metadata.annotations:
            return lifeform
        for _ in range(_LONGEST_WALK):
            step = decide(self._view(lifeform, contexts, volumes), move_of(lifeform))
            changed = await self._take(lifeform, step, contexts, volumes)
            if changed is lifeform:
                break
            lifeform = changed
            found = {name: self._volumes.get(each.metadata.name, each.metadata.namespace) for name, each in volumes.items()}
            volumes = {name: each for name, each in found.items() if each is not None}
        return lifeform

    async def _take(self, lifeform: Lifeform, step: Step, contexts: Mapping[str, Context], volumes: Volumes) -> Lifeform:
        if isinstance(step, Nothing):
            return lifeform
        if isinstance(step, Wait):
            return await self._wait(lifeform, step.message)
        if isinstance(step, Choose):
            return await self._begin(lifeform, contexts, volumes)
        if isinstance(step, Enter):
            return await self._enter(lifeform, step, volumes)
        if isinstance(step, HandOver):
            return await self._hand_over(lifeform, contexts, volumes)
        if isinstance(step, GiveUp):
            return await self._give_up(lifeform, step.message, volumes)
        return await self._finish(lifeform, step)

    # ------------------------------------------------------------ what is known

    def _view(self, lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes) -> View:
        status, mine = lifeform.status, mine_of(lifeform, contexts)
        wish = lifeform.metadata.annotations.get(ANNOTATION_MOVE, "")
        move, moving = move_of(lifeform), status.moving
        view = View(
            status.node,
            status.epoch,
            wish=bool(wish),
            deleting=lifeform.metadata.deletion_timestamp is not None,
            rooted=rooted(lifeform, mine) or refused(lifeform, mine),
        )
        if move is None or moving is None:
            return view
        if move.phase == "Starting":
            return dataclasses.replace(view, starting=starting(lifeform, mine))
        runs = running(mine)
        return dataclasses.replace(
            view,
            wish=wish == moving.wish,
            lacks=self._lacks(lifeform, mine, move.to) or (refused(lifeform, mine) if move.phase == "Seeding" else ""),
            # Who stands still already waits for no preparations: they are there to keep the standing short.
            unseeded=unseeded(volumes, move.to) or (runs and unexpected(lifeform, mine, self._nodes.get(move.to))),
            running=runs or self._silence(move.source, mine),
            unhanded=unhanded(volumes, moving),
            overdue=self._overdue(lifeform, moving),
        )

    def _lacks(self, lifeform: Lifeform, mine: Mapping[str, Context], target: str) -> str:
        """Why the target will not do: it has not got what the manifest asks for, or that cannot be read."""
        try:
            return self._scheduler.lacks_elsewhere(lifeform, needs_of(lifeform, mine)[0], target)
        except ValueError as error:
            return _unreadable(error)

    def _silence(self, source: str, mine: Mapping[str, Context]) -> str:
        """Why nothing is known of what runs at a silent source."""
        node = self._nodes.get(source)
        return f"node {source} does not answer" if mine and node is not None and is_silent(node.status.conditions) else ""

    def _overdue(self, lifeform: Lifeform, moving: Moving) -> str:
        if not moving.stopped_at:
            return ""
        stood_s = (self._clock.wall() - datetime.datetime.fromisoformat(moving.stopped_at)).total_seconds()
        most_s = _HAND_OVER_S + lifeform.spec.termination_grace_period_seconds
        if stood_s < most_s:
            self._again((lifeform.metadata.namespace, lifeform.metadata.name), most_s - stood_s + 0.1)
            return ""
        return f"it has stood still for {stood_s:.0f} s"

    # ------------------------------------------------------------ the steps

    async def _begin(self, lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes) -> Lifeform:
        wish = lifeform.metadata.annotations[ANNOTATION_MOVE]
        to = read_destination(wish)
        if to is None:
            words = f"{wish[:80]!r} is no node/NAME, rack/NAME, segment/NAME or elsewhere"
            return await self._give_up(lifeform, words, volumes)
        try:
            demand = needs_of(lifeform, mine_of(lifeform, contexts))[0]
        except ValueError as error:
            return await self._give_up(lifeform, _unreadable(error), volumes)
        placement = self._scheduler.choose_elsewhere(lifeform, demand, to, _room(volumes), holders(volumes))
        if not placement.node:
            return await self._give_up(lifeform, placement.message.rstrip("."), volumes)
        status = lifeform.status
        moving = Moving(
            phase="Seeding", to=placement.node, from_node=status.node, epoch=status.epoch, since=self._now(), wish=wish
        )
        try:
            begun = await self._write(lifeform, moving)
        except PrimordiaError:
            self._scheduler.give_up_for_the_gone(lifeform)
            raise
        self._events.record(begun, "MoveBegun", f"From {status.node} to {placement.node}: {placement.message}")
        return begun

    async def _wait(self, lifeform: Lifeform, message: str) -> Lifeform:
        moving = lifeform.status.moving
        assert moving is not None
        if moving.message == message:
            return lifeform
        return await self._write(lifeform, msgspec.structs.replace(moving, message=message))

    async def _enter(self, lifeform: Lifeform, step: Enter, volumes: Volumes) -> Lifeform:
        moving = lifeform.status.moving
        assert moving is not None
        moving = msgspec.structs.replace(moving, phase=step.phase, message="")
        if step.phase == "Stopping":
            log.info("%s: it stops, to be moved to %s", lifeform.metadata.name, moving.to)
            return await self._write(lifeform, msgspec.structs.replace(moving, stopped_at=self._clock.wall().isoformat()))
        # Nothing is said to its volumes before the registry itself shows that no context of it runs.
        handover = Handover(to=moving.to, epoch=moving.epoch, at=moving.stopped_at)
        pairs = [(volume, _with_status(volume, handover=handover, handed_over=None)) for volume in volumes.values()]
        return await self._write(lifeform, moving, pairs, guards=await self._fences(lifeform))

    async def _hand_over(self, lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes) -> Lifeform:
        moving, before = lifeform.status.moving, lifeform.status
        assert moving is not None
        node, epoch = self._nodes.get(moving.to), next_epoch(lifeform, volumes)
        _, rack, segment = topology(node) if node is not None else ("", "", "")
        placed = msgspec.structs.replace(
            lifeform,
            metadata=_without_wish(lifeform, moving.wish),
            status=msgspec.structs.replace(
                before,
                node=moving.to,
                rack=rack,
                segment=segment,
                epoch=epoch,
                moving=msgspec.structs.replace(moving, phase="Starting", epoch=epoch, message=""),
                recovered=recovered_onwards(before, mine_of(lifeform, contexts), epoch),
            ),
        )
        source = self._nodes.get(before.node)
        leaving = source is not None and source.spec.evacuating
        pairs: list[Pair] = [
            (old, _handed(new, before.node, moving.to, leaving=leaving))
            for old, new in bound_volumes(placed, volumes, moving.to, epoch)
        ]
        owner = owner_put(lifeform.metadata.uid, moving.to, epoch)
        written = await self._write_all([(lifeform, placed), *pairs], await self._fences(lifeform), [owner])
        self._scheduler.arrive(written, needs_of(written, mine_of(written, contexts))[0])
        log.info("%s: handed over from %s to %s, epoch %d", lifeform.metadata.name, before.node, moving.to, epoch)
        return written

    async def _give_up(self, lifeform: Lifeform, why: str, volumes: Volumes) -> Lifeform:
        """It stays, and whatever was told to stop goes on."""
        moving = lifeform.status.moving
        now = moving is not None and moving.phase != "GivenUp"
        wish = lifeform.metadata.annotations.get(ANNOTATION_MOVE, "")
        before = moving if now and moving is not None else Moving(phase="GivenUp", from_node=lifeform.status.node, wish=wish)
        given_up = msgspec.structs.replace(before, phase="GivenUp", message=f"It stays where it is: {why}.")
        pairs = [(volume, _with_status(volume, handover=None)) for volume in volumes.values() if volume.status.handover]
        if begun_by_failover(lifeform):
            # It cannot stay, for want of room: any other place will do.
            anew = msgspec.structs.replace(lifeform, metadata=_with_wish(lifeform, "elsewhere"))
            anew = msgspec.structs.replace(anew, status=msgspec.structs.replace(anew.status, moving=None))
            written = await self._write_all([(lifeform, anew), *pairs], ())
        else:
            written = await self._write(lifeform, given_up, pairs, wish=before.wish)
        self._scheduler.stay(lifeform)
        self._events.record(written, "MoveGivenUp", given_up.message, warning=True)
        return written

    async def _finish(self, lifeform: Lifeform, step: Done) -> Lifeform:
        moving = lifeform.status.moving
        assert moving is not None
        status = msgspec.structs.replace(lifeform.status, moving=None)
        self._scheduler.stay(lifeform)
        if step.void:
            return await self._write_status(lifeform, status)
        blackout_s = 0.0
        if moving.stopped_at and not is_suspended(lifeform):
            now = self._clock.wall()
            blackout_s = max(0.0, (now - datetime.datetime.fromisoformat(moving.stopped_at)).total_seconds())
        moved = Moved(
            from_node=moving.from_node, to=moving.to, at=self._now(), epoch=moving.epoch, blackout_seconds=round(blackout_s, 3)
        )
        written = await self._write_status(lifeform, msgspec.structs.replace(status, moved=moved))
        words = f"From {moved.from_node} to {moved.to}, epoch {moved.epoch}: it stood still for {blackout_s:.2f} s."
        self._events.record(written, "Moved", words)
        return written

    # ------------------------------------------------------------ writing

    async def _fences(self, lifeform: Lifeform) -> list[Compare]:
        """That no context of it runs, of all that it can have, as the registry says. Raises ConflictError where one may."""
        meta = lifeform.metadata
        names = {template.name for template in lifeform.spec.contexts} | {each.name for each in lifeform.status.contexts}
        guards = []
        for name in sorted(names):
            try:
                context = await self._registry.get(Context, context_object_name(meta.name, name), meta.namespace)
            except NotFoundError:
                guards.append(Compare(key_of(Context, context_object_name(meta.name, name), meta.namespace), "mod", 0))
                continue
            if is_mine(lifeform, context) and not has_stopped(context):
                raise ConflictError(f"Context {meta.namespace}/{context.metadata.name} has not stopped.")
            guards.append(unchanged(context))
        return guards

    async def _write(
        self,
        lifeform: Lifeform,
        moving: Moving,
        pairs: Sequence[tuple[Volume, Volume]] = (),
        guards: Sequence[Compare] = (),
        *,
        wish: str = "",
    ) -> Lifeform:
        """The move as it is now, with volumes; the wish goes when it is this one."""
        status = msgspec.structs.replace(lifeform.status, moving=moving)
        wanted = msgspec.structs.replace(lifeform, status=status, metadata=_without_wish(lifeform, wish))
        return await self._write_all([(lifeform, wanted), *pairs], guards)

    async def _write_status(self, lifeform: Lifeform, status: LifeformStatus) -> Lifeform:
        written = await self._registry.amend(lifeform, msgspec.structs.replace(lifeform, status=status), status=True)
        self._lifeforms.learn(written)
        return written

    async def _write_all(self, pairs: Sequence[Pair], guards: Sequence[Compare], also: Sequence[Put] = ()) -> Lifeform:
        found: Lifeform | None = None
        for obj in await write_together(self._registry, pairs, guards, also=also):
            if isinstance(obj, Volume):
                self._volumes.learn(obj)
            elif isinstance(obj, Lifeform):
                self._lifeforms.learn(obj)
                found = obj
        assert found is not None
        return found

    def _now(self) -> str:
        return timestamp(self._clock.wall())


# ---------------------------------------------------------------- pure


def move_of(lifeform: Lifeform) -> Move | None:
    """The move that is under way."""
    moving = lifeform.status.moving
    if moving is None or moving.phase == "GivenUp":
        return None
    return Move(moving.phase, moving.from_node, moving.to, moving.epoch)


def rooted(lifeform: Lifeform, contexts: Mapping[str, Context]) -> str:
    """What it would lose or do again elsewhere, as a sentence; empty when it may go."""
    if is_suspended(lifeform):
        kept = lifeform.spec.keep_memory and any(each.status.phase == "Stopped" for each in contexts.values())
        return "it is suspended with its memory, which is there only: resume it first" if kept else ""
    if lifeform.spec.restart_policy == "Always" or not contexts:
        return ""
    over = all(context.status.phase in _OVER for context in contexts.values())
    return "its programs have ended, and would run again elsewhere: delete it if it is not needed" if over else ""


def refused(lifeform: Lifeform, contexts: Mapping[str, Context]) -> str:
    """Why its contexts are not given what its manifest asks for, as a sentence: they could not be told of a move either.

    Those that stand for want of room need not be told.
    """
    if all(context.spec.wanted == "Stopped" for context in contexts.values()):
        return ""
    scheduled = find(lifeform.status.conditions, "Scheduled")
    if scheduled is None or scheduled.status != "False" or not lifeform.status.node:
        return ""
    return f"what its manifest asks for has to wait first: {scheduled.message.rstrip('.')}"


def _unreadable(error: ValueError) -> str:
    return f"its manifest cannot be read: {error}"


def has_stopped(context: Context) -> bool:
    """Whether its node has said that nothing of it runs, and that it knows that nothing is to."""
    status = context.status
    return (
        context.spec.wanted == "Stopped"
        and status.phase == "Stopped"
        and status.observed_generation == context.metadata.generation
        and context.metadata.deletion_timestamp is None
    )


def running(contexts: Mapping[str, Context]) -> str:
    """Which contexts have not stopped, as a sentence."""
    left = [name for name, context in sorted(contexts.items()) if not has_stopped(context)]
    return f"{', '.join(left)} {'has' if len(left) == 1 else 'have'} not stopped yet" if left else ""


def starting(lifeform: Lifeform, contexts: Mapping[str, Context]) -> str:
    """Which contexts are not at work where it is now, as a sentence."""
    left = [each.name for each in lifeform.spec.contexts if not _is_there(lifeform, contexts.get(each.name))]
    return f"{', '.join(left)} {'starts' if len(left) == 1 else 'start'} on {lifeform.status.node}" if left else ""


def _is_there(lifeform: Lifeform, context: Context | None) -> bool:
    if context is None or (context.spec.node, context.spec.epoch) != (lifeform.status.node, lifeform.status.epoch):
        return False
    status = context.status
    if status.observed_generation != context.metadata.generation:
        return False
    if is_suspended(lifeform):
        return status.phase == "Stopped"
    return (status.phase == "Running" and status.ready) or (status.phase in _OVER and lifeform.spec.restart_policy != "Always")


def recovered_onwards(status: LifeformStatus, contexts: Mapping[str, Context], epoch: int) -> Recovered | None:
    """What it was recovered from, which is still to be told where nothing has run since: it was moved for want of room."""
    recovered = status.recovered
    if recovered is None or recovered.epoch != status.epoch or any(each.status.started_at for each in contexts.values()):
        return recovered
    return msgspec.structs.replace(recovered, epoch=epoch)


def holders(volumes: Volumes) -> frozenset[str]:
    """The nodes with a good copy of each volume that has content; none where there is no data."""
    found: frozenset[str] | None = None
    for volume in _with_content(volumes):
        good = frozenset(copy.node for copy in volume.status.copies if copy.state == "InSync")
        found = good if found is None else found & good
    return found or frozenset()


def unseeded(volumes: Volumes, to: str) -> str:
    """What of the data is not at the target yet, as a sentence."""
    for volume in _with_content(volumes):
        copy = next((each for each in volume.status.copies if each.node == to), None)
        if copy is None:
            return f"volume {volume.metadata.name} has no copy on {to} yet"
        if copy.state != "InSync":
            return f"the copy of volume {volume.metadata.name} on {to} is {copy.state} {copy.message}".rstrip(" .")
    return ""


def unexpected(lifeform: Lifeform, contexts: Mapping[str, Context], target: Node | None) -> str:
    """For which contexts the target is not ready, as a sentence; one that is not to run needs nothing there."""
    if is_suspended(lifeform) or target is None:
        return ""
    late = [name for name, each in sorted(contexts.items()) if each.metadata.uid not in target.status.expecting]
    return f"{target.metadata.name} makes ready for {', '.join(late)}" if late else ""


def unhanded(volumes: Volumes, moving: Moving) -> str:
    """Of which volumes the last is not at the target yet, as a sentence."""
    for volume in volumes.values():
        status, name = volume.status, volume.metadata.name
        handed, synced = status.handed_over, status.last_sync
        if handed is None or (handed.to, handed.at) != (moving.to, moving.stopped_at):
            return f"the last of volume {name} is not on {moving.to} yet"
        if handed.number and (synced is None or synced.number < handed.number):
            return f"the last of volume {name} is not recorded"
    return ""


def _with_content(volumes: Volumes) -> list[Volume]:
    return [volume for volume in volumes.values() if volume.status.size_bytes]


def _room(volumes: Volumes) -> int | None:
    """What a node without any of the data needs for it."""
    return sum(parse_bytes(volume.spec.size) for volume in volumes.values()) if volumes else None


def begun_by_failover(lifeform: Lifeform) -> bool:
    """Whether the move that is under way began with a failover, to a node that had no room for more than the data."""
    moving, recovered, status = lifeform.status.moving, lifeform.status.recovered, lifeform.status
    if moving is None or recovered is None or moving.phase == "GivenUp":
        return False
    here = (moving.from_node, moving.epoch) == (status.node, status.epoch)
    return here and recovered.epoch == status.epoch and moving.since == recovered.at


def _with_wish(lifeform: Lifeform, wish: str) -> ObjectMeta:
    annotations = {**lifeform.metadata.annotations, ANNOTATION_MOVE: wish}
    return msgspec.structs.replace(lifeform.metadata, annotations=annotations)


def _without_wish(lifeform: Lifeform, wish: str) -> ObjectMeta:
    annotations = dict(lifeform.metadata.annotations)
    if wish and annotations.get(ANNOTATION_MOVE) == wish:
        del annotations[ANNOTATION_MOVE]
    return msgspec.structs.replace(lifeform.metadata, annotations=annotations)


def _with_status(volume: Volume, **fields: object) -> Volume:
    return msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, **fields))


def _handed(volume: Volume, source: str, to: str, *, leaving: bool) -> Volume:
    """A volume that is the target's now: its old owner holds a copy, unless its copies are to leave it."""
    kept = tuple(node for node in volume.status.replicas if node not in (to, source))
    stays = volume.status.size_bytes > 0 and not leaving
    return _with_status(volume, replicas=(*kept, source) if stays else kept, handover=None, handed_over=None)

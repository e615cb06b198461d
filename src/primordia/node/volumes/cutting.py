"""Cuts the snapshots of the volumes written on this node: by the clock, and on demand.

Invariants: a volume's cuts follow one another (its lock), and so many at most are under way on the node, so that fifty
volumes do not stand in each other's way; a cut that costs much is made less often; a cut is made in the epoch that the
volume's object says, and the pool refuses it where that is over. Whoever wants to know of a new snapshot is told after it is
durable, never before. What the clock finds unchanged costs a look at the times of its file (`Volumes.touched`); a cut that
somebody asked for always asks the disk itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from primordia.domain import cadence, retention
from primordia.domain.snapshots import Manifest
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet
from primordia.kit.units import parse_duration_s
from primordia.node.volumes.standing import standing
from primordia.node.volumes.telling import checkpoints_of
from primordia.wire.volumes import Checkpoint, SnapshotPolicy

if TYPE_CHECKING:
    from primordia.node.volumes.keeper import VolumeKeeper
    from primordia.node.volumes.owned import OwnedVolume
    from primordia.registry.events import EventRecorder

log = logging.getLogger(__name__)

_PARALLEL = 6
"""The pool has eight threads, and its commit is one for all that wait for it."""
_PAUSE_S = 5.0
_TELL_S = 30.0
_TIDY_AFTER_S = 0.2
_MOST_REMOVED = 8
"""At once: a policy that became stricter is followed in small steps."""
_LEAST_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Taken:
    """A cut: `quiesced` says whether the guest stood still for it, `note` why not although it was to."""

    manifest: Manifest
    quiesced: bool = False
    note: str = ""


@dataclass
class _Turn:
    """One volume's: when it is due (boottime), whether a cut of the clock's is under way, what is wrong with it."""

    due_s: float = 0.0
    busy: bool = False
    trouble: str = ""
    told_s: float = 0.0
    checkpoints: tuple[Checkpoint, ...] | None = None


class Cutter:
    """The snapshots of `keeper`'s volumes. `needed` gives the numbers that others rely on, which retention leaves."""

    def __init__(self, keeper: VolumeKeeper, clock: Clock, events: EventRecorder | None = None) -> None:
        self._keeper = keeper
        self._clock = clock
        self._events = events
        self.needed: Callable[[str], frozenset[int]] = lambda uid: frozenset()
        self._held: Counter[tuple[str, int]] = Counter()
        self._turns: dict[str, _Turn] = {}
        self._gate = asyncio.Semaphore(_PARALLEL)
        self._wake = asyncio.Event()
        self._tidying: TaskSet | None = None
        """While `run` runs: what tidies up behind cuts. Else each cut does it itself."""
        self._untidy: set[str] = set()

    async def cut(
        self, owned: OwnedVolume, *, checkpoint: str = "", always: bool = False, quiesce: bool | None = None
    ) -> Manifest:
        """Snapshot the volume as it is now, then tell `owned.on_cut`. Unchanged, the newest is answered again.

        `quiesce` None is as the volume's policy says. The caller must not hold `owned.lock`.
        """
        return (await self.take(owned, checkpoint=checkpoint, always=always, quiesce=quiesce)).manifest

    async def take(
        self, owned: OwnedVolume, *, checkpoint: str = "", always: bool = False, quiesce: bool | None = None
    ) -> Taken:
        """The same, and how it went."""
        async with owned.lock:
            return await self.take_held(owned, checkpoint=checkpoint, always=always, quiesce=quiesce)

    async def take_held(
        self, owned: OwnedVolume, *, checkpoint: str = "", always: bool = False, quiesce: bool | None = None
    ) -> Taken:
        """The same for who holds `owned.lock`."""
        wanted = owned.volume.spec.snapshots.quiesce if quiesce is None else quiesce
        async with self._gate, standing(owned, self._clock, wanted=wanted) as stand:
            made = await self._keeper.pool.cut(owned.uid, epoch=owned.epoch, checkpoint=checkpoint, always=always)
        new = made != owned.newest
        owned.newest = made
        if new:
            for listener in list(owned.on_cut):
                listener(made)
        if checkpoint or self._tidying is None:
            await self._tidy(owned, at_once=bool(checkpoint))
        elif owned.uid not in self._untidy:
            self._untidy.add(owned.uid)
            self._tidying.start(self._tidy_soon(owned), name=owned.title)
        return Taken(made, stand.stood, stand.note)

    async def run(self) -> None:
        """Cut every volume when its time has come, until cancelled."""
        tasks = TaskSet("cuts")
        self._tidying = TaskSet("tidying")
        self._keeper.subscribe(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                await self._look(tasks)
                now_s = self._clock.boottime()
                due = [turn.due_s for turn in self._turns.values() if not turn.busy]
                await wait_event(self._clock, self._wake, max(0.0, min(due) - now_s) if due else None)
        finally:
            await tasks.close()
            tidying, self._tidying = self._tidying, None
            await tidying.close()
            self._untidy.clear()

    @contextmanager
    def holding(self, uid: str, number: int) -> Iterator[None]:
        """The snapshot is not removed for the time of the block."""
        self._held[uid, number] += 1
        try:
            yield
        finally:
            self._held[uid, number] -= 1

    def trouble(self, uid: str) -> str:
        """Why the volume is not cut; empty when it is."""
        turn = self._turns.get(uid)
        return turn.trouble if turn is not None else ""

    # ------------------------------------------------------------ by the clock

    async def _look(self, tasks: TaskSet) -> None:
        """Start the cuts that are due, of volumes whose disks may have changed."""
        owned = {uid: each for uid, each in self._keeper.owned.items() if each.here}
        self._turns = {uid: self._turns.get(uid) or _Turn() for uid in owned}
        now_s = self._clock.boottime()
        due = [uid for uid, turn in self._turns.items() if not turn.busy and turn.due_s <= now_s]
        if not due:
            return
        try:
            changed = await self._may_be_cut(due)
        except (PrimordiaError, OSError) as error:
            self._pause(due, owned, str(error))
            return
        for uid in due:
            turn = self._turns[uid]
            if uid in changed:
                turn.busy, turn.due_s = True, now_s + _PAUSE_S  # the latter for a cut that fails as none should
                tasks.start(self._turn(owned[uid], turn), name=owned[uid].title)
            else:
                turn.due_s = cadence.due_s(now_s, 0, interval_of(owned[uid].volume.spec.snapshots))

    async def _may_be_cut(self, due: Collection[str]) -> frozenset[str]:
        """Those whose disks may have changed. PrimordiaError when the pool is not fit for it."""
        changed = await self._keeper.pool.touched(due)
        if changed:
            status = await self._keeper.pool.pool()
            if status.problems:
                raise TemporaryError(f"No snapshots are made: {status.problems[0]}", reason="PoolNotReady")
        return changed

    async def _turn(self, owned: OwnedVolume, turn: _Turn) -> None:
        begun_s = self._clock.boottime()
        interval_s = interval_of(owned.volume.spec.snapshots)
        try:
            async with owned.lock:
                begun_s = self._clock.boottime()
                await self.take_held(owned)
            turn.due_s = cadence.due_s(begun_s, self._clock.boottime() - begun_s, interval_s)
            self._well(owned, turn)
        except PrimordiaError as error:
            self._pause([owned.uid], {owned.uid: owned}, str(error))
        finally:
            turn.busy = False
            self._wake.set()

    def _pause(self, uids: Collection[str], owned: dict[str, OwnedVolume], why: str) -> None:
        """Try again later, and say why once."""
        for uid in uids:
            turn = self._turns.get(uid)
            if turn is None:
                continue
            turn.due_s = self._clock.boottime() + max(_PAUSE_S, interval_of(owned[uid].volume.spec.snapshots))
            if turn.trouble != why:
                turn.trouble = why
                log.warning("volume %s is not cut: %s", owned[uid].title, why)
                if self._events is not None:
                    self._events.record(owned[uid].volume, "SnapshotFailed", why, warning=True)

    def _well(self, owned: OwnedVolume, turn: _Turn) -> None:
        if turn.trouble:
            turn.trouble = ""
            log.info("volume %s is cut again", owned.title)
            if self._events is not None:
                self._events.record(owned.volume, "SnapshotsGoOn", "Snapshots are made again.")

    # ------------------------------------------------------------ after a cut

    async def _tidy_soon(self, owned: OwnedVolume) -> None:
        """Not at once: what was cut may be on its way to copies that somebody waits for, and removing takes the pool longer."""
        try:
            await self._clock.sleep(_TIDY_AFTER_S)
        finally:
            self._untidy.discard(owned.uid)
        async with owned.lock:
            await self._tidy(owned, at_once=False)

    async def _tidy(self, owned: OwnedVolume, *, at_once: bool) -> None:
        """Remove what the policy no longer keeps, and tell the status now and then. What fails here is no failed cut."""
        try:
            there = await self._keeper.pool.snapshots(owned.uid)
            needed = self.needed(owned.uid) | {number for uid, number in +self._held if uid == owned.uid}
            for number in droppable(owned, there, needed)[:_MOST_REMOVED]:
                await self._keeper.pool.remove(owned.uid, number)
        except PrimordiaError as error:
            log.warning("old snapshots of volume %s stay: %s", owned.title, error)
            return
        self._tell(owned, there, at_once=at_once)

    def _tell(self, owned: OwnedVolume, there: tuple[Manifest, ...], *, at_once: bool) -> None:
        turn = self._turns.setdefault(owned.uid, _Turn())
        now_s = self._clock.boottime()
        checkpoints = checkpoints_of(there)
        if at_once or not turn.told_s or now_s - turn.told_s >= _TELL_S or checkpoints != turn.checkpoints:
            turn.told_s, turn.checkpoints = now_s, checkpoints
            self._keeper.tell(owned.uid, number=there[-1].number if there else 0, checkpoints=checkpoints)


def interval_of(policy: SnapshotPolicy) -> float:
    """Seconds between two cuts of the clock's."""
    try:
        return max(_LEAST_INTERVAL_S, parse_duration_s(policy.interval))
    except ValueError:  # validation lets none such in
        return 1.0


def droppable(owned: OwnedVolume, there: tuple[Manifest, ...], needed: Collection[int]) -> tuple[int, ...]:
    """The numbers that may go, oldest first: neither the policy, nor a copy, nor the last sync wants them."""
    policy, last_sync = owned.volume.spec.snapshots, owned.volume.status.last_sync
    wanted = {*needed, *([last_sync.number] if last_sync is not None else [])}
    return retention.to_drop(there, retention.Retention(policy.last, policy.hourly, policy.daily), wanted)

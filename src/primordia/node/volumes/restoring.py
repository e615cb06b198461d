"""A volume is given an old snapshot's content, in place: what runs with it is stopped, and started again afterwards.

The intent is written into the object first, in one transaction with the lifeform's suspension, and goes in one with the new
epoch, number and acknowledged sync, and the lifeform's resumption: so whoever finds the intent later does what is left of it,
and nothing runs with the volume in between. The last sync becomes the restored snapshot itself, held by nobody else yet: a copy
that has not got it must not be started from, for it would bring back what was undone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from primordia.domain.snapshots import Manifest
from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet, to_the_end
from primordia.node.volumes.cutting import Cutter
from primordia.node.volumes.owned import OwnedVolume
from primordia.node.volumes.telling import find_snapshot, told
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.registry.together import Pair, write_together
from primordia.wire import data as wire
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import LastSync

if TYPE_CHECKING:
    from primordia.node.volumes.keeper import VolumeKeeper
    from primordia.registry.events import EventRecorder

log = logging.getLogger(__name__)

ANNOTATION = "primordia.dev/restore"
_STOP_S = 90.0
_LOOK_S = 0.1
_RETRY_S = 5.0
_TRIES = 8


class Intent(msgspec.Struct, frozen=True):
    """Restore the snapshot of that number; then have the lifeform run again, if it ran before."""

    number: int
    resume: bool


class Restorer:
    """Restores the volumes that this node owns."""

    def __init__(
        self, keeper: VolumeKeeper, cutter: Cutter, registry: Registry, clock: Clock, events: EventRecorder | None = None
    ) -> None:
        self._keeper = keeper
        self._cutter = cutter
        self._registry = registry
        self._clock = clock
        self._events = events
        self._at_work: set[str] = set()

    async def restore(self, owned: OwnedVolume, to: str) -> wire.Restored:
        """Restore it to a number or checkpoint. What was begun ends, also when nobody waits for it any more.

        Raises NotFoundError, ConflictError (under way already), TemporaryError when what runs with it does not stop.
        """
        source = find_snapshot(await self._keeper.pool.snapshots(owned.uid), to, owned.title)
        if owned.uid in self._at_work or _intent_of(owned.volume) is not None:
            raise ConflictError(f"The volume {owned.title} is being restored already.", remedy="Wait for it.")
        self._at_work.add(owned.uid)
        try:
            with self._cutter.holding(owned.uid, source.number):
                return await to_the_end(self._begin_and_finish(owned, source))
        finally:
            self._at_work.discard(owned.uid)

    async def run(self) -> None:
        """Finish what a daemon before this one began, until cancelled."""
        tasks = TaskSet("restores")

        def look(uid: str) -> None:
            owned = self._keeper.owned.get(uid)
            if owned is not None and owned.here and _intent_of(owned.volume) is not None and uid not in self._at_work:
                self._at_work.add(uid)
                tasks.start(self._go_on(owned), name=owned.title)

        self._keeper.subscribe(look)
        try:
            while True:  # one whose end could not be written is told by nobody
                await self._clock.sleep(_RETRY_S)
                for uid in list(self._keeper.owned):
                    look(uid)
        finally:
            await tasks.close()

    async def _go_on(self, owned: OwnedVolume) -> None:
        try:
            while (intent := _intent_of(owned.volume)) is not None and owned.uid in self._keeper.owned:
                try:
                    with self._cutter.holding(owned.uid, intent.number):
                        source = find_snapshot(await self._keeper.pool.snapshots(owned.uid), str(intent.number), owned.title)
                        await self._finish(owned, source, intent)
                except NotFoundError:
                    await self._give_up(owned, intent)
                except PrimordiaError as error:
                    log.warning("the restore of volume %s waits: %s", owned.title, error)
                    await self._clock.sleep(_RETRY_S)
        finally:
            self._at_work.discard(owned.uid)

    async def _begin_and_finish(self, owned: OwnedVolume, source: Manifest) -> wire.Restored:
        intent = await self._begin(owned, source.number)
        try:
            return await self._finish(owned, source, intent)
        except PrimordiaError:
            if not self._is_done(owned, await self._keeper.pool.snapshots(owned.uid)):
                await self._give_up(owned, intent)
            raise

    async def _begin(self, owned: OwnedVolume, number: int) -> Intent:
        """Write the intent, and have the lifeform stop."""
        intent = Intent(number, False)

        def change(volume: Volume, lifeform: Lifeform | None) -> tuple[Volume, Lifeform | None]:
            nonlocal intent
            runs = lifeform is not None and lifeform.spec.operating_mode == "Running"
            intent = Intent(number, runs)
            noted = _annotated(volume, msgspec.json.encode(intent).decode())
            return noted, _in_mode(lifeform, "Suspended") if lifeform is not None and runs else lifeform

        await self._write(owned, change)
        return intent

    async def _finish(self, owned: OwnedVolume, source: Manifest, intent: Intent) -> wire.Restored:
        await self._wait_until_stopped(owned)
        async with owned.lock:
            if owned.is_open:
                raise TemporaryError(f"The volume {owned.title} was opened again.", reason="VolumeInUse")
            before, made = await self._replaced(owned, source)
            await self._record(owned, made, intent)
            owned.newest = made
            self._keeper.tell(owned.uid, number=made.number)  # what was told before the restore is written no more
        for listener in list(owned.on_cut):
            listener(made)
        lost_s = max(0.0, before.time_s - source.time_s)
        if self._events is not None:
            message = f"Snapshot {source.number} was restored as {made.number}: {lost_s:.0f} s of writes are undone."
            self._events.record(owned.volume, "Restored", message)
        return wire.Restored(
            number=made.number,
            epoch=made.epoch,
            source=told(source),
            before=told(before),
            lost_seconds=round(lost_s, 3),
            restarted=intent.resume,
        )

    async def _replaced(self, owned: OwnedVolume, source: Manifest) -> tuple[Manifest, Manifest]:
        """The snapshot of how it was, and the restored one; both are there already when only the object lags behind."""
        pool = self._keeper.pool
        there = await pool.snapshots(owned.uid)
        if self._is_done(owned, there):
            return there[-2], there[-1]
        before = (await self._cutter.take_held(owned, quiesce=False)).manifest
        return before, await pool.restore(owned.uid, source.number, epoch=owned.epoch + 1)

    def _is_done(self, owned: OwnedVolume, there: Sequence[Manifest]) -> bool:
        """Whether the content is the restored one already, and only the object lags behind: then there is no way back."""
        return len(there) > 1 and there[-1].epoch == owned.epoch + 1

    async def _wait_until_stopped(self, owned: OwnedVolume) -> None:
        end_s = self._clock.boottime() + _STOP_S
        while owned.is_open or any(live.spec.wanted != "Stopped" for live in owned.users):
            if self._clock.boottime() >= end_s:
                raise TemporaryError(
                    f"What runs with the volume {owned.title} did not stop within {_STOP_S:g} s, so nothing was restored.",
                    remedy="See why with `primordia describe`, stop it, and try again.",
                    reason="VolumeInUse",
                )
            await self._clock.sleep(_LOOK_S)

    async def _record(self, owned: OwnedVolume, made: Manifest, intent: Intent) -> None:
        """One transaction: epoch, number, acknowledged sync; the intent goes, and the lifeform may run."""
        now = timestamp(self._clock.wall())

        def change(volume: Volume, lifeform: Lifeform | None) -> tuple[Volume, Lifeform | None]:
            synced = LastSync(epoch=made.epoch, number=made.number, at=now)
            epoch = max(made.epoch, volume.status.epoch)  # its lifeform may have begun another one meanwhile
            status = msgspec.structs.replace(volume.status, epoch=epoch, number=made.number, last_sync=synced)
            changed = msgspec.structs.replace(_annotated(volume, ""), status=status)
            return changed, _in_mode(lifeform, "Running") if lifeform is not None and intent.resume else lifeform

        await self._write(owned, change)

    async def _give_up(self, owned: OwnedVolume, intent: Intent) -> None:
        """As it was before: no intent, and what ran runs."""

        def change(volume: Volume, lifeform: Lifeform | None) -> tuple[Volume, Lifeform | None]:
            return _annotated(volume, ""), _in_mode(lifeform, "Running") if lifeform and intent.resume else lifeform

        try:
            await self._write(owned, change)
        except PrimordiaError as error:
            log.warning("that volume %s is not restored could not be written yet: %s", owned.title, error)

    async def _write(
        self, owned: OwnedVolume, change: Callable[[Volume, Lifeform | None], tuple[Volume, Lifeform | None]]
    ) -> None:
        """Change the volume and its lifeform together. Raises ConflictError when the volume is no longer this one."""
        meta = owned.volume.metadata
        for attempt in range(_TRIES):
            volume = await self._registry.get(Volume, meta.name, meta.namespace)
            if volume.metadata.uid != owned.uid or volume.status.node != owned.volume.status.node:
                raise ConflictError(f"The volume {owned.title} is another's now.", reason="NotOwner")
            lifeform = await self._lifeform(volume)
            after, lifeform_after = change(volume, lifeform)
            pairs: list[Pair] = [(volume, after)]
            if lifeform is not None and lifeform_after is not None and lifeform_after is not lifeform:
                pairs.append((lifeform, lifeform_after))
            try:
                written = await write_together(self._registry, pairs)
            except ConflictError:
                if attempt == _TRIES - 1:
                    raise
                await self._clock.sleep(_LOOK_S)
                continue
            assert isinstance(written[0], Volume)
            owned.volume = written[0]
            return

    async def _lifeform(self, volume: Volume) -> Lifeform | None:
        """Whose it is, as far as it exists and has the volume as data."""
        if not volume.spec.lifeform:
            return None
        try:
            lifeform = await self._registry.get(Lifeform, volume.spec.lifeform, volume.metadata.namespace)
        except NotFoundError:
            return None
        there = any(each.name == volume.spec.context and each.data is not None for each in lifeform.spec.contexts)
        return lifeform if there and lifeform.metadata.deletion_timestamp is None else None


def _intent_of(volume: Volume) -> Intent | None:
    try:
        return msgspec.json.decode(volume.metadata.annotations[ANNOTATION], type=Intent)
    except (KeyError, msgspec.MsgspecError):
        return None


def _annotated(volume: Volume, intent: str) -> Volume:
    """With that intent; an empty one is none."""
    annotations = {key: value for key, value in volume.metadata.annotations.items() if key != ANNOTATION}
    if intent:
        annotations[ANNOTATION] = intent
    return msgspec.structs.replace(volume, metadata=msgspec.structs.replace(volume.metadata, annotations=annotations))


def _in_mode(lifeform: Lifeform, mode: str) -> Lifeform:
    return msgspec.structs.replace(lifeform, spec=msgspec.structs.replace(lifeform.spec, operating_mode=mode))

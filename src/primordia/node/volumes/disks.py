"""What is done with the disks of owned volumes: made and formatted, found, made larger, deleted.

A crash between any two steps is forgiven. The intent to format is on the disk of the node before the volume is in the pool,
and goes when the file system is durable, before a guest sees it; so a disk is formatted when there is an intent, and only then.
The volume's object carries this node's finalizer before there is anything of it here, and loses it when nothing is left.
A disk is written in one ownership only: one that is left of an earlier one, which others may have followed, is cut and let go.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from primordia.domain.snapshots import check_volume, round_up
from primordia.kit import files
from primordia.kit.errors import AlreadyExistsError, CapacityError, ConflictError, NotFoundError
from primordia.kit.units import parse_bytes
from primordia.node.volumes.owned import OwnedVolume
from primordia.ports.volumes import VolumeInfo, Volumes
from primordia.registry.registry import Registry
from primordia.wire.resources import Volume
from primordia.wire.volumes import VolumeStatus, holder_finalizer, is_tail

log = logging.getLogger(__name__)

Format = Callable[[Path, str, str], Awaitable[None]]
"""Makes a file system: the disk, its kind, its label. What returned is durable. Raises PrimordiaError."""

Repair = Callable[[Path, str], Awaitable[None]]
"""Makes a file system that a guest could not mount whole again, where that loses nothing. Raises PrimordiaError."""

GrowGuest = Callable[[OwnedVolume, int], Awaitable[None]]
"""Tells the running guest of an owned volume that its disk has so many bytes. Raises PrimordiaError."""


_LABEL = 12
"""Characters of a file system's label that each kind takes."""


class Disks:
    """`intents` is a folder for what must be known after a crash, `node` this node's name."""

    def __init__(
        self,
        pool: Volumes,
        registry: Registry,
        node: str,
        *,
        make_filesystem: Format,
        grow_guest: GrowGuest,
        intents: Path,
        repair: Repair | None = None,
    ) -> None:
        self.pool = pool
        self._registry = registry
        self._finalizer = holder_finalizer(node)
        self._node = node
        self._format = make_filesystem
        self._grow_guest = grow_guest
        self._intents = intents
        self._repair = repair

    async def open(self, owned: OwnedVolume) -> Path:
        """The disk, ready for a guest. Under the volume's lock.

        Raises CapacityError, ConflictError (DataMissing, DataBehind), PermanentError (DataDamaged).
        """
        uid, intent = owned.uid, self._intent(owned.uid)
        if await self._taken_up(owned) is None:
            if owned.volume.status.size_bytes and not intent.exists():
                raise ConflictError(
                    f"The data of volume {owned.title} should be on node {self._node}, and is not in its pool.",
                    remedy="Nothing is made in its place. Mount the pool that has it, or destroy the volume.",
                    reason="DataMissing",
                )
            await self._create(owned, intent)
        if intent.exists():
            await self._make_filesystem(owned, intent)
        owned.here = True
        disk = await self.pool.disk(uid, epoch=owned.epoch)
        if owned.suspect and self._repair is not None:
            log.warning(
                "volume %s: its guest could not mount it: its file system is repaired as far as that is safe", owned.title
            )
            await self._repair(disk, owned.volume.spec.filesystem)
            owned.suspect = False
        return disk

    async def look(self, owned: OwnedVolume) -> dict[str, Any]:
        """See what of it is here; what its status is to say, nothing when it has no disk here.

        A copy becomes the disk at once, so that it is cut and copied on also while no guest uses it.
        """
        try:
            known = await self._taken_up(owned)
        except ConflictError as error:
            log.debug("volume %s: %s", owned.title, error)
            known = None
        owned.here = known is not None and known.written_here and not self._intent(owned.uid).exists()
        if known is None or not owned.here:
            return {}
        if owned.newest is None and known.newest:
            owned.newest = (await self.pool.snapshots(owned.uid))[-1]
        return {"size_bytes": known.size_bytes}

    async def used_bytes(self, owned: OwnedVolume) -> int:
        """What the disk of a volume that is here takes of the pool, whatever it shares with its snapshots."""
        return (await self.pool.disk(owned.uid)).stat().st_blocks * 512

    async def grow(self, owned: OwnedVolume) -> None:
        """Make the disk as large as is wanted, and have the running guest know. Under the volume's lock."""
        uid, live = owned.uid, owned.live
        known = await self.pool.find(uid)
        assert known is not None
        wanted = round_up(parse_bytes(owned.volume.spec.size))
        if wanted > known.size_bytes:
            known = await self.pool.grow(uid, wanted)
            log.info("volume %s: grown to %d bytes", owned.title, wanted)
        if live is not None and live.guest is not None and owned.guest_bytes != known.size_bytes:
            await self._grow_guest(owned, known.size_bytes)
            owned.guest_bytes = known.size_bytes

    async def hand_back(self, uid: str, epoch: int) -> None:
        """Let go of a disk that was written here up to that epoch, and is another's since. Nothing of it is lost: what no
        snapshot had yet, and so nobody else has, is put aside as a tail.

        Under the volume's lock, and while nothing has the disk open; may be repeated.
        """
        known = await self.pool.find(uid)
        if known is None or not known.written_here:
            return
        if self._is_unformatted(known):  # nobody has ever written it
            await self.pool.destroy(uid)
            self._intent(uid).unlink()
            return
        before = await self.pool.snapshots(uid)
        made = await self.pool.cut(uid, epoch=epoch)
        await self.pool.release(uid)
        log.warning("volume %s: its disk of epoch %d is let go, with snapshot %d as its last", uid, epoch, made.number)
        if made not in before:
            await self.pool.quarantine(uid, made.number, tail=True)

    async def hold(self, volume: Volume) -> None:
        """Have the object wait for this node when its end is asked for: before anything of it is stored here.

        Raises ConflictError when its end has been asked for already, NotFoundError.
        """
        if self._finalizer in volume.metadata.finalizers:
            return
        meta = volume.metadata
        await self._registry.mutate(Volume, meta.name, meta.namespace, lambda stored: self._held(stored, meta.uid))

    async def destroy(self, volume: Volume) -> None:
        """Delete all of it that is here, written or held, then let the object go."""
        meta = volume.metadata
        if self._finalizer not in meta.finalizers:
            return
        await self.pool.destroy(meta.uid)
        self._intent(meta.uid).unlink(missing_ok=True)
        log.info("volume %s/%s: its data on this node is deleted", meta.namespace, meta.name)
        with contextlib.suppress(NotFoundError):
            await self._registry.mutate(Volume, meta.name, meta.namespace, lambda stored: self._freed(stored, meta.uid))

    # ------------------------------------------------------------ inside

    def _intent(self, uid: str) -> Path:
        return self._intents / f"{check_volume(uid)}.formatting"

    async def _taken_up(self, owned: OwnedVolume) -> VolumeInfo | None:
        """What is here of it, with the disk of its epoch; None where nothing is. ConflictError (DataBehind)."""
        uid, known = owned.uid, await self._content(owned.uid)
        if known is None or self._is_unformatted(known):
            return known
        if known.written_here and known.epoch < owned.volume.status.owner_since and owned.live is None:
            await self.hand_back(uid, known.epoch)
            known = await self._content(uid)
        if known is not None and not known.written_here:
            await self._put_tails_aside(owned)
            known = await self._content(uid)
        if known is None or known.written_here:
            return known
        await self._want_synced(owned)
        await self.hold(owned.volume)
        await self.pool.disk(uid, epoch=owned.epoch)
        log.info("volume %s: the copy here becomes its disk, in epoch %d", owned.title, owned.epoch)
        return await self.pool.find(uid)

    async def _put_tails_aside(self, owned: OwnedVolume) -> None:
        """What was lost for everybody when the volume was taken over does not come back by another takeover."""
        await self.pool.settle(owned.uid)
        began = owned.volume.status.restored_from
        for each in reversed(await self.pool.snapshots(owned.uid)):
            if is_tail(began, each.epoch, each.number):
                log.warning("volume %s: snapshot %d is put aside: it went on without it", owned.title, each.number)
                await self.pool.quarantine(owned.uid, each.number, tail=True)

    async def _content(self, uid: str) -> VolumeInfo | None:
        """The volume, if the pool has a disk or a snapshot of it."""
        known = await self.pool.find(uid)
        return known if known is not None and (known.written_here or known.newest or known.pending) else None

    def _is_unformatted(self, known: VolumeInfo) -> bool:
        """Whether its disk was made and not formatted yet. Where there are snapshots, the intent is of an earlier ownership."""
        intent = self._intent(known.name)
        if intent.exists() and (known.newest or known.pending):
            intent.unlink()
        return intent.exists()

    async def _create(self, owned: OwnedVolume, intent: Path) -> None:
        await self.hold(owned.volume)
        self._intents.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomic(intent, b"")
        size = round_up(parse_bytes(owned.volume.spec.size))
        with contextlib.suppress(AlreadyExistsError):
            try:
                await self.pool.create(owned.uid, size, epoch=max(1, owned.epoch))
            except CapacityError as error:
                raise CapacityError(
                    f"There is no room for the volume {owned.title} on node {self._node}: {error.message}",
                    remedy=error.remedy,
                    reason="PoolFull",
                ) from error

    async def _make_filesystem(self, owned: OwnedVolume, intent: Path) -> None:
        await self._format(await self.pool.disk(owned.uid), owned.volume.spec.filesystem, owned.volume.metadata.name[:_LABEL])
        intent.unlink()
        files.fsync_dir(intent.parent)

    async def _want_synced(self, owned: OwnedVolume) -> None:
        """A copy becomes the disk only when it has all that a sync has promised, or its loss was accepted."""
        await self.pool.settle(owned.uid)
        snapshots, synced = await self.pool.snapshots(owned.uid), owned.volume.status.last_sync
        newest = (snapshots[-1].epoch, snapshots[-1].number) if snapshots else (0, 0)
        if synced is None or newest >= (synced.epoch, synced.number) or _accepted(owned.volume.status, newest):
            return
        raise ConflictError(
            f"The copy of volume {owned.title} on node {self._node} ends with snapshot {newest[1]}, and snapshot "
            f"{synced.number} was promised to last.",
            remedy="Wait for a node that has it, or restore the volume to what there is.",
            reason="DataBehind",
        )

    def _held(self, stored: Volume, uid: str) -> Volume | None:
        meta = stored.metadata
        if meta.uid != uid or meta.deletion_timestamp is not None:
            raise ConflictError(f"The volume {meta.namespace}/{meta.name} is being destroyed.", reason="VolumeDestroyed")
        if self._finalizer in meta.finalizers:
            return None
        wanted = msgspec.structs.replace(meta, finalizers=(*meta.finalizers, self._finalizer))
        return msgspec.structs.replace(stored, metadata=wanted)

    def _freed(self, stored: Volume, uid: str) -> Volume | None:
        meta = stored.metadata
        if meta.uid != uid or self._finalizer not in meta.finalizers:
            return None
        rest = tuple(each for each in meta.finalizers if each != self._finalizer)
        return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(meta, finalizers=rest))


def _accepted(status: VolumeStatus, newest: tuple[int, int]) -> bool:
    """Whether a last sync that this copy lacks was given up when the volume was taken over."""
    began, synced = status.restored_from, status.last_sync
    if began is None or synced is None or not began.allow_loss:
        return False
    return newest[1] >= began.number and synced.epoch < began.epoch

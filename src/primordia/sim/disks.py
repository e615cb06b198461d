"""What a simulated node does about volumes: it has disks and copies that outlive its power, and lets go of them when told.

There are no bytes. A disk is an entry that says who has it; what must hold of real ones is that it is where its volume says,
is never made twice, and is open once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container

import msgspec

from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError, TemporaryError
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.resources import Context, Volume
from primordia.wire.volumes import CopyState, HandedOver, Handover, LastSync, VolumeCopy, holder_finalizer

Key = tuple[str, str]


class SimDisks:
    """One node's. `held` are the volumes, by uid, of which it has the disk or a copy."""

    def __init__(self, node: str, registry: Registry, informers: Informers) -> None:
        self.held: dict[str, str] = {}
        self.lost: list[str] = []
        """Disks that should have been here and were not."""
        self._node = node
        self._finalizer = holder_finalizer(node)
        self._registry = registry
        self._volumes = informers.of(Volume)
        self._todo: dict[Key, None] = {}

    def look_at(self, key: Key) -> None:
        """The volume has changed."""
        self._todo[key] = None

    async def serve(self, in_use: Container[str]) -> bool:
        """Look at what has changed; whether something is left for later. `in_use` are uids that microVMs have open."""
        doing, self._todo = self._todo, {}
        for key in doing:
            done = False
            with contextlib.suppress(PrimordiaError):
                done = await self._look(key, in_use)
            if not done:
                self._todo[key] = None
        return bool(self._todo)

    async def open(self, context: Context) -> None:
        """The disk of a context that starts; made if it never was. Raises TemporaryError while it is not this node's."""
        spec = context.spec
        volume = self._volumes.get(spec.volume, context.metadata.namespace)
        mine = volume is not None and (volume.status.node, volume.status.epoch) == (self._node, spec.epoch)
        handover = volume.status.handover if volume is not None else None
        if volume is None or volume.metadata.uid != spec.volume_uid or not mine or (handover and handover.epoch == spec.epoch):
            raise TemporaryError(f"{spec.volume} is not this node's in epoch {spec.epoch}.")
        if spec.volume_uid not in self.held:
            if volume.status.size_bytes:
                self.lost.append(spec.volume)
                raise PermanentError(f"The data of {spec.volume} is not here.")
            await self._hold(volume)
            self.held[spec.volume_uid] = "disk"
            await self._tell(volume, size_bytes=1)

    async def _look(self, key: Key, in_use: Container[str]) -> bool:
        """Whether all is done about the volume."""
        volume = self._volumes.get(key[1], key[0])
        if volume is None:
            return True
        with contextlib.suppress(NotFoundError):
            return await self._look_at(volume, in_use)
        return True

    async def _look_at(self, volume: Volume, in_use: Container[str]) -> bool:
        uid, status = volume.metadata.uid, volume.status
        if volume.metadata.deletion_timestamp is not None:
            if uid in in_use:
                return False
            await self._let_go(volume)
        elif status.node == self._node:
            if self._finalizer in volume.metadata.finalizers:
                self.held.setdefault(uid, "copy")  # it had said so, and has not heard the answer
            copies = tuple(VolumeCopy(node=name, state=_state(volume, name)) for name in status.replicas)
            if uid in self.held and copies != status.copies:
                await self._tell(volume, copies=copies)
            if status.handover is not None and status.handover.epoch == status.epoch:
                return await self._hand_over(volume, status.handover, in_use)
        elif self._node in status.replicas:
            await self._hold(volume)
            self.held[uid] = "copy"
        elif self._finalizer in volume.metadata.finalizers:
            await self._let_go(volume)
        return True

    async def _hand_over(self, volume: Volume, handover: Handover, in_use: Container[str]) -> bool:
        """Say that the next owner has all of it, once nothing here has it open and that one has a copy."""
        uid, status = volume.metadata.uid, volume.status
        if status.handed_over is not None and status.handed_over.at == handover.at:
            return True
        if uid in in_use or (uid in self.held and (handover.to not in status.replicas or not _is_held(volume, handover.to))):
            return False
        number = int(uid in self.held)
        synced = LastSync(epoch=status.epoch, number=number, copies=(handover.to,)) if number else status.last_sync
        await self._tell(volume, handed_over=HandedOver(to=handover.to, at=handover.at, number=number), last_sync=synced)
        return True

    async def _tell(self, volume: Volume, **fields: object) -> None:
        def told(stored: Volume) -> Volume | None:
            if stored.metadata.uid != volume.metadata.uid or stored.status.node != self._node:
                return None
            return msgspec.structs.replace(stored, status=msgspec.structs.replace(stored.status, **fields))

        await self._registry.mutate(Volume, volume.metadata.name, volume.metadata.namespace, told, status=True)

    async def _hold(self, volume: Volume) -> None:
        def held(stored: Volume) -> Volume | None:
            meta = stored.metadata
            if meta.uid != volume.metadata.uid or meta.deletion_timestamp is not None:
                raise TemporaryError(f"{meta.name} is being destroyed.")
            return None if self._finalizer in meta.finalizers else _held_by(stored, (*meta.finalizers, self._finalizer))

        await self._registry.mutate(Volume, volume.metadata.name, volume.metadata.namespace, held)

    async def _let_go(self, volume: Volume) -> None:
        """Delete what is here, by what the registry says and not a cache: it may be wanted here again."""
        uid = volume.metadata.uid
        had = self.held.pop(uid, None)

        def freed(stored: Volume) -> Volume | None:
            meta, status = stored.metadata, stored.status
            if meta.uid == uid and meta.deletion_timestamp is None and self._node in (status.node, *status.replicas):
                if had is not None:
                    self.held[uid] = had
                raise TemporaryError(f"{meta.name} is to be on {self._node} again.")
            if meta.uid != uid or self._finalizer not in meta.finalizers:
                return None
            return _held_by(stored, tuple(each for each in meta.finalizers if each != self._finalizer))

        await self._registry.mutate(Volume, volume.metadata.name, volume.metadata.namespace, freed)


def _is_held(volume: Volume, node: str) -> bool:
    """Whether that node has it: it says so first."""
    return holder_finalizer(node) in volume.metadata.finalizers


def _state(volume: Volume, node: str) -> CopyState:
    return "InSync" if _is_held(volume, node) else "Seeding"


def _held_by(volume: Volume, finalizers: tuple[str, ...]) -> Volume:
    return msgspec.structs.replace(volume, metadata=msgspec.structs.replace(volume.metadata, finalizers=finalizers))

"""The volumes that this node writes: which they are, which context has whose disk, and what becomes of a disk.

Invariants: a disk is made once, on the owner's node, and never in place of one that is missing; it is formatted before any
guest has seen it, and never again; one microVM at most has it open. Who owns a volume, and in which epoch, its object says,
and nothing starts before that says this node. A volume's content is deleted only when somebody asked for its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import ConflictError, PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet
from primordia.node.live import Live
from primordia.node.program import DATA
from primordia.node.status import StatusWriter
from primordia.node.volumes.disks import Disks
from primordia.node.volumes.growing import write_again
from primordia.node.volumes.owned import OwnedVolume
from primordia.node.volumes.scratch import ScratchVolumes
from primordia.ports.vmm import Drive
from primordia.ports.volumes import Volumes
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.wire.resources import ContextSpec, Volume
from primordia.wire.volumes import VolumeStatus

__all__ = ["OwnedVolume", "VolumeKeeper"]

log = logging.getLogger(__name__)

_OWNER_WAIT_S = 10.0
_RETRY_S = 5.0
_LOOK_S = 30.0
"""Between looks at what each volume takes of the pool."""


class VolumeKeeper:
    """One node's. `disks` is what is done with disks, `node` this node's name; `scratch` are the disks of live forks."""

    def __init__(
        self,
        disks: Disks,
        informers: Informers,
        writer: StatusWriter,
        clock: Clock,
        node: str,
        events: EventRecorder | None = None,
    ) -> None:
        self._disks = disks
        self._informer = informers.of(Volume)
        self._writer = writer
        self._clock = clock
        self._events = events
        self._node = node
        self._volumes: dict[str, Volume] = {}
        self._owned: dict[str, OwnedVolume] = {}
        self._users: dict[str, list[Live]] = {}
        self._volume_of: dict[str, str] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._news = asyncio.Event()
        self._tasks = TaskSet("volumes")
        self._at_work: set[str] = set()
        self._again: set[str] = set()
        self._running = False
        self.scratch = ScratchVolumes(disks.pool)

    # ------------------------------------------------------------ what others read

    @property
    def pool(self) -> Volumes:
        """Where the volumes lie."""
        return self._disks.pool

    @property
    def owned(self) -> Mapping[str, OwnedVolume]:
        """The volumes whose owner is this node, by uid, whether their disk is in the pool yet (`here`) or not."""
        return MappingProxyType(self._owned)

    def find(self, namespace: str, name: str) -> OwnedVolume | None:
        """One of them by its object's name."""
        volume = self._informer.get(name, namespace)
        return self._owned.get(volume.metadata.uid) if volume is not None else None

    def lock(self, uid: str) -> asyncio.Lock:
        """What is held by whoever does anything about a volume, whoever owns it."""
        return self._locks.setdefault(uid, asyncio.Lock())

    def is_used(self, uid: str) -> bool:
        """Whether there is a context here that has it, or may have, as its data, whoever owns it."""
        return bool(self._users.get(uid))

    async def hand_back(self, uid: str, epoch: int) -> None:
        """Let go of a disk that was written here up to that epoch and is another node's by now; nothing of it is lost.

        Under the volume's `lock`, while it is not open.
        """
        await self._disks.hand_back(uid, epoch)

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Be told the uid of each owned volume that appears, changes or leaves; of those that are there, at once."""
        self._listeners.append(listener)
        for uid in list(self._owned):
            listener(uid)

    def tell(self, uid: str, **fields: Any) -> None:
        """Have these fields of the object's status written soon; what others say of the same object stays as it is."""
        owned = self._owned.get(uid)
        if owned is not None:
            told = self._told.setdefault(uid, {})
            told.update(fields)
            self._writer.put(owned.volume, dict(told), self._laid_over)

    async def hold(self, volume: Volume) -> None:
        """Have the object wait for this node when its end is asked for: call it before anything of a copy is stored here.

        `run` then deletes what is here. Raises ConflictError when its end has been asked for, NotFoundError.
        """
        await self._disks.hold(volume)

    def enter(self, live: Live) -> None:
        """A context of this node is known from now on, or has another volume."""
        uid = live.spec.volume_uid
        if self._volume_of.get(live.uid, "") != uid:
            self.leave(live)
        if uid and live not in self._users.setdefault(uid, []):
            self._users[uid].append(live)
            self._volume_of[live.uid] = uid
            self.look(uid)

    def leave(self, live: Live) -> None:
        """Nothing is left of that context here."""
        uid = self._volume_of.pop(live.uid, "")
        if uid:
            self._users[uid].remove(live)
            self.look(uid)

    # ------------------------------------------------------------ a start

    @asynccontextmanager
    async def disk_for(self, live: Live) -> AsyncIterator[Drive]:
        """The drive of a context that is being started, taken for it alone until the block ends; its microVM has it then.

        Makes and formats a disk that never was. Raises TemporaryError while the volume says another owner or epoch, or while
        another microVM has it, CapacityError (`PoolFull`), ConflictError where a disk that was here is gone (`DataMissing`) or
        is about to be (`VolumeDestroyed`).
        """
        owned = await self._ours(live.spec)
        self.enter(live)
        async with owned.lock:
            if owned.is_open:
                raise TemporaryError(
                    f"The volume {owned.title} is in use: a microVM before this one has not ended.", reason="VolumeInUse"
                )
            if owned.is_handed_over:
                raise TemporaryError(f"The volume {owned.title} is being handed over.", reason="VolumeHandedOver")
            if owned.volume.metadata.deletion_timestamp is not None:
                raise ConflictError(f"The volume {owned.title} is being destroyed.", reason="VolumeDestroyed")
            owned.opening = live
        try:
            async with owned.lock:
                path = await self._disks.open(owned)
                owned.guest_bytes = path.stat().st_size
            self.tell(owned.uid, size_bytes=owned.guest_bytes)
            self._tell_listeners(owned.uid)
            yield Drive(DATA, path, durable=True)
        finally:
            owned.opening = None
            self.look(owned.uid)

    def suspect(self, live: Live) -> None:
        """The context's guest could not mount its data: before the next one tries, the file system is repaired."""
        owned = self._owned.get(live.spec.volume_uid)
        if owned is not None:
            owned.suspect = True

    async def _ours(self, spec: ContextSpec) -> OwnedVolume:
        """The volume, once it says this node and this epoch."""
        end_s = self._clock.boottime() + _OWNER_WAIT_S
        while True:
            owned = self._owned.get(spec.volume_uid)
            if owned is not None and owned.epoch == spec.epoch:
                return owned
            self._news.clear()
            if not await wait_event(self._clock, self._news, end_s - self._clock.boottime()):
                raise TemporaryError(
                    f"The volume {spec.volume} is not this node's in epoch {spec.epoch}: {self._whose(spec.volume_uid)}.",
                    reason="NotVolumeOwner",
                    retry_after_s=_RETRY_S,
                )

    def _whose(self, uid: str) -> str:
        volume = self._volumes.get(uid)
        if volume is None:
            return "there is no such volume any more"
        return f"it is {volume.status.node or 'nobody'}'s in epoch {volume.status.epoch}"

    # ------------------------------------------------------------ what is kept true

    async def run(self) -> None:
        """Follow the volumes until cancelled: make disks larger, delete those whose end was asked for."""
        self._running = True
        try:
            self._informer.subscribe(self._on_volume)
            while True:
                await self._clock.sleep(_LOOK_S)
                for uid in self._owned:
                    self.look(uid)
        finally:
            self._running = False
            await self._tasks.close()

    def look(self, uid: str) -> None:
        """Something about the volume, or who uses it, has changed: make it true again, soon."""
        self._again.add(uid)
        if self._running and uid not in self._at_work:
            self._at_work.add(uid)
            self._tasks.start(self._work(uid), name=uid)

    def _on_volume(self, change: Change[Volume]) -> None:
        about = change.new or change.old
        if about is None:
            return
        uid = about.metadata.uid
        if change.new is None:
            self._volumes.pop(uid, None)
        else:
            self._volumes[uid] = change.new
        self._enter_or_leave(uid)
        self._news.set()
        self._tell_listeners(uid)
        self.look(uid)

    def _enter_or_leave(self, uid: str) -> None:
        volume = self._volumes.get(uid)
        if volume is None or volume.status.node != self._node:
            self._owned.pop(uid, None)
            self._told.pop(uid, None)
        elif uid in self._owned:
            self._owned[uid].volume = volume
        else:
            self._owned[uid] = OwnedVolume(uid, volume, self._users.setdefault(uid, []), lock=self.lock(uid))

    def _tell_listeners(self, uid: str) -> None:
        for listener in self._listeners:
            listener(uid)

    async def _work(self, uid: str) -> None:
        """Until nothing is to be done; what fails is done again."""
        try:
            while uid in self._again:
                self._again.discard(uid)
                try:
                    await self._make_true(uid)
                except PrimordiaError as error:
                    log.warning("volume %s waits: %s", uid, error)
                    await self._clock.sleep(_RETRY_S)
                    self._again.add(uid)
        finally:
            self._at_work.discard(uid)

    async def _make_true(self, uid: str) -> None:
        volume, owned = self._volumes.get(uid), self._owned.get(uid)
        if volume is None:
            return
        if volume.metadata.deletion_timestamp is not None:
            if owned is None or not owned.is_open:
                await self._disks.destroy(volume)
            return
        if owned is None:
            return
        async with owned.lock:
            found = await self._disks.look(owned)
            if found and owned.opening is None:
                await self._disks.grow(owned)
        if found:
            self.tell(uid, **found, **await self._measured(owned))
            self._tell_listeners(uid)
            await self._relieve(owned)

    def _laid_over(self, stored: VolumeStatus, fields: dict[str, Any]) -> VolumeStatus:
        """The words of an owner from before say nothing any more."""
        return msgspec.structs.replace(stored, **fields) if stored.node == self._node else stored

    async def _measured(self, owned: OwnedVolume) -> dict[str, int]:
        """What it takes of the pool, but not at each change: that would be written all the time."""
        now_s = self._clock.boottime()
        if owned.measured_s and now_s - owned.measured_s < _LOOK_S:
            return {}
        owned.measured_s = now_s
        return {"used_bytes": await self._disks.used_bytes(owned)}

    async def _relieve(self, owned: OwnedVolume) -> None:
        if await write_again(owned):
            words = f"The pool of node {self._node} had no room for what its guest wrote: the guest stood, and tries again."
            log.warning("volume %s: %s", owned.title, words)
            if self._events is not None:
                self._events.record(owned.volume, "PoolFull", words, warning=True)

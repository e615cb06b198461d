"""Disks in this node's pool that are another node's by now: cut in their old epoch, let go, then held like any copy.

A node that comes back from the dead finds its disks as the end left them, and others write those volumes. Nothing that was
written here is lost: the disk's last state becomes a snapshot. What of it the new owner never had is put aside, when its
delta says so, or here where no copy is wanted any more, and stays for people to look into until the volume is destroyed.

Invariant: a disk is let go only when the volume's object says another owner in a newer epoch than the disk has, and no microVM
has it open. Each step may be done again, so a crash between any two is forgiven. What has no object at all is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.ports.volumes import VolumeInfo
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.resources import Volume

log = logging.getLogger(__name__)

_RETRY_S = 1.0


def is_anothers(volume: Volume, info: VolumeInfo, node: str) -> bool:
    """Whether a disk that is here is of an epoch after which another node became the volume's owner. Pure."""
    status = volume.status
    return info.written_here and bool(status.node) and status.node != node and info.epoch < status.epoch


class Returning:
    """One node's."""

    def __init__(
        self, keeper: VolumeKeeper, registry: Registry, informers: Informers, events: EventRecorder, node: str
    ) -> None:
        self._keeper = keeper
        self._registry = registry
        self._volumes = informers.of(Volume)
        self._events = events
        self._node = node
        self._tasks = TaskSet("returning")
        self._at_work: set[str] = set()

    async def run(self) -> NoReturn:
        """Follow the volumes until cancelled."""
        try:
            self._volumes.subscribe(self._on_volume)
            await asyncio.get_running_loop().create_future()
            raise AssertionError("nothing ends this but its cancellation")
        finally:
            self._volumes.unsubscribe(self._on_volume)
            await self._tasks.close()

    def _on_volume(self, change: Change[Volume]) -> None:
        volume = change.new
        if volume is None or not volume.status.node or volume.status.node == self._node:
            return
        uid = volume.metadata.uid
        if uid not in self._at_work and volume.metadata.deletion_timestamp is None:
            self._at_work.add(uid)
            self._tasks.start(self._let_go(volume), name=uid)

    async def _let_go(self, volume: Volume) -> None:
        meta = volume.metadata
        try:
            told = ""
            while True:
                try:
                    if await self._is_done(volume):
                        return
                except NotFoundError:
                    return
                except PrimordiaError as error:
                    if str(error) != told:
                        told = str(error)
                        log.warning("the disk of volume %s/%s stays for now: %s", meta.namespace, meta.name, error)
                await self._registry.clock.sleep(_RETRY_S)
        finally:
            self._at_work.discard(meta.uid)

    async def _is_done(self, seen: Volume) -> bool:
        meta = seen.metadata
        info = await self._keeper.pool.find(meta.uid)
        if info is None or not info.written_here:
            return True
        async with self._keeper.lock(meta.uid):
            volume = await self._registry.get(Volume, meta.name, meta.namespace)  # a cache is not enough to judge a disk by
            if volume.metadata.uid != meta.uid or volume.metadata.deletion_timestamp is not None:
                return True
            info = await self._keeper.pool.find(meta.uid)
            if info is None or not is_anothers(volume, info, self._node):
                return True
            if self._keeper.is_used(meta.uid):
                return False
            await self._keeper.hand_back(meta.uid, info.epoch)
        self._events.record(
            volume,
            "DiskLetGo",
            f"Node {self._node} had written it until epoch {info.epoch}, and node {volume.status.node} writes it now: what the"
            " disk there held is a snapshot, and a copy from now on.",
        )
        return True

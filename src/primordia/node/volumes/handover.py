"""The last of a volume's data goes to the node that is to own it next, while nothing writes it here any more.

Invariant: what is said to be handed over is everything that was ever written here in that epoch. The controllers ask for it
when the registry shows that no context of the lifeform runs; from then on the disk is not opened here in this epoch, so the
snapshot that is cut after that is the last. It counts as a sync: wherever the volume is written next, that snapshot is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from primordia.domain.snapshots import Manifest
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.node.volumes.owned import OwnedVolume
from primordia.registry.rules import timestamp
from primordia.wire.resources import Volume
from primordia.wire.volumes import HandedOver, Handover, LastSync

log = logging.getLogger(__name__)

_POLL_S = 0.05
_RETRY_S = 0.5

Record = Callable[[Volume, LastSync | None, HandedOver], Awaitable[object]]
"""Writes both into the volume's status. Raises ConflictError where its owner, epoch or wanted hand-over has changed."""


class Cuts(Protocol):
    """Who snapshots a disk."""

    async def cut(self, owned: OwnedVolume) -> Manifest:
        """As it is now."""


class Copies(Protocol):
    """Who feeds the copies."""

    async def until_on(self, uid: str, number: int, node: str) -> None:
        """Wait until that node holds the snapshot durably."""


class Handovers:
    """One node's."""

    def __init__(self, keeper: VolumeKeeper, cuts: Cuts, copies: Copies, record: Record, clock: Clock) -> None:
        self._keeper = keeper
        self._cuts = cuts
        self._copies = copies
        self._record = record
        self._clock = clock
        self._tasks = TaskSet("handovers")
        self._at_work: set[str] = set()
        self._running = False

    def begin(self) -> None:
        """Follow the keeper's volumes from now on."""
        self._running = True
        self._keeper.subscribe(self._on_volume)

    async def close(self) -> None:
        """End what is under way; the next daemon does it again."""
        self._running = False
        await self._tasks.close()

    def _on_volume(self, uid: str) -> None:
        owned = self._keeper.owned.get(uid)
        if owned is None or uid in self._at_work or not self._running or wanted(owned) is None:
            return
        self._at_work.add(uid)
        self._tasks.start(self._until_done(owned), name=owned.title)

    async def _until_done(self, owned: OwnedVolume) -> None:
        try:
            while self._keeper.owned.get(owned.uid) is owned and (handover := wanted(owned)) is not None:
                work = asyncio.get_running_loop().create_task(self._hand_over(owned, handover), name=owned.title)
                try:
                    await self._while_wanted(owned, handover, work)
                except PrimordiaError as error:
                    log.warning("volume %s is not handed over yet: %s", owned.title, error)
                    await self._clock.sleep(_RETRY_S)
        finally:
            self._at_work.discard(owned.uid)

    async def _while_wanted(self, owned: OwnedVolume, handover: Handover, work: asyncio.Task[None]) -> None:
        """A copy that does not answer may keep the work for ever: it ends when it is not wanted any more."""
        done = asyncio.Event()
        work.add_done_callback(lambda _: done.set())
        try:
            while not work.done() and self._keeper.owned.get(owned.uid) is owned and wanted(owned) == handover:
                await wait_event(self._clock, done, _RETRY_S)
        finally:
            work.cancel()
            await asyncio.wait({work})
        if not work.cancelled():
            work.result()

    async def _hand_over(self, owned: OwnedVolume, handover: Handover) -> None:
        if owned.is_open:
            await self._clock.sleep(_POLL_S)
            return
        volume = owned.volume
        done = HandedOver(to=handover.to, at=handover.at)
        if await self._keeper.pool.find(owned.uid) is None and not volume.status.size_bytes:
            await self._record(volume, None, done)  # there never was a disk
            return
        manifest = await self._cuts.cut(owned)
        await self._copies.until_on(owned.uid, manifest.number, handover.to)
        done = HandedOver(to=handover.to, at=handover.at, number=manifest.number)
        at = timestamp(self._clock.wall())
        synced = LastSync(epoch=manifest.epoch, number=manifest.number, at=at, copies=(handover.to,))
        await self._record(volume, synced, done)
        log.info("volume %s: all of it, up to snapshot %d, is on %s", owned.title, manifest.number, handover.to)


def wanted(owned: OwnedVolume) -> Handover | None:
    """To whom the volume is to be handed over, and has not been yet."""
    handover, handed = owned.volume.status.handover, owned.volume.status.handed_over
    if handover is None or not owned.is_handed_over:
        return None
    return None if handed is not None and (handed.to, handed.at) == (handover.to, handover.at) else handover

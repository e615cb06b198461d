"""Copies that are wanted here no more, for the volume's copies are elsewhere now: they go, once nothing rests on them.

Invariant: what a sync has promised is never given up here before every copy that is wanted has it. So a copy stays while any
of the others has no place yet, is still being made, cannot be reached, or lacks the last sync; and it is judged by the
registry, not by a cache, from when on nothing more is promised here: whoever made this node a holder again, and was told what
it holds, had said so in the registry before. It stays as well while the owner is silent: what that told of the others may be
old, and a takeover counts on what is here. What the owner never had, for another node than this one went on when its owner
died, is nowhere else: it is put aside, and stays until the volume is destroyed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import msgspec

from primordia.domain.snapshots import Manifest
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.ports.volumes import Volumes
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.conditions import is_silent
from primordia.wire.resources import Node, Volume
from primordia.wire.volumes import Replication, holder_finalizer, is_tail

log = logging.getLogger(__name__)

_RETRY_S = 5.0


def is_surplus(volume: Volume, node: str) -> bool:
    """Whether what that node holds of the volume is wanted no more, and nothing would be lost with it."""
    status = volume.status
    if holder_finalizer(node) not in volume.metadata.finalizers or volume.metadata.deletion_timestamp is not None:
        return False
    if not status.node or node == status.node or node in status.replicas:
        return False
    mirror = (volume.spec.replication or Replication()).layout.mirror
    if len(status.replicas) < (1 if mirror is None else mirror):
        return False
    told, synced = {copy.node: copy for copy in status.copies}, status.last_sync
    for name in status.replicas:
        copy = told.get(name)
        if copy is None or copy.state not in ("InSync", "Behind"):
            return False
        if synced is not None and (copy.epoch, copy.number) < (synced.epoch, synced.number):
            return False
    return True


def never_owned(volume: Volume, snapshots: Sequence[Manifest]) -> tuple[int, ...]:
    """Those that a node which took the volume over did not have: it went on from an older one. Pure."""
    began = volume.status.restored_from
    return tuple(each.number for each in snapshots if is_tail(began, each.epoch, each.number))


Refusing = Callable[[str], AbstractContextManager[object]]
"""For the block nothing of a volume is acknowledged here."""


class Surplus:
    """One node's. `refusing` is of who acknowledges deltas here, where anybody does."""

    def __init__(
        self, pool: Volumes, registry: Registry, informers: Informers, node: str, refusing: Refusing = nullcontext
    ) -> None:
        self._pool = pool
        self._refusing = refusing
        self._registry = registry
        self._informer = informers.of(Volume)
        self._node = node
        self._tasks = TaskSet("surplus")
        self._at_work: set[str] = set()

    async def run(self) -> NoReturn:
        """Follow the volumes until cancelled."""
        try:
            self._informer.subscribe(self._on_volume)
            await asyncio.get_running_loop().create_future()
            raise AssertionError("nothing ends this but its cancellation")
        finally:
            self._informer.unsubscribe(self._on_volume)
            await self._tasks.close()

    def _on_volume(self, change: Change[Volume]) -> None:
        volume = change.new
        if volume is not None and is_surplus(volume, self._node) and volume.metadata.uid not in self._at_work:
            self._at_work.add(volume.metadata.uid)
            self._tasks.start(self._let_go(volume), name=volume.metadata.uid)

    async def _let_go(self, volume: Volume) -> None:
        meta = volume.metadata
        try:
            while True:
                try:
                    if await self._delete(meta.name, meta.namespace, meta.uid):
                        return
                except NotFoundError:
                    return
                except PrimordiaError as error:
                    log.warning("the copy of volume %s/%s stays for now: %s", meta.namespace, meta.name, error)
                await self._registry.clock.sleep(_RETRY_S)
        finally:
            self._at_work.discard(meta.uid)

    async def _delete(self, name: str, namespace: str, uid: str) -> bool:
        """Let it go if it is surplus; False where its disk is still here, which is let go first (`returning.py`), and while
        its owner is silent."""
        if not await self._is_surplus(name, namespace, uid):
            return True
        with self._refusing(uid):
            volume = await self._is_surplus(name, namespace, uid)
            return await self._end(volume) if volume is not None else True

    async def _is_surplus(self, name: str, namespace: str, uid: str) -> Volume | None:
        """The volume as it is stored now, if what is here of it is surplus."""
        volume = await self._registry.get(Volume, name, namespace)
        return volume if volume.metadata.uid == uid and is_surplus(volume, self._node) else None

    async def _end(self, volume: Volume) -> bool:
        name, namespace, uid = volume.metadata.name, volume.metadata.namespace, volume.metadata.uid
        if await self._is_silent(volume.status.node):
            return False
        known = await self._pool.find(uid)
        if known is not None and known.written_here:
            return False
        if known is not None and known.tails and not known.newest and not known.pending:
            return True
        if known is not None:
            await self._pool.settle(uid)
            for number in reversed(never_owned(volume, await self._pool.snapshots(uid))):
                await self._pool.quarantine(uid, number, tail=True)
        await self._pool.retire(uid)
        if await self._pool.find(uid) is not None:
            log.info("volume %s/%s: the copy here is wanted no more; what its owner never had stays", namespace, name)
            return True
        await self._registry.mutate(Volume, name, namespace, lambda stored: self._freed(stored, uid))
        log.info("volume %s/%s: the copy here is wanted no more, and is deleted", namespace, name)
        return True

    async def _is_silent(self, name: str) -> bool:
        """Whether a node is away, or no node of the soup any more."""
        try:
            return is_silent((await self._registry.get(Node, name)).status.conditions)
        except NotFoundError:
            return True

    def _freed(self, stored: Volume, uid: str) -> Volume | None:
        meta, own = stored.metadata, holder_finalizer(self._node)
        if meta.uid != uid or own not in meta.finalizers or self._node in stored.status.replicas:
            return None
        rest = tuple(each for each in meta.finalizers if each != own)
        return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(meta, finalizers=rest))

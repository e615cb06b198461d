"""This node's body of the data port: what people and other nodes ask of the volumes that it owns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from primordia.domain.snapshots import Manifest, round_up
from primordia.kit.clock import Clock
from primordia.kit.errors import CapacityError, ConflictError, InvalidError, NotFoundError, UnsupportedError
from primordia.kit.units import bytes_quantity
from primordia.node.volumes.births import Birth, Births
from primordia.node.volumes.cutting import Cutter
from primordia.node.volumes.images import Incoming, outgoing, take_in
from primordia.node.volumes.owned import OwnedVolume
from primordia.node.volumes.restoring import Restorer
from primordia.node.volumes.telling import find_snapshot, told
from primordia.registry import keys
from primordia.registry.registry import Registry
from primordia.wire import data as wire
from primordia.wire.resources import Volume
from primordia.wire.volumes import Filesystem, VolumeSpec, VolumeStatus

if TYPE_CHECKING:
    from primordia.node.volumes.keeper import VolumeKeeper
    from primordia.registry.events import EventRecorder

Sync = Callable[[OwnedVolume, float], Awaitable[wire.SyncResult]]
Scrub = Callable[[OwnedVolume], Awaitable[wire.ScrubResult]]


class NodeVolumes:
    """One node's. `sync` and `scrub` are set by who copies volumes; `notes` is a folder for births under way."""

    def __init__(
        self,
        keeper: VolumeKeeper,
        cutter: Cutter,
        registry: Registry,
        clock: Clock,
        *,
        node: str,
        notes: Path,
        events: EventRecorder | None = None,
    ) -> None:
        self._keeper = keeper
        self._cutter = cutter
        self._registry = registry
        self._node = node
        self._births = Births(keeper.pool, registry, node, notes)
        self.restorer = Restorer(keeper, cutter, registry, clock, events)
        self.sync_with: Sync | None = None
        self.scrub_with: Scrub | None = None

    async def run(self) -> None:
        """End what a daemon before this one left, until cancelled."""
        await self._births.clear()
        await self.restorer.run()

    # ------------------------------------------------------------ the port

    async def snapshot(self, namespace: str, name: str, request: wire.SnapshotRequest) -> wire.SnapshotTaken:
        """See the port."""
        owned = await self._here(namespace, name)
        taken = await self._cutter.take(owned, checkpoint=request.checkpoint, quiesce=request.quiesce or None)
        return wire.SnapshotTaken(snapshot=told(taken.manifest), quiesced=taken.quiesced, note=taken.note)

    async def snapshots(self, namespace: str, name: str) -> wire.SnapshotList:
        """See the port."""
        owned = await self._here(namespace, name)
        return wire.SnapshotList(items=tuple(told(each) for each in await self._keeper.pool.snapshots(owned.uid)))

    async def restore(self, namespace: str, name: str, request: wire.RestoreRequest) -> wire.Restored:
        """See the port."""
        return await self.restorer.restore(await self._here(namespace, name), request.to)

    async def clone(self, namespace: str, name: str, request: wire.CloneRequest) -> wire.Cloned:
        """See the port."""
        place = wire.orphan_place(request.orphan)
        if place is not None:
            return await self._clone_orphan(namespace, name, request.name, place[1])
        owned = await self._here(namespace, name)
        await self._births.want_free(namespace, request.name)
        source = (
            find_snapshot(await self._keeper.pool.snapshots(owned.uid), request.source, owned.title) if request.source else None
        )
        with self._cutter.holding(owned.uid, source.number if source is not None else 0):
            async with self._births.of(namespace, request.name) as uid:
                begun_s = time.perf_counter()
                info = await self._keeper.pool.clone(owned.uid, uid, number=source.number if source is not None else 0)
                took_ms = (time.perf_counter() - begun_s) * 1000
                spec = _unowned(owned.volume.spec, info.size_bytes)
                status = VolumeStatus(size_bytes=info.size_bytes)
                await self._births.create(uid, Birth(namespace, request.name), spec, status)
        return wire.Cloned(name=request.name, uid=uid, node=self._node, size_bytes=info.size_bytes, took_ms=round(took_ms, 3))

    async def orphans(self) -> wire.OrphanList:
        """See the port."""
        found: list[wire.Orphan] = []
        known = {volume.metadata.uid: volume for volume in await self._every_volume()}
        for info in await self._keeper.pool.list():
            volume = known.get(info.name)
            if volume is None:
                if info.written_here and not self._keeper.scratch.owns(info.name) and not self._births.is_under_way(info.name):
                    found.append(wire.Orphan(uid=info.name, node=self._node, size_bytes=info.size_bytes))
                continue
            for manifest in await self._keeper.pool.tails(info.name) if info.tails else ():
                found.append(
                    wire.Orphan(
                        uid=info.name,
                        node=self._node,
                        namespace=volume.metadata.namespace,
                        name=volume.metadata.name,
                        size_bytes=manifest.size_bytes,
                        snapshot=told(manifest),
                    )
                )
        return wire.OrphanList(items=tuple(found))

    async def export(self, namespace: str, name: str, source: str = "") -> AsyncIterator[bytes]:
        """See the port."""
        owned = await self._here(namespace, name)
        if source:
            chosen = find_snapshot(await self._keeper.pool.snapshots(owned.uid), source, owned.title)
        else:
            chosen = await self._cutter.cut(owned)
        with self._cutter.holding(owned.uid, chosen.number):
            async for chunk in outgoing(self._keeper.pool, owned.uid, chosen.number):
                yield chunk

    async def import_(self, namespace: str, request: wire.ImportRequest, chunks: AsyncIterator[bytes]) -> wire.Imported:
        """See the port."""
        await self._births.want_free(namespace, request.name)
        incoming = Incoming(chunks)
        said = (await incoming.begin()).manifest
        wanted = round_up(request.size_bytes or said.size_bytes)
        await self._want_room(request.name, said, wanted)
        async with self._births.of(namespace, request.name) as uid:
            made = await take_in(self._keeper.pool, uid, incoming, time.time())
            if wanted > made.size_bytes:
                await self._keeper.pool.grow(uid, wanted)
            spec = VolumeSpec(size=bytes_quantity(wanted), filesystem=_filesystem(request.filesystem))
            status = VolumeStatus(size_bytes=wanted, number=made.number)
            await self._births.create(uid, Birth(namespace, request.name), spec, status)
        return wire.Imported(name=request.name, uid=uid, node=self._node, size_bytes=wanted, root=made.root)

    async def sync(self, namespace: str, name: str, request: wire.SyncRequest) -> wire.SyncResult:
        """See the port."""
        owned = await self._here(namespace, name)
        if self.sync_with is None:
            raise UnsupportedError("This node copies no volumes.")
        return await self.sync_with(owned, request.timeout_seconds)

    async def scrub(self, namespace: str, name: str) -> wire.ScrubResult:
        """See the port."""
        owned = await self._here(namespace, name)
        if self.scrub_with is None:
            raise UnsupportedError("This node verifies no volumes.")
        return await self.scrub_with(owned)

    # ------------------------------------------------------------ inside

    async def _clone_orphan(self, namespace: str, name: str, new: str, number: int) -> wire.Cloned:
        """A volume of its own from what was put aside here; it stays aside, too."""
        volume = await self._registry.get(Volume, name, namespace)
        await self._births.want_free(namespace, new)
        async with self._births.of(namespace, new) as uid:
            begun_s = time.perf_counter()
            info = await self._keeper.pool.clone(volume.metadata.uid, uid, number=number, tail=True)
            took_ms = (time.perf_counter() - begun_s) * 1000
            spec, status = _unowned(volume.spec, info.size_bytes), VolumeStatus(size_bytes=info.size_bytes)
            await self._births.create(uid, Birth(namespace, new), spec, status)
        return wire.Cloned(name=new, uid=uid, node=self._node, size_bytes=info.size_bytes, took_ms=round(took_ms, 3))

    async def _every_volume(self) -> tuple[Volume, ...]:
        """As the store has them: one that a cache has not heard of would be taken for no more."""
        return (await self._registry.list(Volume)).items

    async def _here(self, namespace: str, name: str) -> OwnedVolume:
        """The volume, whose disk is here. NotFoundError, ConflictError."""
        owned = self._keeper.find(namespace, name)
        if owned is None:
            volume = await self._registry.get(Volume, name, namespace)
            owned = self._keeper.owned.get(volume.metadata.uid)
        if owned is None:
            raise ConflictError(
                f"{keys.describe(Volume, name, namespace)} is not of node {self._node}.", reason="NotOwner", remedy="Try again."
            )
        if not owned.here and await self._keeper.pool.find(owned.uid) is None:
            raise NotFoundError(
                f"{keys.describe(Volume, name, namespace)} has no disk yet.",
                remedy="It is made when its lifeform first starts.",
            )
        return owned

    async def _want_room(self, name: str, said: Manifest, wanted: int) -> None:
        if said.size_bytes > wanted:
            raise InvalidError("size", f"the image has {said.size_bytes} bytes, and volume {name} is to have {wanted}")
        status = await self._keeper.pool.pool()
        if wanted > status.total_bytes - status.reserve_bytes:
            raise CapacityError(f"Node {self._node} has no room for volume {name} of {wanted} bytes.", reason="PoolFull")


def _unowned(spec: VolumeSpec, size_bytes: int) -> VolumeSpec:
    """The same for a volume of its own, that nobody uses yet."""
    return msgspec.structs.replace(spec, size=bytes_quantity(size_bytes), lifeform="", context="")


def _filesystem(name: str) -> Filesystem:
    if name == "ext4":
        return "ext4"
    if name == "xfs":
        return "xfs"
    raise InvalidError("filesystem", f"{name[:40]!r} is neither ext4 nor xfs")

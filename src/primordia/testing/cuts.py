"""A node's volumes without a node: real keeper, cutter and service, a registry in memory, a clock of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import Clock
from primordia.kit.tasks import TaskSet
from primordia.node.status import StatusWriter
from primordia.node.volumes.cutting import Cutter
from primordia.node.volumes.disks import Disks
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.node.volumes.owned import OwnedVolume
from primordia.node.volumes.service import NodeVolumes
from primordia.ports.store import Store
from primordia.ports.volumes import Volumes
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Volume
from primordia.wire.volumes import SnapshotPolicy, VolumeSpec, VolumeStatus

NODE = "n1"
SIZE = 1 << 20


@dataclass
class CutWorld:
    """One node's volumes. What runs in the background runs until the block of `cut_world` ends."""

    pool: Volumes
    clock: Clock
    registry: Registry
    keeper: VolumeKeeper
    cutter: Cutter
    service: NodeVolumes
    tasks: TaskSet
    events: EventRecorder

    async def volume(self, name: str, *, size_bytes: int = SIZE, lifeform: str = "", **policy: Any) -> OwnedVolume:
        """A new volume of this node, with its disk."""
        spec = VolumeSpec(
            size=str(size_bytes), lifeform=lifeform, context="main" if lifeform else "", snapshots=SnapshotPolicy(**policy)
        )
        status = VolumeStatus(phase="Bound", node=NODE, epoch=1)
        made = await self.registry.create(Volume(metadata=ObjectMeta(name=name, namespace="default"), spec=spec, status=status))
        await self.pool.create(made.metadata.uid, size_bytes)
        await self.until(lambda: self.keeper.find("default", name) is not None)
        owned = self.keeper.find("default", name)
        assert owned is not None
        self.keeper.look(owned.uid)
        await self.until(lambda: owned.here)
        return owned

    async def until(self, condition: Any) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(30):
            while not condition():
                await self.clock.sleep(0.01)

    def cut_by_the_clock(self) -> None:
        """Let the cutter's loop run."""
        self.tasks.start(self.cutter.run(), name="cutter")


@asynccontextmanager
async def cut_world(pool: Volumes, clock: Clock, folder: Path) -> AsyncIterator[CutWorld]:
    """Such a node; `folder` is for its notes."""
    store: Store = MemoryStore(clock)
    registry = Registry(store, clock)
    informers, tasks = Informers(registry), TaskSet("cut-world")
    writer, events = StatusWriter(registry, clock), EventRecorder(registry, "test", NODE)

    async def no_filesystem(disk: Path, kind: str, label: str) -> None:
        return

    async def no_guest(owned: OwnedVolume, size_bytes: int) -> None:
        return

    disks = Disks(pool, registry, NODE, make_filesystem=no_filesystem, grow_guest=no_guest, intents=folder / "intents")
    keeper = VolumeKeeper(disks, informers, writer, clock, NODE)
    cutter = Cutter(keeper, clock, events)
    service = NodeVolumes(keeper, cutter, registry, clock, node=NODE, notes=folder / "births", events=events)
    for name, work in (("informers", informers.run()), ("status", writer.run()), ("keeper", keeper.run())):
        tasks.start(work, name=name)
    await informers.synced()
    tasks.start(service.run(), name="service")
    try:
        yield CutWorld(pool, clock, registry, keeper, cutter, service, tasks, events)
    finally:
        await tasks.close()
        await store.close()

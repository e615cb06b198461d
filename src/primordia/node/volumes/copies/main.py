"""Everything about copies on one node, put together: what it sends, what it holds, what it verifies, and syncs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from primordia.kit.metrics import Metrics
from primordia.node.volumes.copies.auditor import Auditor, Damage
from primordia.node.volumes.copies.directory import Directory
from primordia.node.volumes.copies.outgoing import Outgoing
from primordia.node.volumes.copies.receiver import Reach, Receiver
from primordia.node.volumes.copies.replicator import Replicator
from primordia.node.volumes.copies.scrubbing import Scrubber
from primordia.node.volumes.cutting import Cutter
from primordia.node.volumes.handover import Handovers
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.node.volumes.syncs import Syncs
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.ownership import NodeLife
from primordia.registry.registry import Registry


@dataclass(frozen=True)
class Company:
    """Other nodes: `reach` gives one by name; `life` tells this node's life now, without it the node is not guarded."""

    reach: Reach
    metrics: Metrics
    life: Callable[[], NodeLife | None] | None = None


class VolumeCopies:
    """One node's. `holder` is its body of the copies port, `syncs` and `scrubber` what the data port asks for.

    Sets what `cutter` leaves for copies.
    """

    def __init__(
        self,
        keeper: VolumeKeeper,
        cutter: Cutter,
        informers: Informers,
        registry: Registry,
        events: EventRecorder,
        *,
        node: str,
        company: Company,
    ) -> None:
        reach, metrics, clock = company.reach, company.metrics, registry.clock
        self._events = events
        self._directory = Directory(informers, node)
        self._outgoing = Outgoing(keeper.pool, clock, metrics)
        self._auditor = Auditor(keeper.pool, clock, metrics, found=self._found)
        self.holder = Receiver(
            keeper.pool, self._directory, self._outgoing, self._auditor, hold=keeper.hold, reach=reach, clock=clock
        )
        self.replicator = Replicator(keeper, cutter, self._directory, self._outgoing, reach=reach, clock=clock)
        self.syncs = Syncs(cutter, self.replicator, registry, clock, metrics, company.life)
        self._handovers = Handovers(keeper, cutter, self.replicator, self.syncs.record, clock)
        self.scrubber = Scrubber(self._auditor, self.replicator, cutter, reach, clock, node)
        cutter.needed = self.replicator.needed

    async def run(self) -> None:
        """Work until cancelled; what was under way goes on at the next start."""
        try:
            self._handovers.begin()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.holder.recover(), name="copies/recover")
                group.create_task(self.replicator.run(), name="copies/replicator")
                group.create_task(self._auditor.run(), name="copies/auditor")
        finally:
            await self._handovers.close()
            await self.syncs.close()
            await self.holder.close()
            await self._outgoing.close()

    def _found(self, damage: Damage) -> None:
        volume = self._directory.find(damage.uid)
        if volume is not None:
            self._events.record(
                volume,
                "SnapshotDamaged",
                f"Snapshot {damage.number} on node {self._directory.node} differs in {damage.bytes} bytes from what was"
                " written, and was put aside.",
                warning=True,
            )
        self.replicator.hurry(damage.uid, ask=True)

"""What a node with a pool does for its volumes, put together."""

from __future__ import annotations

import asyncio

from primordia.kit.clock import Clock
from primordia.kit.paths import NodePaths
from primordia.node.volumes.copies.main import Company, VolumeCopies
from primordia.node.volumes.cutting import Cutter
from primordia.node.volumes.holdings import Holdings
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.node.volumes.returning import Returning
from primordia.node.volumes.service import NodeVolumes
from primordia.node.volumes.surplus import Surplus
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry


class VolumeWork:
    """`service` is the node's body of the data port, `copies` what it does for copies; None where it stands alone."""

    def __init__(
        self,
        keeper: VolumeKeeper,
        registry: Registry,
        clock: Clock,
        events: EventRecorder,
        *,
        node: str,
        paths: NodePaths,
        informers: Informers | None = None,
        company: Company | None = None,
    ) -> None:
        self.keeper = keeper
        self.cutter = Cutter(keeper, clock, events)
        self.service = NodeVolumes(keeper, self.cutter, registry, clock, node=node, notes=paths.intents, events=events)
        self.copies: VolumeCopies | None = None
        if company is not None and informers is not None:
            self.copies = VolumeCopies(keeper, self.cutter, informers, registry, events, node=node, company=company)
            self.service.sync_with = self.copies.syncs.sync
            self.service.scrub_with = self.copies.scrubber.scrub
        self._followers: tuple[tuple[str, Holdings | Returning | Surplus], ...] = ()
        if informers is not None:
            currency = self.copies.holder.currency if self.copies is not None else None
            refusing = (self.copies.holder.giving_up,) if self.copies is not None else ()
            self._followers = (
                ("holdings", Holdings(keeper.pool, registry, informers, node, currency)),
                ("returning", Returning(keeper, registry, informers, events, node)),
                ("surplus", Surplus(keeper.pool, registry, informers, node, *refusing)),
            )

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, work in (("keeper", self.keeper.run()), ("cuts", self.cutter.run()), ("service", self.service.run())):
                group.create_task(work, name=f"volumes/{name}")
            if self.copies is not None:
                group.create_task(self.copies.run(), name="volumes/copies")
            for name, follower in self._followers:
                group.create_task(follower.run(), name=f"volumes/{name}")

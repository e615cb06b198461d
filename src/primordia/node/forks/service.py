"""The forks of one node, put together: templates, pool, claims, live forks, and what ends them.

It begins when it is known what an earlier daemon left: until then nothing is built and nothing waits, so that whatever lies
in the pool's folder, or runs without a record, is that daemon's and can be put away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable

from primordia.kit.deadline import wait_event
from primordia.kit.metrics import Metrics
from primordia.node.execute import Executor
from primordia.node.fleet import Fleet
from primordia.node.forks.births import Births
from primordia.node.forks.building import Builder
from primordia.node.forks.claims import Claims
from primordia.node.forks.expiry import Reaper
from primordia.node.forks.forking import Forker
from primordia.node.forks.keeper import TemplateKeeper
from primordia.node.forks.live import LiveForks
from primordia.node.forks.meters import ForkMeters
from primordia.node.forks.pool import ForkPool
from primordia.node.forks.programs import Programs
from primordia.node.forks.promoting import Promoter
from primordia.node.forks.room import ForkRoom
from primordia.node.forks.standby import Standby
from primordia.node.forks.starts import LifeformStarts
from primordia.node.forks.store import TemplateStore
from primordia.node.forks.suspending import KeptMemories
from primordia.node.forks.templates import Templates
from primordia.node.services import Services
from primordia.node.status import StatusWriter
from primordia.ports.forks import Claimed, ClaimRequest, ForkReport, ForkRequest, Promoted
from primordia.registry.informers import Informers

log = logging.getLogger(__name__)

_COLLECT_S = 60.0


class ForkService:
    """ports.forks.Forks of this node."""

    def __init__(
        self,
        services: Services,
        fleet: Fleet,
        executor: Executor,
        informers: Informers,
        writer: StatusWriter,
        metrics: Metrics,
    ) -> None:
        self._services = services
        self._fleet = fleet
        book = services.addresses
        self._forker = Forker(services, book)
        self._store = TemplateStore(services.paths.templates, lambda key, message: self._corrupt(message), services.offload)
        builder = Builder(services, self._store, self._forker, book)
        room = ForkRoom(services, lambda: fleet.lives)
        self._templates = Templates(self._store, builder, lambda: self._pool, services.clock, services.settings)
        self._pool = ForkPool(services, self._forker, room.for_pool, self._templates.distrust)
        self._keeper = TemplateKeeper(services, informers, writer, self._templates, self._pool)
        self._standby = Standby(services, informers, self._templates)
        births = Births(services, fleet, executor, self._forker)
        meters = ForkMeters(metrics, lambda: dict(self._pool.waiting()), lambda: room.forks)
        self._programs = Programs(services)
        self._claims = Claims(services, self._keeper, self._templates, self._pool, self._forker, room, births, meters)
        self._live = LiveForks(services, fleet, self._forker, room, births, meters, self._programs)
        self._promoter = Promoter(services, fleet)
        self._reaper = Reaper(services, informers, lambda: fleet.lives)
        self._ready = asyncio.Event()
        fleet.waiting_uids = lambda: tuple(self._forker.linked)
        services.memories = self._memories = KeptMemories(services)
        services.fork_starts = LifeformStarts(
            services, executor, self._forker, self._templates, self._pool, self._memories, self._standby
        )

    @property
    def uids(self) -> set[str]:
        """Machines that belong here though no record names them."""
        return self._forker.uids

    async def claim(self, request: ClaimRequest) -> Claimed:
        """See the port."""
        await self._ready.wait()
        return await self._claims.claim(request)

    async def fork(self, uid: str, request: ForkRequest) -> ForkReport:
        """See the port."""
        await self._ready.wait()
        return await self._live.fork(uid, request)

    async def promote(self, uid: str, name: str) -> Promoted:
        """See the port."""
        await self._ready.wait()
        return await self._promoter.promote(uid, name)

    def open(self) -> None:
        """Learn what is on the disk, and clear what an earlier daemon had not finished. Blocks."""
        paths = self._services.paths
        self._store.open()
        shutil.rmtree(paths.pool, ignore_errors=True)
        for folder in (paths.pool, paths.forks):
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)

    async def run(self, swept: Callable[[], Awaitable[None]]) -> None:
        """Work until cancelled, once what an earlier daemon left has been `swept`; then nothing waits any more."""
        try:
            await swept()
            await self._services.offload(self.open)
            self._ready.set()
            async with asyncio.TaskGroup() as group:
                if self._services.settings.plain_templates:
                    group.create_task(self._standby.run(), name="forks/standby")
                for name, coroutine in (
                    ("templates", self._keeper.run()),
                    ("pool", self._pool.run()),
                    ("reaper", self._reaper.run()),
                    ("collect", self._collect()),
                ):
                    group.create_task(coroutine, name=f"forks/{name}")
        finally:
            await self._programs.close()
            await self._templates.close()
            await self._pool.empty()

    # ------------------------------------------------------------ inside

    async def _collect(self) -> None:
        """Delete what nobody uses any more."""
        while True:
            self._fleet.emptied.clear()
            with contextlib.suppress(OSError):
                await self._live.collect()
            await self._memories.collect(self._fleet.lives)
            frozen = {live.record.run.frozen for live in self._fleet.lives.values() if live.record.run is not None}
            await self._templates.collect(self._keeper.wanted(), frozen)
            await wait_event(self._services.clock, self._fleet.emptied, _COLLECT_S)

    def _corrupt(self, message: str) -> None:
        self._templates.report("TemplateCorrupt", message, True)

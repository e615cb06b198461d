"""The node: everything of one machine that makes the contexts bound to it real.

Its parts meet in the caches and in the fleet; each is a loop that can be cut off at any point. Ending the node lets go of
the microVMs and stops none: the next daemon adopts them by their records.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError
from primordia.kit.metrics import Metrics
from primordia.kit.paths import NodePaths
from primordia.node.access import Access
from primordia.node.addresses import AddressBook
from primordia.node.execute import Executor
from primordia.node.expecting import Expecting
from primordia.node.facts import Host, LinuxHost
from primordia.node.fleet import Fleet
from primordia.node.forks.service import ForkService
from primordia.node.images import ImageKeeper
from primordia.node.janitor import sweep
from primordia.node.keeping import Keeping
from primordia.node.names import Names
from primordia.node.network import NetworkKeeper
from primordia.node.node_status import NodeKeeper, Verdicts
from primordia.node.own_lease import OwnLease
from primordia.node.probes import Dial, Prober, dial_tcp
from primordia.node.records import Offload, Records, in_thread
from primordia.node.resolvers import Resolvers
from primordia.node.services import Connect, Services
from primordia.node.settings import NodeSettings
from primordia.node.status import StatusWriter
from primordia.node.volumes.copies.main import Company
from primordia.node.volumes.copies.receiver import Reach
from primordia.node.volumes.main import VolumeWork
from primordia.node.volumes.pool import NO_POOL, Pool
from primordia.ports.images import Images
from primordia.ports.network import Network
from primordia.ports.vmm import Vmm
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.ownership import StartGuard
from primordia.registry.registry import Registry
from primordia.wire.nodeconfig import NodeConfig
from primordia.wire.resources import Context

log = logging.getLogger(__name__)

_FEWEST_STARTS = 4


class Node:
    """One node. `contexts` and `forks` are its bodies of these ports, for the API. The owner runs `informers` and `events`.
    `volumes` are those that it writes, None where it has no pool.

    Without `resolvers` guests are given no names but those of their own lifeform. Without `lease` the node stands alone:
    nobody but itself says that it lives, and its starts are not guarded. `conditions` gives those of its object that
    others judge.
    """

    def __init__(  # noqa: PLR0913 (a composition: each is a port or a part that the owner shares)
        self,
        config: NodeConfig,
        *,
        registry: Registry,
        informers: Informers,
        events: EventRecorder,
        vmm: Vmm,
        connect: Connect,
        network: Network,
        images: Images,
        clock: Clock,
        resolvers: Resolvers | None = None,
        lease: OwnLease | None = None,
        host: Host | None = None,
        dial: Dial = dial_tcp,
        settings: NodeSettings | None = None,
        records: Records | None = None,
        offload: Offload = in_thread,
        metrics: Metrics | None = None,
        conditions: Verdicts = tuple,
        pool: Pool = NO_POOL,
        reach: Reach | None = None,
    ) -> None:
        settings, host = settings or NodeSettings(plain_templates=config.plain_templates), host or LinuxHost()
        paths = NodePaths(Path(config.state_dir), Path(config.run_dir))
        self._informers = informers
        self._network = network
        self._writer = StatusWriter(registry, clock)
        self._network_keeper = NetworkKeeper(network, informers, clock, config.name)
        self.volumes = pool.keeper(registry, informers, self._writer, clock, events, config.name, paths)
        life = lease.life if lease is not None else None
        company = Company(reach, metrics or Metrics(), life) if reach is not None else None
        self.volume_work = self._volume_work(registry, informers, clock, events, config.name, paths, company)
        self._services = Services(
            config=config,
            settings=settings,
            paths=paths,
            registry=registry,
            vmm=vmm,
            connect=connect,
            network=network,
            network_keeper=self._network_keeper,
            images=images,
            image_keeper=ImageKeeper(images, informers, self._writer, events, clock, config.name),
            records=records or Records(paths),
            offload=offload,
            addresses=AddressBook(config.pod_cidr),
            events=events,
            clock=clock,
            host=host,
            prober=Prober(clock, dial),
            names=None,
            give_address=lambda live: self.fleet.give_address(live),  # noqa: PLW0108 (the fleet comes after)
            lease=lease,
            start_guard=StartGuard(registry.store, config.name, lease.life) if lease is not None else None,
            fork_starts=None,
            memories=None,
            volumes=self.volumes,
            no_pool=pool.why_not,
            sync=self.volume_work.service.sync_with if self.volume_work is not None else None,
            start_gate=asyncio.Semaphore(settings.start_parallel or max(_FEWEST_STARTS, 2 * host.cpus())),
            adopt_gate=asyncio.Semaphore(settings.adopt_parallel),
        )
        executor = Executor(self._services)
        self.fleet = Fleet(self._services, informers, self._writer, self._services.addresses, executor)
        self.forks = ForkService(self._services, self.fleet, executor, informers, self._writer, metrics or Metrics())
        if resolvers is not None:
            self._services.names = Names(informers, config, resolvers, self.fleet.addresses).handler
        self._keeping = Keeping(paths.kept, informers, clock, config.name, offload)
        self._expecting = Expecting(self._services, informers, self.conditions_changed)
        self._keeper = NodeKeeper(self._services, informers, self._writer, conditions, lambda: self._expecting.ready)
        self.contexts = Access(self.fleet, settings, clock, config.name)
        informers.of(Context)

    def _volume_work(
        self,
        registry: Registry,
        informers: Informers,
        clock: Clock,
        events: EventRecorder,
        node: str,
        paths: NodePaths,
        company: Company | None,
    ) -> VolumeWork | None:
        if self.volumes is None:
            return None
        return VolumeWork(self.volumes, registry, clock, events, node=node, paths=paths, informers=informers, company=company)

    async def run(self) -> None:
        """Work until cancelled; then every microVM is let go of and goes on. Raises PrimordiaError when the network
        cannot be prepared."""
        paths = self._services.paths
        for folder in (paths.state, paths.run, paths.context_state("x").parent, paths.context_run("x").parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        await self._network.start()
        try:
            async with asyncio.TaskGroup() as group:
                for name, coroutine in (
                    ("status", self._writer.run()),
                    ("network", self._network_keeper.run(self.fleet, self.fleet.tell_faults)),
                    ("images", self._services.image_keeper.run()),
                    ("node", self._keeper.run()),
                    ("expecting", self._expecting.run()),
                    ("keeping", self._keeping.run()),
                    ("contexts", self.fleet.run()),
                    ("forks", self.forks.run(self._sweep)),
                    *((("volumes", self.volume_work.run()),) if self.volume_work is not None else ()),
                ):
                    group.create_task(coroutine, name=f"node/{name}")
        finally:
            await self._network.close()
            if self.volumes is not None:
                await self.volumes.pool.close()

    async def look(self) -> None:
        """Look at every context, and at the network, as after a change of everything; returns when it is done."""
        lives = list(self.fleet.lives.values())
        for live in lives:
            live.wake()
        self._network_keeper.changed()
        await self._network_keeper.settled()
        while True:
            # A worker that has taken notice has looked: between the two it does not wait.
            await asyncio.sleep(0)
            if not any(live.woken.is_set() for live in lives):
                return

    def conditions_changed(self) -> None:
        """What `conditions` gives is another one: write it down soon."""
        self._keeper.look()

    def shut_down_at_end(self) -> None:
        """When `run` is cancelled, shut the guests down in order instead of letting go of them."""
        self.fleet.shut_down_at_end()

    async def _sweep(self) -> None:
        """Once, when it is known what belongs here."""
        await self._informers.synced()
        bound = {
            context.metadata.uid
            for context in self._informers.of(Context).items()
            if context.spec.node == self._services.config.name
        }
        services = self._services
        machines = {live.record.machine for live in self.fleet.lives.values()}
        claimed = bound | set(self.fleet.lives) | machines | self.forks.uids
        try:
            gone = await sweep(services.paths, services.records, services.vmm, claimed)
        except PrimordiaError as error:
            log.error("nothing could be put away: %s", error)
            return
        if self.volumes is not None:
            await self.volumes.scratch.sweep(claimed)
        if gone:
            log.warning("put away what was left of %d contexts", len(gone))

"""The composition root of a node's daemon: the only place where technologies are chosen.

SIGTERM ends the daemon and lets every microVM go on; the next daemon adopts them. SIGUSR1 shuts them down in order first,
which is what `down` wants. The start-up order is written down in `run`: what needs nothing comes first, so that microVMs
are adopted even while the engine is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from primordia import __version__
from primordia.api.auth import server_tls
from primordia.api.copies import CopiesApi
from primordia.api.engine import EngineApi
from primordia.api.hosts import Boxes, VolumeHosts
from primordia.api.main import ApiServer
from primordia.api.operations import OperationsApi
from primordia.daemon.beat import beat
from primordia.daemon.engine import EngineFollower
from primordia.daemon.fence_events import tell_fence
from primordia.daemon.incarnation import Incarnation
from primordia.daemon.joining import join_api
from primordia.daemon.leading import Leading
from primordia.daemon.own import Own
from primordia.daemon.peer_routes import PeerRoutes
from primordia.daemon.router import Router, elsewhere
from primordia.domain.conditions import Verdict
from primordia.domain.engine import nearest_first, verdict_of
from primordia.domain.timings import Timings
from primordia.drivers.contexts_remote.contexts import Peers
from primordia.drivers.contexts_remote.copies import CopyPeers
from primordia.drivers.filesystems import make_filesystem, repair_filesystem
from primordia.drivers.guest_channel.guest import connect
from primordia.drivers.guest_channel.pace import Crowd
from primordia.drivers.images_local.local import LocalImages
from primordia.drivers.net_linux.driver import LinuxNetwork
from primordia.drivers.store_etcd.client import EtcdStore
from primordia.drivers.vmm_qemu.driver import QemuVmm
from primordia.host import accelerator
from primordia.host.pool import open_pool
from primordia.kit import netns
from primordia.kit.clock import SystemClock
from primordia.kit.errors import AlreadyExistsError, FatalError, PrimordiaError
from primordia.kit.identity import boot_id
from primordia.kit.metrics import Metrics
from primordia.kit.paths import NodePaths
from primordia.kit.pki import client_context
from primordia.node.main import Node
from primordia.node.own_lease import OwnLease
from primordia.node.resolvers import Resolvers
from primordia.node.volumes.pool import Pool
from primordia.ports.contexts import Contexts
from primordia.ports.data import VolumeService
from primordia.ports.forks import Forks
from primordia.ports.guest import Guest
from primordia.ports.vmm import Machine
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.supervisor.engine import CLIENT_PORT, PEER_PORT
from primordia.supervisor.plan import HOST_NETNS_VARIABLE, node_cgroup
from primordia.supervisor.touch import SharedContact
from primordia.supervisor.uplink import INTERFACE as UPLINK
from primordia.wire import copies, engine, joining, operations
from primordia.wire.meta import ObjectMeta
from primordia.wire.nodeconfig import NodeConfig
from primordia.wire.resources import Lifeform, Soup, SoupSpec, SoupStatus, Template, Volume
from primordia.wire.resources import Node as NodeObject

log = logging.getLogger("daemon")

_HELLO_S = 120.0
_BACKLOG = 512


async def _guest_of(crowd: Crowd, machine: Machine) -> Guest:
    """Greet the agent in a machine; a guest that still boots answers when it is ready."""
    reader, writer = await machine.open_channel()
    return await connect(reader, writer, timeout_s=_HELLO_S, crowd=crowd)


def _listener(address: str, port: int, netns_fd: int | None) -> socket.socket:
    """A listening socket, in the namespace of that descriptor or in our own. Raises FatalError when it is taken."""

    def listen() -> socket.socket:
        return socket.create_server((address, port), backlog=_BACKLOG)

    try:
        return listen() if netns_fd is None else netns.call_in(netns_fd, listen)
    except OSError as error:
        raise FatalError(
            f"The API cannot listen on {address}:{port} ({error.strerror}).", remedy="End what listens there."
        ) from error


class Daemon:
    """One node's parts, wired."""

    def __init__(
        self, config: NodeConfig, node_json: Path, host_netns: int | None, verdict: tuple[str, str], pool: Pool
    ) -> None:
        self._config = config
        self._host_netns = host_netns
        pki = Path(config.state_dir) / "pki"
        credentials = pki / "ca.crt", pki / "node.crt", pki / "node.key"
        servers = nearest_first(config.engine.endpoints, config.address)
        self._store = EtcdStore(servers, pki / "engine-ca.crt", pki / "engine.crt", pki / "engine.key")
        self._registry = Registry(self._store, SystemClock())
        self._informers = Informers(self._registry)
        least = config.engine.incarnation
        paths = NodePaths(Path(config.state_dir), Path(config.run_dir))
        self._incarnation = Incarnation(self._registry, paths, least, self._registry.clock)
        self._known = asyncio.Event()
        self._events = EventRecorder(self._registry, "node", config.name)
        self._control_events = EventRecorder(self._registry, "controller", config.name)
        lease = OwnLease(Path(config.run_dir), boot_id(), self._registry.clock)
        self._leading = Leading(
            self._store,
            self._informers,
            self._registry.clock,
            self._control_events,
            config.name,
            lease.incarnation,
            timings=Timings.of(config.timings),
            contact=SharedContact(Path(config.run_dir)).read,
        )
        metrics = Metrics()
        self._copy_peers = CopyPeers(client_context(*credentials), config.api_port)
        self._node = Node(
            config,
            registry=self._registry,
            informers=self._informers,
            events=self._events,
            vmm=QemuVmm(config.tools, *verdict, cgroup_root=f"{node_cgroup(msgspec.to_builtins(config))}/vm"),
            connect=functools.partial(_guest_of, Crowd()),
            network=LinuxNetwork(
                host_netns,
                config.host_address,
                config.address,
                config.soup_cidr,
                config.soup_pod_cidr,
                UPLINK if config.netns and config.tools.slirp4netns else config.uplink or None,
            ),
            images=LocalImages(Path(config.cache_dir), host_netns),
            clock=self._registry.clock,
            resolvers=Resolvers(host_netns),
            lease=lease,
            conditions=self._conditions,
            metrics=metrics,
            pool=pool,
            reach=elsewhere(self._informers.of(NodeObject), self._copy_peers.copies),
        )
        self._peers = Peers(client_context(*credentials), config.api_port, self._registry.clock)
        nodes = self._informers.of(NodeObject)
        forks_of = Router[Forks](config.name, self._node.forks, nodes, self._peers.forks)
        self._api = ApiServer(
            self._registry,
            self._node.contexts,
            self._informers.of(Lifeform),
            server_tls(*credentials),
            metrics,
            on_node=Router[Contexts](config.name, self._node.contexts, nodes, self._peers.contexts),
            boxes=Boxes(self._node.forks, forks_of, nodes, self._informers.of(Template)),
        )
        volumes = self._node.volume_work.service if self._node.volume_work is not None else None
        volumes_of = Router[VolumeService | None](config.name, volumes, nodes, self._peers.volumes)
        self._api.add_volumes(VolumeHosts(volumes, volumes_of, nodes, self._informers.of(Volume)))
        if self._node.volume_work is not None and self._node.volume_work.copies is not None:
            self._api.add_area(copies.PREFIX, CopiesApi(self._node.volume_work.copies.holder))

        self._engine = EngineFollower(
            node_json,
            self._store,
            self._store.members,
            self._registry.clock,
            lambda urls: self._store.use(nearest_first(urls, config.address)),
            self._node.conditions_changed,
        )
        self._joining = join_api(config, self._registry, lambda: self._engine.endpoints)
        self._api.add_area(joining.PREFIX, self._joining)
        self._api.add_area(
            engine.PREFIX, EngineApi(self._registry, self._store.members, client_port=CLIENT_PORT, peer_port=PEER_PORT)
        )
        own = Own(config, self._node.fleet)
        self._api.add_area(operations.PREFIX, OperationsApi(own.status, own.restart))

    def _conditions(self) -> tuple[Verdict, ...]:
        health = self._engine.health
        return (verdict_of(health, self._config.name),) if health is not None else ()

    def shut_down_at_end(self) -> None:
        """End the microVMs in order when `run` is cancelled."""
        self._node.shut_down_at_end()

    async def run(self) -> None:
        """Work until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._store.close)
            stack.push_async_callback(self._peers.close)
            stack.push_async_callback(self._copy_peers.close)
            await stack.enter_async_context(self._serving())
            async with asyncio.TaskGroup() as group:
                nodes = self._informers.of(NodeObject)
                run_dir, timings = Path(self._config.run_dir), Timings.of(self._config.timings)
                for name, coroutine in (
                    ("beat", beat(run_dir, self._registry.clock, timings.beat_every_s)),
                    ("fence", tell_fence(run_dir, self._config.name, nodes, self._events, self._registry.clock)),
                    ("node", self._node.run()),
                    ("informers", self._once_known(self._informers.run)),
                    ("events", self._events.run()),
                    ("control-events", self._control_events.run()),
                    ("leading", self._once_known(self._leading.run)),
                    ("soup", self._once_known(self._ensure_soup)),
                    ("joining", self._once_known(self._joining.announce)),
                    ("engine", self._once_known(self._engine.run)),
                    ("incarnation", self._learn_incarnation()),
                    *self._peer_routes(),
                ):
                    group.create_task(coroutine, name=name)

    async def _learn_incarnation(self) -> None:
        """Nothing that the engine says is believed, and nothing written to it, before it is known to be this soup's."""
        await self._incarnation.known()
        self._known.set()

    async def _once_known(self, work: Callable[[], Awaitable[None]]) -> None:
        await self._known.wait()
        await work()

    def _peer_routes(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """A local soup has the routes between its nodes from `up`."""
        config = self._config
        if config.netns:
            return []
        nodes = self._informers.of(NodeObject)
        return [("routes", PeerRoutes(nodes, config.name, config.soup_pod_cidr, self._registry.clock).run())]

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        config = self._config
        listeners = [_listener(config.address, config.api_port, None)]
        if self._host_netns is not None:
            listeners.append(_listener(config.host_address, config.api_port, self._host_netns))
        await self._api.start(listeners)
        log.info("API on %s and %s, port %d", config.address, config.host_address, config.api_port)
        try:
            yield
        finally:
            await self._api.stop()

    async def _ensure_soup(self) -> None:
        """The installation's own object, made by whichever node comes first."""
        soup = Soup(
            metadata=ObjectMeta(name="soup"),
            spec=SoupSpec(pod_cidr=self._config.soup_pod_cidr, domain=self._config.domain),
            status=SoupStatus(created_by_version=__version__),
        )
        while True:
            try:
                with contextlib.suppress(AlreadyExistsError):
                    await self._registry.create(soup)
                self._incarnation.remember(await self._registry.get(Soup, "soup"))
                return
            except PrimordiaError as error:
                log.info("the soup's object is not there yet: %s", error)
                await self._registry.clock.sleep(1.0)


async def run(config: NodeConfig, node_json: Path) -> None:
    """Run one node's daemon until a signal ends it."""
    descriptor = os.environ.get(HOST_NETNS_VARIABLE)
    verdict = await accelerator.decide(Path(config.cache_dir), config.tools)
    volumes, why_not = await open_pool(config)
    if volumes is None:
        log.warning("lifeforms with data do not run here: %s", why_not)
    pool = Pool(volumes, make_filesystem, why_not, repair_filesystem)
    daemon = Daemon(config, node_json, int(descriptor) if descriptor else None, verdict, pool)
    work = asyncio.get_running_loop().create_task(daemon.run(), name="daemon")
    loop = asyncio.get_running_loop()

    def end(shut_down: bool) -> None:
        if shut_down:
            daemon.shut_down_at_end()
        work.cancel()

    loop.add_signal_handler(signal.SIGTERM, end, False)
    loop.add_signal_handler(signal.SIGINT, end, False)
    loop.add_signal_handler(signal.SIGUSR1, end, True)
    with contextlib.suppress(asyncio.CancelledError):
        await work


def _log_uncaught() -> None:
    """Whatever ends a thread or the process goes to the log."""
    threading.excepthook = lambda args: log.error("thread %s failed", args.thread, exc_info=args.exc_value)


def main(arguments: list[str]) -> int:
    """Entry of `python -m primordia.daemon`; the exit code tells the supervisor's log."""
    if len(arguments) != 1:
        print("usage: python -m primordia.daemon NODE.JSON", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=logging.DEBUG if os.environ.get("PRIMORDIA_DEBUG") else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("qemu").setLevel(logging.WARNING)
    _log_uncaught()
    path = Path(arguments[0])
    try:
        config = msgspec.json.decode(path.read_bytes(), type=NodeConfig)
    except (OSError, msgspec.MsgspecError) as error:
        log.error("%s cannot be read (%s). `primordia up` writes it anew.", path, error)
        return 1
    log.info("primordia %s, node %s of soup %s", __version__, config.name, config.soup)
    # What has been imported stays: without this each full collection looks at all of it again, and nothing else runs for 50 ms.
    gc.freeze()
    try:
        asyncio.run(run(config, path))
    except Exception as error:
        _explain(error)
        return 1
    return 0


def _explain(error: BaseException) -> None:
    """One line for each cause that we foresaw; the trace, in the log alone, for the others."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            _explain(each)
    elif isinstance(error, PrimordiaError):
        log.error("%s", error)
    else:
        log.error("the daemon failed", exc_info=error)

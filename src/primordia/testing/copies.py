"""A few nodes' volumes in one process: real keepers, cutters, senders and receivers, each node with an API on loopback.

One registry in memory stands for the engine. A link between two nodes goes through `Link`, which can be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from primordia.api.auth import NODES, server_tls
from primordia.api.copies import CopiesApi
from primordia.api.main import ApiServer
from primordia.drivers.contexts_remote.copies import CopyPeers
from primordia.drivers.store_memory import MemoryStore
from primordia.kit import pki
from primordia.kit.clock import SystemClock
from primordia.kit.metrics import Metrics
from primordia.kit.tasks import TaskSet
from primordia.node.status import StatusWriter
from primordia.node.volumes.copies.main import Company, VolumeCopies
from primordia.node.volumes.cutting import Cutter
from primordia.node.volumes.disks import Disks
from primordia.node.volumes.holdings import Holdings
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.node.volumes.owned import OwnedVolume
from primordia.node.volumes.returning import Returning
from primordia.node.volumes.surplus import Surplus
from primordia.ports.copies import CopyPeer
from primordia.ports.volumes import Volumes
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.testing.api import LocalContexts
from primordia.wire.copies import PREFIX
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT, ObjectMeta
from primordia.wire.resources import Lifeform, Node, Volume
from primordia.wire.volumes import Layout, Replication, SnapshotPolicy, VolumeSpec, VolumeStatus

HOST = "127.0.0.1"


class Link:
    """Forwards connections to a port. `cut` ends those that are open and lets none in; `after` cuts after so many bytes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks = TaskSet("link")
        self.is_cut = False
        self.after: int | None = None
        self.carried = 0
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End everything, and let nothing in."""
        self.is_cut = True
        await self._tasks.close()

    def mend(self) -> None:
        """Let connections in again."""
        self.is_cut, self.after = False, None

    async def stop(self) -> None:
        """End it."""
        await self._tasks.close()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        await self._tasks.start(self._forward(reader, writer), name="connection")

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer, counts=True))
                group.create_task(self._pump(far_reader, writer, counts=False))
        except* (ConnectionError, OSError):
            pass
        finally:
            for each in (writer, far_writer):
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        while data := await reader.read(65536):
            if counts:
                self.carried += len(data)
                if self.after is not None:
                    self.after -= len(data)
                    if self.after < 0:
                        self.is_cut = True
                        raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@dataclass
class CopyNode:
    """One node."""

    name: str
    pool: Volumes
    informers: Informers
    keeper: VolumeKeeper
    cutter: Cutter
    copies: VolumeCopies
    port: int = 0
    links: dict[str, Link] = field(default_factory=dict)
    """Where this node reaches the others, by their names."""


@dataclass
class CopyWorld:
    """The nodes, each on a rack of its own (`r1` of `n1`), all of one segment."""

    registry: Registry
    nodes: dict[str, CopyNode]
    clock: SystemClock

    async def volume(
        self,
        *,
        owner: str = "n1",
        replicas: tuple[str, ...] = (),
        size: int = 1 << 20,
        acks: int = 1,
        epoch: int = 1,
        bandwidth: str = "",
    ) -> OwnedVolume:
        """A volume of `owner` with its disk."""
        wanted = Replication(layout=Layout(mirror=len(replicas)), acks=acks, bandwidth=bandwidth)
        spec = VolumeSpec(size=str(size), replication=wanted, snapshots=SnapshotPolicy())
        status = VolumeStatus(phase="Bound", node=owner, epoch=epoch, replicas=replicas)
        made = await self.registry.create(
            Volume(metadata=ObjectMeta(name="data", namespace="default"), spec=spec, status=status)
        )
        node = self.nodes[owner]
        await node.pool.create(made.metadata.uid, size, epoch=epoch)
        await self.until(lambda: made.metadata.uid in node.keeper.owned)
        owned = node.keeper.owned[made.metadata.uid]
        node.keeper.look(owned.uid)
        await self.until(lambda: owned.here)
        return owned

    async def status(self, change: Callable[[VolumeStatus], VolumeStatus]) -> None:
        """Change what the volume's object says."""
        await self.registry.mutate(
            Volume, "data", "default", lambda v: msgspec.structs.replace(v, status=change(v.status)), status=True
        )

    async def seen(self) -> Volume:
        """The volume's object."""
        return await self.registry.get(Volume, "data", "default")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(60):
            while not condition():
                await self.clock.sleep(0.01)

    async def holds(self, node: str, uid: str, number: int) -> None:
        """Wait until a node has published that snapshot."""
        async with asyncio.timeout(60):
            while True:
                info = await self.nodes[node].pool.find(uid)
                if info is not None and info.newest == number:
                    return
                await self.clock.sleep(0.01)


@contextlib.asynccontextmanager
async def copy_world(pools: Mapping[str, Volumes], folder: Path) -> AsyncIterator[CopyWorld]:
    """Such nodes, one for each pool."""
    clock = SystemClock()
    store = MemoryStore(clock)
    registry = Registry(store, clock)
    ca = pki.make_ca("primordia test")
    world = CopyWorld(registry, {}, clock)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        for name in pools:
            labels = {LABEL_RACK: f"r{name[1:]}", LABEL_SEGMENT: "east"}
            await registry.create(Node(metadata=ObjectMeta(name=name, labels=labels)))
        for name, pool in pools.items():
            await _node(world, name, pool, folder, ca, stack)
        for one in world.nodes.values():
            for other in world.nodes.values():
                if one is not other:
                    one.links[other.name] = link = Link(other.port)
                    await link.start()
                    stack.push_async_callback(link.stop)
        yield world


async def _node(
    world: CopyWorld, name: str, pool: Volumes, folder: Path, ca: pki.KeyPair, stack: contextlib.AsyncExitStack
) -> None:
    registry, clock = world.registry, world.clock
    informers, tasks = Informers(registry), TaskSet(name)
    writer, events = StatusWriter(registry, clock), EventRecorder(registry, "test", name)

    async def nothing(*_: object) -> None:
        return

    disks = Disks(pool, registry, name, make_filesystem=nothing, grow_guest=nothing, intents=folder / name)
    keeper = VolumeKeeper(disks, informers, writer, clock, name)
    cutter = Cutter(keeper, clock, events)
    paths = folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(ca.certificate)
    pki.issue(ca, name, NODES, san_ip=[HOST], server=True).write(paths[1], paths[2])
    tls = pki.client_context(*paths)
    peers: dict[str, CopyPeers] = {}

    def reach(other: str) -> CopyPeer:
        if other not in peers:
            peers[other] = CopyPeers(tls, world.nodes[name].links[other].port)
        return peers[other].copies(other, HOST)

    copies = VolumeCopies(keeper, cutter, informers, registry, events, node=name, company=Company(reach, Metrics()))
    lifeforms = informers.of(Lifeform)
    server = ApiServer(registry, LocalContexts(folder), lifeforms, server_tls(*paths))
    server.add_area(PREFIX, CopiesApi(copies.holder))
    listener = socket.create_server((HOST, 0))
    await server.start([listener])
    stack.push_async_callback(server.stop)
    holdings, returning = (
        Holdings(pool, registry, informers, name, copies.holder.currency),
        Returning(keeper, registry, informers, events, name),
    )
    surplus = Surplus(pool, registry, informers, name, copies.holder.giving_up)
    works = (informers.run(), writer.run(), keeper.run(), copies.run(), holdings.run(), returning.run(), surplus.run())
    for work in works:
        tasks.start(work, name="work")

    async def close_peers() -> None:
        for each in peers.values():
            await each.close()

    stack.push_async_callback(close_peers)
    stack.push_async_callback(tasks.close)
    await informers.synced()
    world.nodes[name] = CopyNode(name, pool, informers, keeper, cutter, copies, listener.getsockname()[1])

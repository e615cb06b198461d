"""A simulated node's daemon: the product's own parts, put together as `node/main.py` and `daemon/main.py` do.

What is not here is what no fault of this world touches: images, networks, boxes and people's requests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from primordia.daemon.leading import Leading
from primordia.domain.lease import lease_key
from primordia.kit.errors import PrimordiaError, TemporaryError, UnsupportedError
from primordia.kit.metrics import Metrics
from primordia.kit.paths import NodePaths
from primordia.node.status import StatusWriter
from primordia.node.volumes.copies.main import Company
from primordia.node.volumes.main import VolumeWork
from primordia.node.volumes.pool import Pool
from primordia.ports.copies import CopyHolder, CopyPeer
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.ownership import NodeLife, StartGuard
from primordia.registry.registry import Registry
from primordia.sim.survival.contexts import SimContexts
from primordia.sim.survival.engine import SimEngine
from primordia.sim.survival.links import Links, NodeStore
from primordia.sim.survival.machine import Machine
from primordia.sim.survival.pool import SimPool
from primordia.sim.survival.process import Process
from primordia.wire.copies import Current, Holding, Seed, Taken
from primordia.wire.data import ScrubbedCopy
from primordia.wire.resources import Context, Lifeform, Node, Volume

T = TypeVar("T")

_PATIENCE_S = 4.0
_BEAT_S = 1.0


class SimDaemon:
    """One life of it. `find` gives another node's daemon, None while it has none."""

    def __init__(
        self,
        machine: Machine,
        engine: SimEngine,
        links: Links,
        find: Callable[[str], SimDaemon | None],
        folder: Path,
        new_uid: Callable[[], str],
        *,
        leads: bool,
    ) -> None:
        rng = machine.rng
        self.machine = machine
        self.process = Process(f"{machine.name}/daemon", machine.clock, _dice(rng))
        self.number = machine.count_daemon()
        self._links = links
        self._find = find
        clock = self.process.clock
        self._registry = Registry(NodeStore(machine.name, self.process, engine, links, _PATIENCE_S), clock, new_uid=new_uid)
        self._informers = Informers(self._registry, rng=_dice(rng))
        for kind in (Context, Node, Volume):
            self._informers.of(kind)
        self._events = EventRecorder(self._registry, "node", machine.name, rng=_dice(rng))
        self._writer = StatusWriter(self._registry, clock)
        paths = NodePaths(folder / machine.name, folder / machine.name)
        pool = Pool(SimPool(machine.shelf, self.process, _dice(rng)), _formatted)
        keeper = pool.keeper(self._registry, self._informers, self._writer, clock, self._events, machine.name, paths)
        assert keeper is not None
        self.keeper = keeper
        self.work = VolumeWork(
            keeper,
            self._registry,
            clock,
            self._events,
            node=machine.name,
            paths=paths,
            informers=self._informers,
            company=Company(self._reach, Metrics(), self.life),
        )
        guard = StartGuard(self._registry.store, machine.name, self.life)
        self._contexts = SimContexts(machine, self.process, self._registry, self._informers, guard, keeper, _dice(rng))
        self._leading: Leading | None = None
        if leads:
            self._informers.of(Lifeform)
            self._leading = Leading(
                self._registry.store,
                self._informers,
                clock,
                self._events,
                machine.name,
                machine.run_files.incarnation,
                new_uid=new_uid,
                rng=_dice(rng),
            )

    @property
    def leads(self) -> bool:
        """Whether it is certain of its office."""
        return self._leading is not None and self._leading.leader.leads

    def life(self) -> NodeLife | None:
        """The node's life as the supervisor's file has it."""
        life = self.machine.run_files.life
        return NodeLife(lease_key(self.machine.name), life) if life else None

    def start(self) -> None:
        """Begin."""
        self.process.tasks.start(self._live(), name="life")

    async def _live(self) -> None:
        """All of it, as one process: what fails unforeseen ends it, and is told."""
        try:
            async with asyncio.TaskGroup() as group:
                for task in (
                    self._beat(),
                    self._informers.run(),
                    self._events.run(),
                    self._writer.run(),
                    self.work.run(),
                    self._contexts.run(),
                    *([self._leading.run()] if self._leading is not None else []),
                ):
                    group.create_task(task, name=self.machine.name)
        except Exception as error:
            if not self.process.dead:
                self.process.dead = True
                self.machine.witness.crashed(self.machine, error)

    async def sync(self, namespace: str, name: str, timeout_s: float) -> None:
        """What a guest, or a person, asks for. Raises PrimordiaError."""
        owned = self.keeper.find(namespace, name)
        if owned is None or self.work.copies is None:
            raise TemporaryError(f"{name} is not owned by {self.machine.name}.")
        await self.work.copies.syncs.sync(owned, timeout_s)

    async def scrub(self, namespace: str, name: str) -> None:
        """Read every copy of a volume back. Raises PrimordiaError."""
        owned = self.keeper.find(namespace, name)
        if owned is not None and self.work.copies is not None:
            await self.work.copies.scrubber.scrub(owned)

    async def _beat(self) -> None:
        """What the fence looks at."""
        while True:
            self.machine.run_files.beat_s = self.machine.clock.boottime()
            await self.process.clock.sleep(_BEAT_S)

    # ------------------------------------------------------------ other nodes

    def _reach(self, node: str) -> CopyPeer:
        return SimPeer(self, node, self._links, self._holder_of)

    def _holder_of(self, node: str) -> tuple[CopyHolder, Process]:
        """What answers there. TemporaryError when nothing does."""
        daemon = self._find(node)
        if daemon is None or daemon.process.dead or daemon.work.copies is None:
            raise TemporaryError(f"Node {node} refuses connections.", reason="NodeUnreachable")
        return daemon.work.copies.holder, daemon.process


class SimPeer:
    """Another node's body of the copies port, over a link. The other end works in its own process, in its own time."""

    def __init__(
        self, daemon: SimDaemon, node: str, links: Links, holder_of: Callable[[str], tuple[CopyHolder, Process]]
    ) -> None:
        self._own = daemon.machine.name
        self._process = daemon.process
        self._node = node
        self._links = links
        self._holder_of = holder_of

    async def holding(self, uid: str, *, wait_s: float = 0.0) -> Holding:
        """See the port."""
        return await self._ask(lambda holder: holder.holding(self._own, uid, wait_s=wait_s))

    async def deliver(self, uid: str, chunks: AsyncIterator[bytes], *, aside: bool) -> Taken:
        """See the port."""
        sent = [chunk async for chunk in chunks]
        return await self._ask(lambda holder: holder.deliver(self._own, uid, _again(sent), aside=aside))

    async def fetch(self, uid: str, root: str, begin: int) -> AsyncIterator[bytes]:
        """See the port."""

        async def collected(holder: CopyHolder) -> list[bytes]:
            return [chunk async for chunk in holder.fetch(self._own, uid, root, begin)]

        for chunk in await self._ask(collected):
            yield chunk

    async def seed(self, uid: str, seed: Seed) -> None:
        """See the port."""
        await self._ask(lambda holder: holder.seed(self._own, uid, seed))

    async def current(self, uid: str, current: Current) -> None:
        """See the port."""
        await self._ask(lambda holder: holder.current(self._own, uid, current))

    async def scrub(self, uid: str) -> ScrubbedCopy:
        """See the port."""
        return await self._ask(lambda holder: holder.scrub(self._own, uid))

    async def _ask(self, work: Callable[[CopyHolder], Awaitable[T]]) -> T:
        async def there() -> T:
            holder, process = self._holder_of(self._node)
            await process.passes()
            return await _within(process, work(holder))

        return await self._links.ask((self._own, self._process), self._node, there, _PATIENCE_S)


async def _within(process: Process, work: Awaitable[T]) -> T:
    """The work, as a task of that process: it ends with it."""

    async def run() -> T:
        return await work

    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def carried() -> None:
        try:
            result = await run()
        except PrimordiaError as error:
            if not done.done():
                done.set_exception(error)
        except BaseException:
            if not done.done():
                done.set_exception(TemporaryError(f"{process.name} broke off.", reason="NodeUnreachable"))
            raise
        else:
            if not done.done():
                done.set_result(result)

    process.tasks.start(carried(), name="answer")
    return await done


async def _again(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _formatted(disk: Path, kind: str, label: str) -> None:
    """A file system takes no time here."""
    if kind not in ("ext4", "xfs"):
        raise UnsupportedError(f"Nothing here makes {kind} file systems.")


def _dice(rng: random.Random) -> random.Random:
    return random.Random(rng.getrandbits(64))

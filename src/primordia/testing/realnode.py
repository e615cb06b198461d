"""A real node for tests: QEMU microVMs, the real guest agent, a real network in namespaces of its own; only the registry is
in memory, so that a "daemon" can be dropped and made anew within one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from primordia.control.main import Controllers
from primordia.drivers.guest_channel.guest import connect
from primordia.drivers.images_local.local import LocalImages
from primordia.drivers.net_linux.driver import LinuxNetwork
from primordia.drivers.store_memory import MemoryStore
from primordia.drivers.vmm_qemu.driver import QemuVmm
from primordia.host import accelerator, toolchain
from primordia.kit import cgroup
from primordia.kit.clock import SystemClock
from primordia.kit.errors import NotFoundError
from primordia.kit.paths import cache_dir
from primordia.node.main import Node
from primordia.node.resolvers import Resolvers
from primordia.ports.guest import Guest, Program
from primordia.ports.vmm import Machine
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.testing import network
from primordia.testing.node import node_config
from primordia.wire.catalogue import builtin_image
from primordia.wire.nodeconfig import Tools
from primordia.wire.resources import Context, Event, Lifeform

PATIENCE_S = 180.0


async def _guest_of(machine: Machine) -> Guest:
    reader, writer = await machine.open_channel()
    return await connect(reader, writer)


class RealNode:
    """The machine's side stays; `start` and `drop` are the daemon's."""

    def __init__(self, root: Path, world: network.World, tools: Tools, verdict: tuple[str, str]) -> None:
        self.root = root
        self.world = world
        self.cgroup = f"primordia-test-node-{os.getpid()}"
        self._verdict = verdict
        self.config = node_config(root, tools=tools, pod_cidr="10.128.0.0/24", cache_dir=str(cache_dir()), cpu_milli=0)
        self.clock = SystemClock()
        self.memory = MemoryStore(self.clock)
        self.registry = Registry(self.memory, self.clock)
        self.node: Node | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """A daemon over what is there."""
        informers = Informers(self.registry)
        events = EventRecorder(self.registry, "node", self.config.name)
        controllers = Controllers(self.registry, informers, self.clock, events)
        self.node = Node(
            self.config,
            registry=self.registry,
            informers=informers,
            events=events,
            vmm=QemuVmm(self.config.tools, *self._verdict, cgroup_root=self.cgroup),
            connect=_guest_of,
            network=self._network(),
            images=LocalImages(cache_dir()),
            clock=self.clock,
            resolvers=Resolvers(None),
        )
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(part) for part in (informers.run(), events.run(), controllers.run(), self.node.run())]

    def _network(self) -> LinuxNetwork:
        return self.world.another_network()

    async def drop(self) -> None:
        """The daemon ends; its microVMs go on."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def close(self) -> None:
        """End the daemon and whatever is left of its microVMs."""
        await self.drop()
        await asyncio.to_thread(cgroup.kill_tree, self.cgroup)
        await self.memory.close()

    # ------------------------------------------------------------ looking

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until it holds; fails with what is seen instead."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await condition():
                    self._check()
                    await self.clock.sleep(0.05)
        except TimeoutError:
            seen = [(each.metadata.name, each.status) for each in (await self.registry.list(Context)).items]
            raise AssertionError(f"{what} is not reached: {seen}") from None

    def _check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def context(self, name: str) -> Context:
        return await self.registry.get(Context, name, "default")

    async def ready(self, name: str, *, restarts: int = 0) -> Context:
        """Wait until the context is ready."""

        async def reached() -> bool:
            with contextlib.suppress(NotFoundError):
                status = (await self.context(name)).status
                return status.ready and status.restarts == restarts
            return False

        await self.until(reached, f"{name} ready")
        return await self.context(name)

    async def gone(self, name: str) -> None:
        """Wait until the lifeform and all its contexts are gone."""

        async def reached() -> bool:
            items = (await self.registry.list(Context)).items
            with contextlib.suppress(NotFoundError):
                await self.registry.get(Lifeform, name, "default")
                return False
            return not items

        await self.until(reached, f"{name} gone")

    async def run(self, name: str, *argv: str) -> tuple[int, str]:
        """Run a program in the context: its exit code and what it wrote."""
        assert self.node is not None
        session = await self.node.contexts.exec((await self.context(name)).metadata.uid, Program(argv), stdin=False)
        output = b"".join([data async for _, data in session.output()])
        return (await session.wait()).code, output.decode()

    async def log(self, name: str) -> list[str]:
        assert self.node is not None
        uid = (await self.context(name)).metadata.uid
        return [line.text.decode() async for line in self.node.contexts.logs(uid, follow=False, tail=None)]

    async def events(self) -> set[str]:
        await self.clock.sleep(1)
        return {event.reason for event in (await self.registry.list(Event)).items}

    def leftovers(self) -> list[str]:
        """What is there of any context, in files and cgroups; forks that wait, and builds, are nobody's."""
        places = [Path(self.config.state_dir) / "contexts", Path(self.config.run_dir) / "c"]
        nobodys = self.node.forks.uids if self.node is not None else set()
        found = [str(entry) for place in places if place.is_dir() for entry in place.iterdir() if entry.name not in nobodys]
        waiting = {pid for uid in nobodys for pid in cgroup.pids(f"{self.cgroup}/{uid}")}
        return found + [f"pid {pid}" for pid in cgroup.pids(self.cgroup) - waiting]


@contextlib.asynccontextmanager
async def real_node() -> AsyncIterator[RealNode]:
    """Build it, start its first daemon, and take everything away again."""
    cache = cache_dir()
    tools = await toolchain.ensure(cache, lambda _: None)
    verdict = await accelerator.decide(cache, tools)
    image = builtin_image("busybox")
    assert image is not None
    await LocalImages(cache).ensure(image.spec, lambda _: None)
    root = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    root.chmod(0o711)
    try:
        async with network.world() as world:
            node = RealNode(root, world, tools, verdict)
            try:
                await node.start()
                yield node
            finally:
                await node.close()
    finally:
        shutil.rmtree(root)

"""One real node with five thousand contexts: what it costs to look at all of them.

The microVMs, their agents, the network and the images are the memory bodies of their ports; everything between them and the
registry is the daemon's own. The loop's lag is how late a timer comes while the node looks: what an exec would feel.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Progress
from primordia.bench.idle import parse_pss
from primordia.control.blueprint import CONTEXT_FINALIZER
from primordia.drivers.guest_fake import FakeAgent, FakeProcess
from primordia.drivers.images_memory import MemoryImages
from primordia.drivers.net_memory import MemoryNetwork
from primordia.drivers.store_memory import MemoryStore
from primordia.drivers.vmm_fake import FakeVmm
from primordia.kit.clock import SystemClock
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.main import Node
from primordia.node.settings import NodeSettings
from primordia.ports.guest import Guest
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.meta import ObjectMeta
from primordia.wire.nodeconfig import Engine, NodeConfig, Tools
from primordia.wire.resources import Context, ContextSpec, ContextTemplate, Image, ImageSpec, OciSource

CONTEXTS = 5_000
_NODE = "n1"
_BEAT_S = 0.001
_START_LIMIT_S = 180.0
_SHM = Path("/dev/shm")


async def _serve(process: FakeProcess) -> int:
    """The main program of every context."""
    await asyncio.get_running_loop().create_future()
    return 0


class Daemon:
    """A node over what is only remembered. Its folders lie in memory, so that no disk is measured."""

    def __init__(self, root: Path) -> None:
        self.clock = SystemClock()
        self.store = MemoryStore(self.clock, history=2_000)
        self.registry = Registry(self.store, self.clock)
        self.informers = Informers(self.registry)
        self.events = EventRecorder(self.registry, "node", _NODE)
        self._agents: dict[str, FakeAgent] = {}
        for name in ("cache", "kernel", "initramfs"):
            (root / name).mkdir() if name == "cache" else (root / name).touch()
        self.node = Node(
            _config(root),
            registry=self.registry,
            informers=self.informers,
            events=self.events,
            vmm=FakeVmm(),
            connect=self._connect,
            network=MemoryNetwork(),
            images=MemoryImages(root / "cache"),
            clock=self.clock,
            settings=NodeSettings(start_parallel=256, plain_templates=False),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The node's daemon runs."""
        tasks = TaskSet("scale-node")
        for part in (self.informers.run(), self.events.run(), self.node.run()):
            tasks.start(part, name="part")
        try:
            yield
        finally:
            await tasks.close()
            for agent in self._agents.values():
                await agent.close()
            await self.store.close()

    async def fill(self, count: int) -> None:
        """Bind so many contexts to it and wait until all run. Raises PrimordiaError when they do not."""
        source = ImageSpec(oci=OciSource(reference="localhost/bench"))
        await self.registry.create(Image(metadata=ObjectMeta(name="bench"), spec=source))
        for number in range(count):
            await self.registry.create(_context(number))
        deadline = time.monotonic() + _START_LIMIT_S
        while not (len(self.node.fleet.lives) == count and all(live.phase == "Running" for live in self._lives())):
            if time.monotonic() > deadline:
                phases = sorted({live.phase for live in self._lives()})
                raise PrimordiaError(f"{count} contexts do not all run after {_START_LIMIT_S:g} s; they are {phases}.")
            await asyncio.sleep(0.1)

    def _lives(self) -> Any:
        return self.node.fleet.lives.values()

    async def _connect(self, machine: Any) -> Guest:
        uid = machine.guest.spec.uid
        agent = self._agents.setdefault(uid, FakeAgent({"serve": _serve}))
        return await agent.connect()


async def measure(rounds: int, progress: Progress) -> list[Figure]:
    """The figures node_5000_contexts_tick, with memory and loop lag."""
    gc.collect()
    before_mb = _memory_mb()
    with tempfile.TemporaryDirectory(prefix="primordia-bench-", dir=_SHM if _SHM.is_dir() else None) as folder:
        daemon = Daemon(Path(folder))
        async with daemon.running():
            progress(f"scale: one node starts {CONTEXTS} contexts")
            begun = time.monotonic()
            await daemon.fill(CONTEXTS)
            filled_s = time.monotonic() - begun
            progress(f"scale: {rounds} looks at all of them")
            gc.collect()
            memory_mb = _memory_mb() - before_mb
            ticks, lags = await _looks(daemon.node, rounds)
    return [
        figure("node_5000_contexts_start", "s", [filled_s]),
        figure("node_5000_contexts_tick", "s", ticks),
        figure("node_5000_contexts_lag", "s", lags),
        figure("node_5000_contexts_memory_mb", "MB", [memory_mb]),
    ]


async def _looks(node: Node, rounds: int) -> tuple[list[float], list[float]]:
    ticks, lags = [], []
    for _ in range(rounds):
        worst = [0.0]
        heart = asyncio.get_running_loop().create_task(_beat(worst))
        await asyncio.sleep(_BEAT_S)
        begun = time.monotonic()
        await node.look()
        ticks.append(time.monotonic() - begun)
        await asyncio.sleep(2 * _BEAT_S)
        heart.cancel()
        await asyncio.wait({heart})
        lags.append(worst[0])
    return ticks, lags


async def _beat(worst: list[float]) -> None:
    """Wake up every millisecond; `worst` is how late that was at most."""
    while True:
        due = time.monotonic() + _BEAT_S
        await asyncio.sleep(_BEAT_S)
        worst[0] = max(worst[0], time.monotonic() - due)


def _memory_mb() -> float:
    return parse_pss(Path("/proc/self/smaps_rollup").read_text()) / 1e6


def _context(number: int) -> Context:
    name = f"l{number:04}"
    spec = ContextSpec(
        lifeform=name,
        lifeform_uid=f"00000000-0000-4000-8000-{number:012}",
        node=_NODE,
        epoch=1,
        template=ContextTemplate(name="main", image="bench", command=("serve",)),
    )
    return Context(metadata=ObjectMeta(name=f"{name}.main", namespace="default", finalizers=(CONTEXT_FINALIZER,)), spec=spec)


def _config(root: Path) -> NodeConfig:
    return NodeConfig(
        soup="bench",
        name=_NODE,
        index=1,
        rack="r1",
        segment="s1",
        state_dir=str(root / "state"),
        run_dir=str(root / "run"),
        cache_dir=str(root / "cache"),
        netns="",
        address="10.77.0.1",
        host_address="127.77.0.1",
        pod_cidr="10.128.0.0/19",
        engine=Engine(member=True, endpoints=()),
        tools=Tools(kernel=str(root / "kernel"), initramfs=str(root / "initramfs")),
        cpu_milli=CONTEXTS * 1000,
        memory_bytes=CONTEXTS * 2**30,
    )

"""A whole soup of one node in memory, under virtual time: real controllers, real node, real records on a real disk; microVMs,
guests, network and store are the memory bodies. Its daemon may be killed at any call that leaves the process, and be
started again over what it left: that is what the machine would keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from primordia.control.main import Controllers
from primordia.drivers.guest_fake import PROGRAMS, FakeAgent, FakeGuest, FakeProcess
from primordia.drivers.images_memory import MemoryImages
from primordia.drivers.net_memory import MemoryNetwork
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError
from primordia.kit.paths import NodePaths
from primordia.node.main import Node
from primordia.node.records import Records
from primordia.node.settings import NodeSettings
from primordia.node.volumes.pool import NO_POOL, Pool
from primordia.ports.guest import Guest, GuestGoneError, GuestIdentity, Program
from primordia.ports.vmm import DEVICES, MEMORY, Drive, Exit, Frozen, Machine, MachineIdentity, MachineSpec, VmmInfo
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.sim.store import FaultyStore
from primordia.sim.virtual import VirtualClock
from primordia.wire.nodeconfig import Engine, NodeConfig, Tools
from primordia.wire.resources import Context, Event, Lifeform
from primordia.wire.resources import Node as NodeResource

T = TypeVar("T")

BOOT_S = 2.0


def node_config(root: Path, **change: Any) -> NodeConfig:
    """A node's settings with its folders below `root`."""
    config = NodeConfig(
        soup="test",
        name="n1",
        index=1,
        rack="r1",
        segment="east",
        state_dir=str(root / "state"),
        run_dir=str(root / "run"),
        cache_dir=str(root / "cache"),
        netns="",
        address="10.77.0.1",
        host_address="127.77.0.1",
        pod_cidr="10.128.0.0/24",
        engine=Engine(member=True, endpoints=()),
        tools=Tools(kernel="/kernel", initramfs="/initramfs"),
        cpu_milli=8000,
        memory_bytes=8 * 2**30,
    )
    return msgspec.structs.replace(config, **change)


class FakeHost:
    """A machine with figures that a test sets."""

    def __init__(self) -> None:
        self.boot = 1
        self.free_memory = 8 * 2**30
        self.free_disk = 100 * 2**30

    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def kernel_version(self) -> str:
        return "6.1"

    def cpus(self) -> int:
        return 8

    def memory_total(self) -> int:
        return 8 * 2**30

    def memory_available(self) -> int:
        return self.free_memory

    def memory_stalled_percent(self) -> float:
        return 0.0

    def disk(self, path: Path) -> tuple[int, int]:
        return 200 * 2**30, self.free_disk


async def _inline(work: Callable[[], T]) -> T:
    """Work that would block runs in place: under virtual time there are no threads."""
    return work()


LIFE: contextvars.ContextVar[int] = contextvars.ContextVar("life", default=0)
"""Which daemon a task is part of."""


class Knife:
    """Kills the daemon at its n-th call to the outside: that call, once made or before, never returns.

    Of a daemon that is `dead` no call comes out any more, not even of what its tasks do when they are cancelled.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.at = 0
        self.after = False
        self.fell = asyncio.Event()
        self.dead: set[int] = set()
        self._walls: list[asyncio.Future[None]] = []

    async def through(self, call: Callable[[], Awaitable[T]]) -> T:
        if LIFE.get() in self.dead:
            wall = asyncio.get_running_loop().create_future()
            self._walls.append(wall)
            await wall
        await asyncio.sleep(0)
        self.calls += 1
        mine = self.calls == self.at
        if mine and not self.after:
            await self._fall()
        result = await call()
        if mine:
            await self._fall()
        return result

    async def _fall(self) -> None:
        self.fell.set()
        wall = asyncio.get_running_loop().create_future()
        self._walls.append(wall)
        await wall

    def let_the_dead_rest(self) -> None:
        """The test is over: whatever still waits may end."""
        self.dead.clear()
        for wall in self._walls:
            if not wall.done():
                wall.set_exception(asyncio.CancelledError())


class _CutStore(FaultyStore):
    """The store as the daemon has it."""

    def __init__(self, inner: MemoryStore, knife: Knife) -> None:
        super().__init__(inner)
        self._knife = knife

    async def _through(self, call: Callable[[], Awaitable[T]], *, lossy: bool = False) -> T:
        return await self._knife.through(lambda: super(_CutStore, self)._through(call, lossy=lossy))


class Vm:
    """A microVM: outlives daemons, not the host."""

    def __init__(self, spec: MachineSpec, pid: int, agent: FakeAgent, boots_at: float) -> None:
        self.spec = spec
        self.pid = pid
        self.agent = agent
        self.boots_at = boots_at
        self.cpu_milli = 0
        self.running = asyncio.Event()
        self.running.set()
        self.mute = False
        self.resized: dict[str, int] = {}
        self.starved = False
        self.identity: GuestIdentity | None = None
        self.tap = os.dup(spec.nic.tap_fd) if spec.nic is not None else -1
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def frozen(self) -> bool:
        """Whether its user processes stand."""
        return self.agent.frozen

    async def end(self, how: Exit) -> None:
        """It is gone, with everything in it."""
        if not self.ended.done():
            if self.tap >= 0:
                os.close(self.tap)
            self.ended.set_result(how)
            await self.agent.close()


class _Handle:
    """One daemon's handle on a microVM."""

    def __init__(self, world: NodeWorld, vm: Vm) -> None:
        self._world = world
        self.vm = vm

    @property
    def identity(self) -> MachineIdentity:
        return MachineIdentity(self.vm.pid, self.vm.pid * 100, self._world.host.boot_id())

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise NotImplementedError("the world connects guests itself")

    async def pause(self) -> None:
        await self._world.knife.through(self._pause)

    async def _pause(self) -> None:
        self.vm.running.clear()

    async def resume(self) -> None:
        await self._world.knife.through(self._resume)

    async def _resume(self) -> None:
        if self.vm.ended.done():
            raise PermanentError(f"microVM {self.vm.spec.uid} has ended.", reason="Ended")
        self.vm.running.set()

    async def freeze(
        self,
        folder: Path,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        during: Callable[[], Awaitable[None]] | None = None,
        go_on: bool = True,
    ) -> Frozen:
        return await self._world.knife.through(lambda: self._freeze(folder, before, during, go_on))

    async def _freeze(
        self,
        folder: Path,
        before: Callable[[], Awaitable[None]] | None,
        during: Callable[[], Awaitable[None]] | None,
        go_on: bool,
    ) -> Frozen:
        for callback in (before, during):
            if self._world.fail_freeze is not None:
                raise self._world.fail_freeze
            if callback is not None:
                await callback()
        if not go_on:
            self.vm.running.clear()
        return freeze_vm(self.vm, folder)

    async def limit_cpu(self, cpu_milli: int) -> None:
        await self._world.knife.through(lambda: self._limit_cpu(cpu_milli))

    async def _limit_cpu(self, cpu_milli: int) -> None:
        self.vm.cpu_milli = cpu_milli

    async def resize_drive(self, drive: str, size_bytes: int) -> None:
        await self._world.knife.through(lambda: self._resize_drive(drive, size_bytes))

    async def _resize_drive(self, drive: str, size_bytes: int) -> None:
        assert drive in {each.id for each in self.vm.spec.drives}
        self.vm.resized[drive] = size_bytes

    async def replace_drive(self, drive: Drive) -> None:
        await self._world.knife.through(lambda: self._replace_drive(drive))

    async def _replace_drive(self, drive: Drive) -> None:
        assert not self.vm.running.is_set(), "it is replaced while nothing can use it"
        drives = self.vm.spec.drives
        assert drive.id in {each.id for each in drives}
        self.vm.spec = replace(self.vm.spec, drives=tuple(drive if each.id == drive.id else each for each in drives))

    async def write_again(self) -> bool:
        stood, self.vm.starved = self.vm.starved, False
        return stood

    async def kill(self) -> None:
        await self._world.knife.through(self._kill)

    async def _kill(self) -> None:
        await self.vm.end(Exit("killed", requested=True))
        self._world.vms.pop(self.vm.spec.uid, None)
        shutil.rmtree(self.vm.spec.run_dir, ignore_errors=True)

    async def wait(self) -> Exit:
        ended = await asyncio.shield(self.vm.ended)
        if self._world.vms.get(self.vm.spec.uid) is self.vm:
            await self._kill()
        return ended

    async def console(self) -> str:
        return "Linux version 6.1\nwaiting for nothing"

    def release(self) -> None:
        return None


class _Image(msgspec.Struct):
    """What of a guest its memory holds, as far as a fork of it shows."""

    files: dict[str, bytes]
    folders: list[str]
    frozen: bool
    main: Program | None = None


def freeze_vm(vm: Vm, folder: Path) -> Frozen:
    """Write the guest down."""
    folder.mkdir(parents=True)
    main = vm.agent.main
    program = main.program if main is not None and not main.exit.done() else None
    content = msgspec.json.encode(_Image(vm.agent.files, sorted(vm.agent.folders), vm.frozen, program))
    (folder / MEMORY).write_bytes(content)
    (folder / DEVICES).write_bytes(b"devices")
    return Frozen(0.01, len(content), len(content))


def thaw_vm(vm: Vm, image: Path) -> None:
    """Make a fresh guest what was written down."""
    try:
        found = msgspec.json.decode((image / MEMORY).read_bytes(), type=_Image)
    except (OSError, msgspec.MsgspecError) as error:
        raise PermanentError(f"The image {image} is damaged: {error}.", reason="ImageDamaged") from error
    vm.agent.files, vm.agent.folders, vm.agent.prepared = found.files, set(found.folders), True
    if found.frozen:
        vm.agent.freeze()
    if found.main is not None:
        vm.agent.start_main(found.main)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


class WorldVmm:
    """ports.vmm.Vmm over the world's microVMs."""

    def __init__(self, world: NodeWorld) -> None:
        self._world = world

    async def info(self) -> VmmInfo:
        return VmmInfo("fake", "1.0", "none", "it is a test")

    async def start(self, spec: MachineSpec) -> _Handle:
        world = self._world
        if world.fail_start is not None:
            raise world.fail_start
        return await world.knife.through(lambda: self._start(spec))

    async def fork(
        self, spec: MachineSpec, image: Path, *, beside: Callable[[Machine], Awaitable[None]] | None = None
    ) -> _Handle:
        world = self._world
        if world.fail_fork is not None:
            raise world.fail_fork
        handle = await world.knife.through(lambda: self._fork(spec, image))
        if beside is None:
            return handle
        handle.vm.running.set()
        try:
            await beside(handle)
        except BaseException:
            await handle.kill()
            raise
        return handle

    async def _fork(self, spec: MachineSpec, image: Path) -> _Handle:
        handle = await self._start(spec)
        handle.vm.boots_at = 0.0
        handle.vm.running.clear()
        try:
            thaw_vm(handle.vm, image)
        except BaseException:
            await handle._kill()
            raise
        return handle

    async def image_key(self, spec: MachineSpec) -> dict[str, str]:
        return {"vmm": self._world.vmm_version, "memory": str(spec.memory_bytes), "cpus": str(-(-spec.cpu_milli // 1000))}

    async def _start(self, spec: MachineSpec) -> _Handle:
        world = self._world
        assert spec.uid not in world.vms, "two microVMs of one context"
        assert all(drive.path.exists() for drive in spec.drives)
        spec.run_dir.mkdir(parents=True)
        (spec.run_dir / "pid").touch()
        world.pids += 1
        world.starts[spec.uid] = world.starts.get(spec.uid, 0) + 1
        agent = FakeAgent(world.programs)
        vm = world.vms[spec.uid] = Vm(spec, world.pids, agent, world.clock.boottime() + world.boot_s)
        return _Handle(world, vm)

    async def adopt(self, uid: str, run_dir: Path, cgroup: str) -> _Handle | None:
        return await self._world.knife.through(lambda: self._adopt(uid, run_dir))

    async def _adopt(self, uid: str, run_dir: Path) -> _Handle | None:
        vm = self._world.vms.get(uid)
        if vm is None or vm.ended.done():
            self._world.vms.pop(uid, None)
            shutil.rmtree(run_dir, ignore_errors=True)
            return None
        return _Handle(self._world, vm)


class _Guest(FakeGuest):
    """A guest whose shutdown ends its microVM, and whose calls the knife may cut."""

    def __init__(self, world: NodeWorld, vm: Vm) -> None:
        super().__init__(vm.agent)
        self._world = world
        self._vm = vm

    async def prepare(self, root: str, scratch: str) -> None:
        await self._world.knife.through(lambda: super(_Guest, self).prepare(root, scratch))

    async def identify(self, identity: GuestIdentity) -> tuple[str, ...]:
        return await self._world.knife.through(lambda: self._identify(identity))

    async def freeze(self) -> None:
        await self._world.knife.through(lambda: super(_Guest, self).freeze())

    async def thaw(self) -> None:
        await self._world.knife.through(lambda: super(_Guest, self).thaw())

    async def _identify(self, identity: GuestIdentity) -> tuple[str, ...]:
        # It takes a call only while its virtual CPUs run.
        await self._or_gone(_set(self._vm.running))
        if not identity.rehearsal:
            if self._vm.mute or self._world.mute:
                await self._or_gone(_forever())
            self._vm.identity = identity
        said = await super().identify(identity)
        return tuple(item for item in said if item not in self._world.unconfirmed)

    async def configure(self, config: Any) -> None:
        if self._world.refuse_configure is not None:
            raise self._world.refuse_configure
        await self._world.knife.through(lambda: super(_Guest, self).configure(config))

    async def start_main(self, program: Any) -> None:
        await self._world.knife.through(lambda: super(_Guest, self).start_main(program))

    async def shutdown(self, grace_s: float) -> None:
        await self._world.knife.through(lambda: super(_Guest, self).shutdown(grace_s))
        if not self._world.deaf:
            self._world.side(self._power_off())

    async def _power_off(self) -> None:
        await asyncio.sleep(0.3)
        await self._vm.end(Exit("shutdown", requested=True))


async def serve_forever(process: FakeProcess) -> int:
    """A server: says that it serves, and does until it is ended."""
    await process.print(b"serving\n")
    await asyncio.get_running_loop().create_future()
    return 0


async def fail_soon(process: FakeProcess) -> int:
    """A program that runs a second and fails."""
    await process.print(b"failing\n")
    await asyncio.sleep(1)
    return 3


class NodeWorld:
    """One node, its controllers, and the machine below them."""

    def __init__(self, root: Path, seed: int = 0, settings: NodeSettings | None = None, **config: Any) -> None:
        self.root = root
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.config = node_config(root, **config)
        self.settings = settings or NodeSettings(plain_templates=False)
        self.memory = MemoryStore(self.clock)
        self.knife = Knife()
        self.store = _CutStore(self.memory, self.knife)
        self.sure = Registry(self.memory, self.clock)
        self.network = MemoryNetwork()
        (root / "cache").mkdir(parents=True, exist_ok=True)
        self.images = MemoryImages(root / "cache")
        self.host = FakeHost()
        self.programs = {**PROGRAMS, "serve": serve_forever, "fail": fail_soon}
        self.vms: dict[str, Vm] = {}
        self.starts: dict[str, int] = {}
        self.pids = 100
        self.boot_s = BOOT_S
        self.deaf = False
        self.fail_start: PrimordiaError | None = None
        self.fail_fork: PrimordiaError | None = None
        self.fail_freeze: BaseException | None = None
        self.refuse_configure: PrimordiaError | None = None
        self.vmm_version = "fake 1.0"
        self.mute = False
        self.unconfirmed: set[str] = set()
        self.unreachable: set[tuple[str, int]] = set()
        self.pool: Pool = NO_POOL
        self._tasks: list[asyncio.Task[Any]] = []
        self._side: list[asyncio.Task[Any]] = []
        self.node: Node | None = None

    def side(self, coroutine: Any) -> None:
        """Something of the machine's, that no daemon's death ends."""
        self._side.append(asyncio.create_task(coroutine))

    # ------------------------------------------------------------ daemons

    async def start(self) -> None:
        """Start a daemon over whatever is there."""
        self.knife.fell.clear()
        registry = Registry(self.store, self.clock)
        informers = Informers(registry)
        events = EventRecorder(self.sure, "node", "n1", rng=random.Random(self.rng.random()))
        paths = NodePaths(Path(self.config.state_dir), Path(self.config.run_dir))
        controllers = Controllers(registry, informers, self.clock, events, rng=random.Random(self.rng.random()))
        self.node = Node(
            self.config,
            registry=registry,
            informers=informers,
            events=events,
            vmm=WorldVmm(self),
            connect=self._connect,
            network=self.network,
            images=self.images,
            clock=self.clock,
            host=self.host,
            dial=self._dial,
            settings=self.settings,
            records=Records(paths, self._offload),
            offload=_inline,
            pool=self.pool,
        )
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(part) for part in (informers.run(), events.run(), controllers.run(), self.node.run())]

    async def kill(self) -> None:
        """The daemon is gone."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    async def reboot(self) -> None:
        """The host goes down and comes up."""
        await self.kill()
        for vm in list(self.vms.values()):
            await vm.end(Exit("lost"))
        self.vms.clear()
        shutil.rmtree(self.config.run_dir, ignore_errors=True)
        self.host.boot += 1
        await self.start()

    async def close(self) -> None:
        await self.kill()
        for task in self._side:
            task.cancel()
        await asyncio.gather(*self._side, return_exceptions=True)
        for vm in list(self.vms.values()):
            await vm.end(Exit("lost"))
        await self.memory.close()

    async def _offload(self, work: Callable[[], None]) -> None:
        async def inline() -> None:
            work()

        await self.knife.through(inline)

    async def _connect(self, machine: Any) -> Guest:
        vm: Vm = machine.vm
        await asyncio.sleep(max(0.0, vm.boots_at - self.clock.boottime()))
        running = asyncio.ensure_future(_set(vm.running))
        try:
            await asyncio.wait((asyncio.shield(vm.ended), running), return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()
        if vm.ended.done():
            raise GuestGoneError("The channel is closed.")
        if vm.agent.connection is not None:
            await vm.agent.connection.close()
        vm.agent.connection = _Guest(self, vm)
        return vm.agent.connection

    async def _dial(self, address: str, port: int) -> Any:
        if (address, port) in self.unreachable:
            raise ConnectionRefusedError(111, "Connection refused")
        reader = asyncio.StreamReader()
        reader.feed_data(b"HTTP/1.1 200 OK\r\n\r\n")
        reader.feed_eof()
        return reader, _NullWriter()

    # ------------------------------------------------------------ looking

    async def until(self, condition: Callable[[], Awaitable[bool]], *, within_s: float = 300.0, what: str = "") -> None:
        """Let time pass until the condition holds; a daemon that the knife killed is started again."""
        begin_s = self.clock.boottime()
        while not await condition():
            if self.knife.fell.is_set():
                await self.restart()
            if self.clock.boottime() - begin_s > within_s:
                raise AssertionError(f"not reached within {within_s} s: {what or condition}; {await self.describe()}")
            await self.clock.sleep(0.1)

    async def describe(self) -> str:
        contexts = [
            (context.metadata.name, context.status.phase, context.status.reason, context.status.message)
            for context in (await self.contexts()).values()
        ]
        lifeforms = [(item.metadata.name, item.status.phase) for item in (await self.sure.list(Lifeform)).items]
        return f"lifeforms {lifeforms}, contexts {contexts}, microVMs {sorted(self.vms)}"

    async def contexts(self) -> dict[str, Context]:
        return {context.metadata.name: context for context in (await self.sure.list(Context)).items}

    async def context(self, name: str) -> Context:
        return await self.sure.get(Context, name, "default")

    async def lifeform(self, name: str) -> Lifeform | None:
        with contextlib.suppress(NotFoundError):
            return await self.sure.get(Lifeform, name, "default")
        return None

    async def node_object(self) -> NodeResource:
        return await self.sure.get(NodeResource, "n1")

    async def phase(self, name: str, *phases: str, within_s: float = 300.0) -> Context:
        """Wait until the context is in one of the phases."""

        async def reached() -> bool:
            found = (await self.contexts()).get(name)
            return found is not None and found.status.phase in phases

        await self.until(reached, within_s=within_s, what=f"{name} in {phases}")
        return await self.context(name)

    async def ready(self, name: str) -> Context:
        """Wait until the context is ready."""

        async def reached() -> bool:
            found = (await self.contexts()).get(name)
            return found is not None and found.status.ready

        await self.until(reached, what=f"{name} ready")
        return await self.context(name)

    async def lifeform_phase(self, name: str, phase: str, *, within_s: float = 300.0) -> None:
        async def reached() -> bool:
            found = await self.lifeform(name)
            return found is not None and found.status.phase == phase

        await self.until(reached, within_s=within_s, what=f"{name} in {phase}")

    async def gone(self, name: str) -> None:
        """Wait until nothing of the lifeform is left, anywhere."""

        async def reached() -> bool:
            return await self.lifeform(name) is None and not self.leftovers(await self.contexts())

        await self.until(reached, what=f"{name} gone")

    def leftovers(self, contexts: dict[str, Context]) -> list[str]:
        """What is there on this machine that belongs to none of the contexts."""
        known = {context.metadata.uid for context in contexts.values()}
        found = [f"microVM {uid}" for uid in self.vms if uid not in known]
        for place in (Path(self.config.state_dir) / "contexts", Path(self.config.run_dir) / "c"):
            if place.is_dir():
                found += [f"{place.name}/{entry.name}" for entry in place.iterdir() if entry.name not in known]
        found += [f"endpoint {one.uid}" for one in self.network.state.endpoints if one.uid not in known]
        return found

    async def change(self, name: str, **fields: Any) -> None:
        """Change a lifeform's spec."""

        def changed(lifeform: Lifeform) -> Lifeform:
            return msgspec.structs.replace(lifeform, spec=msgspec.structs.replace(lifeform.spec, **fields))

        await self.sure.mutate(Lifeform, name, "default", changed)

    async def events(self) -> list[tuple[str, str]]:
        await self.clock.sleep(1)
        return [(event.reason, event.message) for event in (await self.sure.list(Event)).items]

    async def log(self, name: str, **how: Any) -> list[str]:
        assert self.node is not None
        uid = (await self.context(name)).metadata.uid
        options = {"follow": False, "tail": None, **how}
        return [line.text.decode() async for line in self.node.contexts.logs(uid, **options)]


class _NullWriter:
    """The writing half of a connection to nowhere."""

    def __init__(self) -> None:
        self.transport = self

    def write(self, data: bytes) -> None:
        return None

    def abort(self) -> None:
        return None

    async def wait_closed(self) -> None:
        return None


async def collect(stream: AsyncIterator[T]) -> list[T]:
    """Everything an async iterator gives."""
    return [item async for item in stream]


class StartRefusedError(PermanentError):
    """What a VMM says that cannot start."""

    reason = "VmmFailed"

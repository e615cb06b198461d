"""The in-process body of the VMM port: machines are plain objects, thousands of them are cheap, their guests are callbacks.

`FakeHost` is the machine they all run on and outlives any `FakeVmm`, as microVMs outlive a daemon; a second FakeVmm over
the same host adopts what the first released. The agent's side of a channel is a coroutine given by the test; what it wants
to have in its machine's memory, so in the memory of forks, it keeps in `FakeGuest.memory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from primordia.drivers.vmm_fake_channel import Stream, memory_channel
from primordia.kit.errors import ConflictError, PermanentError, PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet, to_the_end
from primordia.ports.vmm import DEVICES, MEMORY, Drive, Exit, Frozen, MachineIdentity, MachineSpec, VmmInfo

__all__ = ["FakeGuest", "FakeHost", "FakeMachine", "FakeVmm", "memory_channel", "silent"]

_BOOT_CPU_MILLI = 1000

Agent = Callable[["FakeGuest", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FakeGuest:
    """A microVM as its host sees it. Tests end it by `end`, write to its console, and look at `running`.

    `memory` is what its agent keeps there, as JSON takes it: a fork begins with a copy. `forked_from` is its image's folder.
    """

    spec: MachineSpec
    identity: MachineIdentity
    cpu_milli: int = 0
    console: str = ""
    paused: bool = False
    exit: Exit | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    forked_from: Path | None = None
    resized: dict[str, int] = field(default_factory=dict)
    starved: bool = False
    running: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, verdict: Exit) -> None:
        """The guest or its VMM ends; the first verdict holds."""
        if self.exit is None:
            self.exit = verdict
            self.ended.set()

    def power_off(self) -> None:
        """The guest ends in order."""
        self.end(Exit("shutdown", "The guest powered itself off."))

    def panic(self, text: str) -> None:
        """The guest's kernel panics."""
        self.console += f"Kernel panic - not syncing: {text}\n"
        self.end(Exit("crashed", f"Kernel panic - not syncing: {text}"))


class FakeHost:
    """What survives a daemon: the guests, by run folder. `boot_id` changes when the host is to have been rebooted."""

    def __init__(self, boot_id: str = "fake-boot") -> None:
        self.boot_id = boot_id
        self.guests: dict[Path, FakeGuest] = {}
        self._last_pid = 1000

    def add(self, spec: MachineSpec) -> FakeGuest:
        """A new guest, running."""
        self._last_pid += 1
        identity = MachineIdentity(self._last_pid, self._last_pid * 100, self.boot_id)
        guest = FakeGuest(spec, identity, max(_BOOT_CPU_MILLI, spec.cpu_milli))
        guest.running.set()
        self.guests[spec.run_dir] = guest
        return guest

    def lose(self, guest: FakeGuest) -> None:
        """The guest's VMM vanishes with all it had, as by SIGKILL from somebody else."""
        guest.end(Exit("killed", "Somebody else sent the VMM SIGKILL."))
        self.guests.pop(guest.spec.run_dir, None)


async def silent(guest: FakeGuest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An agent that reads everything and says nothing."""
    while await reader.read(65536):
        pass


class FakeVmm:
    """Starts and adopts guests of a FakeHost. `refusal`, when set, is raised by the next start."""

    def __init__(self, host: FakeHost | None = None, agent: Agent = silent) -> None:
        self.host = host or FakeHost()
        self.refusal: PrimordiaError | None = None
        self._agent = agent

    async def info(self) -> VmmInfo:
        """The fake names itself."""
        return VmmInfo("fake", "1", "none", "nothing is emulated: guests are callbacks", template_read_only=True)

    async def start(self, spec: MachineSpec) -> FakeMachine:
        """Start a guest, refusing what a real VMM refuses: missing files and a folder in use."""
        self._check(spec, (spec.kernel, spec.initramfs))
        return FakeMachine(self.host, self.host.add(spec), self._agent)

    async def fork(
        self, spec: MachineSpec, image: Path, *, beside: Callable[[FakeMachine], Awaitable[None]] | None = None
    ) -> FakeMachine:
        """A guest with a copy of the frozen one's memory, paused where nobody is beside it."""
        self._check(spec, (image / MEMORY, image / DEVICES))
        try:
            memory = json.loads((image / MEMORY).read_bytes())
            layout = json.loads((image / DEVICES).read_bytes())
        except ValueError as error:
            raise PermanentError(f"The image {image} is damaged: {error}.", reason="ImageDamaged") from error
        if layout != _layout(spec):
            raise PermanentError(f"microVM {spec.uid} is not of the image's size and devices: {image}.", reason="ImageDiffers")
        guest = self.host.add(spec)
        guest.memory, guest.forked_from, guest.paused = memory, image, beside is None
        machine = FakeMachine(self.host, guest, self._agent)
        if beside is None:
            guest.running.clear()
            return machine
        try:
            await beside(machine)
        except BaseException:
            await to_the_end(machine.kill())
            raise
        return machine

    async def image_key(self, spec: MachineSpec) -> dict[str, str]:
        """Sizes and devices."""
        return {"vmm": "fake 1", "kernel": str(spec.kernel), "initramfs": str(spec.initramfs), **_layout(spec)}

    def _check(self, spec: MachineSpec, needed: tuple[Path, ...]) -> None:
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        known = self.host.guests.get(spec.run_dir)
        if known is not None and known.exit is None:
            raise ConflictError(f"microVM {spec.uid} runs already in {spec.run_dir}.")
        for path in (*needed, *(drive.path for drive in spec.drives)):
            if not path.exists():
                raise PermanentError(f"microVM {spec.uid} cannot start: {path} is missing.")

    async def adopt(self, uid: str, run_dir: Path, cgroup: str) -> FakeMachine | None:
        """The guest of that folder, if it is of this boot of the host."""
        guest = self.host.guests.get(run_dir)
        if guest is None or guest.identity.boot_id != self.host.boot_id:
            self.host.guests.pop(run_dir, None)
            return None
        return FakeMachine(self.host, guest, self._agent)


class FakeMachine:
    """A handle of a guest."""

    def __init__(self, host: FakeHost, guest: FakeGuest, agent: Agent) -> None:
        self.guest = guest
        self._host = host
        self._agent = agent
        self._agents = TaskSet(f"fake-agent-{guest.spec.uid}")
        self._channel: asyncio.StreamWriter | None = None

    @property
    def identity(self) -> MachineIdentity:
        """Which guest it is."""
        return self.guest.identity

    async def open_channel(self) -> Stream:
        """A channel to the agent callback; drops the one before."""
        if self.guest.exit is not None:
            raise TemporaryError(f"The agent's channel of microVM {self.guest.spec.uid} cannot be opened: it has ended.")
        self._drop_channel()
        (reader, writer), (agent_reader, agent_writer) = memory_channel(self.guest.running)
        self._agents.start(self._serve(agent_reader, agent_writer), name="channel")
        self._channel = writer
        return reader, writer

    async def pause(self) -> None:
        """Hold the agent's input until `resume`."""
        self._needs_life()
        self.guest.paused = True
        self.guest.running.clear()

    async def resume(self) -> None:
        """Let the agent go on."""
        self._needs_life()
        self.guest.paused = False
        self.guest.running.set()

    async def freeze(
        self,
        folder: Path,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        during: Callable[[], Awaitable[None]] | None = None,
        go_on: bool = True,
    ) -> Frozen:
        """Write down the guest's memory and what it has."""
        self._needs_life()
        began, ran = time.monotonic(), not self.guest.paused
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise PermanentError(f"The image folder {folder} exists already.") from None
        try:
            if before is not None:
                await before()
            await self.pause()
            if during is not None:
                await during()
            self._needs_life()
            size = (folder / MEMORY).write_bytes(json.dumps(self.guest.memory).encode())
            (folder / DEVICES).write_bytes(json.dumps(_layout(self.guest.spec)).encode())
        except BaseException:
            shutil.rmtree(folder)
            go_on = True
            raise
        finally:
            if ran and go_on and self.guest.exit is None:
                await self.resume()
        return Frozen(time.monotonic() - began, size, size)

    async def limit_cpu(self, cpu_milli: int) -> None:
        """Remember the limit."""
        self._needs_life()
        self.guest.cpu_milli = cpu_milli

    async def resize_drive(self, drive: str, size_bytes: int) -> None:
        """Remember the size."""
        self._needs_life()
        if drive not in {each.id for each in self.guest.spec.drives}:
            raise PermanentError(f"microVM {self.guest.spec.uid} has no drive {drive!r}.", reason="NoSuchDrive")
        self.guest.resized[drive] = size_bytes

    async def replace_drive(self, drive: Drive) -> None:
        """Remember the file."""
        self._needs_life()
        drives = self.guest.spec.drives
        if drive.id not in {each.id for each in drives}:
            raise PermanentError(f"microVM {self.guest.spec.uid} has no drive {drive.id!r}.", reason="NoSuchDrive")
        self.guest.spec = replace(self.guest.spec, drives=tuple(drive if each.id == drive.id else each for each in drives))

    async def write_again(self) -> bool:
        """Whether its disk was full; it is not any more."""
        self._needs_life()
        stood, self.guest.starved = self.guest.starved, False
        return stood

    async def kill(self) -> None:
        """End the guest; harmless when it has ended."""
        self.guest.end(Exit("killed", "", requested=True))
        await self.wait()

    async def wait(self) -> Exit:
        """Wait for its end, then leave nothing of it."""
        await self.guest.ended.wait()
        self._drop_channel()
        self._agents.cancel()
        if self._host.guests.get(self.guest.spec.run_dir) is self.guest:
            del self._host.guests[self.guest.spec.run_dir]
        assert self.guest.exit is not None
        return replace(self.guest.exit)

    async def console(self) -> str:
        """What the test wrote to the guest's console."""
        return self.guest.console

    def release(self) -> None:
        """Drop the channel; the guest goes on, and its agent with what it has already received."""
        self._drop_channel()

    def _needs_life(self) -> None:
        if self.guest.exit is not None:
            raise PermanentError(f"microVM {self.guest.spec.uid} has ended.", reason="Ended")

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await self._agent(self.guest, reader, writer)
        finally:
            writer.close()


def _layout(spec: MachineSpec) -> dict[str, str]:
    sizes = {drive.id: drive.path.stat().st_size for drive in spec.drives if drive.path.exists()}
    disks = [
        f"{drive.id}:{0 if drive.durable else sizes[drive.id]}:{drive.read_only}" for drive in spec.drives if drive.id in sizes
    ]
    cpus = -(-spec.cpu_milli // 1000)
    return {"memory": str(spec.memory_bytes), "cpus": str(cpus), "disks": " ".join(disks) or "none", "nic": str(bool(spec.nic))}

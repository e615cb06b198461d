"""Real microVMs for tests: the toolchain once for a session, a guest for the driver's own tests, machines that end with
the test, and a look at what a machine left.

    from primordia.testing.vmm import tools            # a session-scoped fixture: an ensured toolchain
    async with booted(tools, tmp_path, root=image) as machine: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from primordia.drivers.vmm_fake import FakeGuest
from primordia.drivers.vmm_qemu import QemuVmm
from primordia.drivers.vmm_qemu.machine import QemuMachine
from primordia.host import accelerator, kernel, toolchain
from primordia.host.initramfs import build_initramfs
from primordia.kit import cgroup, ids, netns
from primordia.kit.command import run
from primordia.kit.paths import cache_dir
from primordia.ports.vmm import Drive, Machine, MachineSpec
from primordia.wire.nodeconfig import Tools

OWNER_ID = 1_699_990_000
DEADLINE_S = 60.0


@pytest.fixture(scope="session")
def tools() -> Tools:
    """The machine's toolchain, downloaded into its cache the first time."""
    if os.geteuid() != 0:
        pytest.skip("microVMs need root")
    return asyncio.run(toolchain.ensure(cache_dir(), lambda step: None))


@pytest.fixture(scope="session")
def obedient_initramfs(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs whose /init is `vmm_guest.c`: it obeys lines on the agent's channel."""
    folder = tmp_path_factory.mktemp("vmm-guest")

    async def build() -> Path:
        source = Path(__file__).with_name("vmm_guest.c")
        await run(["gcc", "-static", "-Os", "-s", "-o", str(folder / "init"), str(source)], timeout_s=120)
        image = kernel.given() or kernel.unpacked(cache_dir() / "toolchain" / "kernel")
        await build_initramfs(image.modules, folder / "init", folder / "initramfs")
        return folder / "initramfs"

    return asyncio.run(build())


@pytest.fixture
def tap() -> Iterator[int]:
    """An open TAP in a namespace of the test's own."""
    name = f"primordia-test-{ids.suffix(8)}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
    space = netns.open_named(name)

    def make() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        # TUNSETIFF with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22s", b"tap0", 0x0002 | 0x1000 | 0x4000, b""))
        return descriptor

    descriptor = netns.call_in(space, make)
    yield descriptor
    os.close(descriptor)
    os.close(space)
    subprocess.run(["ip", "netns", "delete", name], check=True, timeout=30)


class Guests:
    """A QEMU driver of the test's own, and machines below the test's own cgroup and folder."""

    def __init__(self, tools: Tools, folder: Path, verdict: tuple[str, str]) -> None:
        self.tools = tools
        self.group = f"primordia-test-{ids.suffix(8)}"
        self._folder = folder
        self._verdict = verdict

    def vmm(self) -> QemuVmm:
        """A new driver, as the next daemon would make it."""
        return QemuVmm(self.tools, *self._verdict, cgroup_root=self.group)

    def spec(self, name: str = "vm", *, initramfs: Path | None = None, drives: tuple[Drive, ...] = ()) -> MachineSpec:
        """A small machine in the test's folder."""
        return MachineSpec(
            uid=f"{self.group}-{name}",
            run_dir=self._folder / "run" / name,
            cpu_milli=1000,
            memory_bytes=128 << 20,
            kernel=Path(self.tools.kernel),
            initramfs=initramfs or Path(self.tools.initramfs),
            drives=drives,
            owner_id=OWNER_ID,
            cgroup=name,
        )

    def left(self, spec: MachineSpec) -> list[str]:
        """Whatever there still is of a machine: processes, cgroups, files."""
        found = [f"process {pid}" for pid in processes_of(spec.uid)]
        if cgroup.exists(f"{self.group}/{spec.cgroup}"):
            found.append(f"cgroup {self.group}/{spec.cgroup}")
        if spec.run_dir.exists():
            found += [f"file {path}" for path in sorted(spec.run_dir.iterdir())] or [f"folder {spec.run_dir}"]
        return found

    def close(self) -> None:
        """End whatever a failed test left."""
        left = cgroup.pids(self.group)
        cgroup.kill_tree(self.group)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


@contextlib.asynccontextmanager
async def guests(tools: Tools, folder: Path) -> AsyncIterator[Guests]:
    """Guests that all end with the block."""
    made = Guests(tools, folder, await accelerator.decide(cache_dir(), tools))
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def booted(
    tools: Tools, folder: Path, *, root: Path | None = None, scratch: Path | None = None
) -> AsyncIterator[QemuMachine]:
    """A machine with the real agent, whose port is open, with the given drives `root` and `scratch`; ends with the block."""
    drives = []
    if root is not None:
        drives.append(Drive("root", root, read_only=True))
    if scratch is not None:
        drives.append(Drive("scratch", scratch))
    async with guests(tools, folder) as made:
        machine = await made.vmm().start(made.spec(drives=tuple(drives)))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await machine.booted()
            yield machine
        finally:
            await machine.kill()


class Line:
    """A conversation with an obedient guest, one line each way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, machine: Machine) -> Line:
        """Over a new channel."""
        return cls(*await machine.open_channel())

    async def say(self, text: str) -> None:
        """Send a line without waiting for an answer."""
        self.writer.write(text.encode() + b"\n")
        await self.writer.drain()

    async def hear(self) -> str:
        """The next line, empty when the channel has closed."""
        async with asyncio.timeout(DEADLINE_S):
            return (await self.reader.readline()).decode().rstrip("\n ")

    async def ask(self, text: str) -> str:
        """A line and its answer."""
        await self.say(text)
        return await self.hear()


async def obedient(guest: FakeGuest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What `vmm_guest.c` does, for guests of the fake: `ping`, `count`, `keep`, `kept`, `poweroff`, `panic`."""
    while line := await reader.readline():
        word, _, text = line.decode().strip().partition(" ")
        if word == "poweroff":
            guest.power_off()
        elif word == "panic":
            guest.panic("sysrq triggered crash")
        elif word == "ping":
            writer.write(b"pong\n")
        elif word == "count":
            guest.memory["count"] = guest.memory.get("count", 0) + 1
            writer.write(b"%d\n" % guest.memory["count"])
        elif word == "keep":
            guest.memory["kept"] = text
            writer.write(b"ok\n")
        elif word == "kept":
            writer.write(guest.memory.get("kept", "").encode() + b"\n")


def processes_of(uid: str) -> list[int]:
    """Processes that run QEMU for a machine, zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"guest={uid}".encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found

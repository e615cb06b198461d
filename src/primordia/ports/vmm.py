"""The VMM port: a microVM, its files, and one byte channel to the agent inside. Bodies: qemu, fake.

Shaped so that QEMU and Firecracker fit: nothing is hotplugged, a drive's backing file may change only while the machine
is not running, and the channel is whatever the VMM has (virtio-serial, vsock).

A machine can be frozen into an *image*: a folder with its memory and its devices' state. Forks of an image read the memory
file for as long as they live and keep for themselves what they write: whoever changes the file changes them all, so nobody
may. What belongs to one machine only (processors' caches, open connections to the agent's channel) is not in an image.

A machine outlives the process that started it. `adopt` finds it again by the pid file in its run folder, and believes a
pid only together with its start time and the boot id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class Drive:
    """A raw disk. `durable` says whether guest flushes must reach the disk: true for data, false for scratch.

    The file of a fork's durable drive may have another size than its template's: its guest binds such a drive anew.
    """

    id: str
    path: Path
    read_only: bool = False
    durable: bool = False


@dataclass(frozen=True)
class Nic:
    """A network card on a TAP whose open descriptor is handed over; the TAP vanishes with the VMM."""

    tap_fd: int
    mac: str


@dataclass(frozen=True)
class MachineSpec:
    """Everything needed to start one microVM. `memory_bytes` is the guest's memory. `cpu_milli` is the CPU time that it will
    be bound to by `Machine.limit_cpu`; until then, so while it boots, it may take a whole CPU if that is more.

    `run_dir` receives sockets and pid file and is gone when the machine is. The VMM runs as `owner_id` (uid and gid), is
    handed every disk and device open, and needs no way into any folder; kernel and initramfs are readable by all.
    `cgroup` is the name below the node's own cgroup.
    """

    uid: str
    run_dir: Path
    cpu_milli: int
    memory_bytes: int
    kernel: Path
    initramfs: Path
    drives: tuple[Drive, ...]
    owner_id: int
    cgroup: str
    nic: Nic | None = None
    kernel_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class MachineIdentity:
    """What names a process beyond doubt: pid, its start time in clock ticks since boot, and the boot id."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True)
class Exit:
    """How a machine ended. `requested` says that we asked for it; `detail` has the VMM's or kernel's last words."""

    cause: Literal["shutdown", "killed", "crashed", "lost"]
    detail: str = ""
    requested: bool = False


@dataclass(frozen=True)
class VmmInfo:
    """What runs here: `accelerator` is kvm or tcg, and `accelerator_reason` why."""

    name: str
    version: str
    accelerator: str
    accelerator_reason: str
    template_read_only: bool = False


@dataclass(frozen=True)
class Frozen:
    """What a freeze took: seconds that the virtual CPUs stood, bytes of data in the memory file (holes left out), and bytes
    that were copied while they stood."""

    pause_s: float
    memory_bytes: int
    copied_bytes: int


MEMORY, DEVICES = "memory", "devices"
"""The two files of an image."""


class Machine(Protocol):
    """A started, forked or adopted microVM."""

    @property
    def identity(self) -> MachineIdentity:
        """Which process it is."""

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the agent's byte channel; one connection at a time, the newest wins. Raises TemporaryError."""

    async def pause(self) -> None:
        """Stop the virtual CPUs; memory stays."""

    async def resume(self) -> None:
        """Let the virtual CPUs go on."""

    async def freeze(
        self,
        folder: Path,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        during: Callable[[], Awaitable[None]] | None = None,
        go_on: bool = True,
    ) -> Frozen:
        """Write an image of it into a new folder: `memory` and `devices`. Making them durable is the caller's.

        `before` runs last before the virtual CPUs stand, when all is done that can be done while they run. `during` runs
        while they stand, beside the copying: what it takes of the machine's disks belongs to the image. Afterwards the
        machine goes on if it ran before, with `go_on=False` only after a failure; a machine that was paused stays so.
        Whatever fails (no room, a callback, the VMM): it goes on, the folder is gone, and a callback's error is raised as it
        came, ours as PermanentError, TemporaryError or CapacityError. A machine whose freezing process died while it stood
        goes on when it is adopted.
        """

    async def limit_cpu(self, cpu_milli: int) -> None:
        """Bind it to so many thousandths of a CPU from now on. Raises PermanentError when it has ended or cannot be bound."""

    async def resize_drive(self, drive: str, size_bytes: int) -> None:
        """Tell the guest that its drive has so many bytes, as its file has by now. May be repeated.

        Raises PermanentError when it has ended or has no such drive, TemporaryError while the monitor is away.
        """

    async def replace_drive(self, drive: Drive) -> None:
        """Give the drive of that id another file, of any size: once, while the machine is paused and its guest has never used
        the drive. Raises as `resize_drive`, and PermanentError naming a file that cannot be opened.
        """

    async def write_again(self) -> bool:
        """Let it go on where it stands because the file of a durable drive found no room, as QEMU has it by itself; it makes
        the same write again. Whether it stood so. Raises as `resize_drive`.
        """

    async def kill(self) -> None:
        """End it now and wait until nothing of it is left: process, cgroup, sockets. Harmless when it has ended."""

    async def wait(self) -> Exit:
        """Wait until it has ended, noticed within a second however it ended."""

    async def console(self) -> str:
        """The last of what the guest's kernel wrote to its console, for explaining a failed boot."""

    def release(self) -> None:
        """Let go of it without stopping it, when this process ends and the machine goes on."""


class Vmm(Protocol):
    """Starts and finds microVMs."""

    async def info(self) -> VmmInfo:
        """Version and accelerator, decided by a boot probe and cached for this boot of the host."""

    async def start(self, spec: MachineSpec) -> Machine:
        """Start a microVM running. When it raises, nothing is left.

        Raises PermanentError with the cause (missing file, no memory, refused flag), ConflictError when one runs in that
        folder already, TemporaryError when it may pass.
        """

    async def fork(
        self, spec: MachineSpec, image: Path, *, beside: Callable[[Machine], Awaitable[None]] | None = None
    ) -> Machine:
        """A copy-on-write child of the image, paused until `resume`. When it raises, nothing is left.

        With `beside` it goes on by itself as soon as it can, and `beside` runs meanwhile: it may open the channel, and what it
        says there first waits for the guest. Returns when that has ended too; what it raises is raised as it came.

        Processors, memory, network card and drives are those of the machine that was frozen, the drives' files may be others
        of equal size. Kernel, initramfs and kernel arguments are not used: they are in the memory already.

        Raises as `start`, and PermanentError naming the file when the image is incomplete or damaged as far as that is seen
        here: sizes, and all of the devices' state. The memory's content is for whoever keeps the image to check.
        """

    async def image_key(self, spec: MachineSpec) -> dict[str, str]:
        """What must be equal for an image of one machine to be used for another: short texts by name, the same for equal
        specs in every process and on every node where they hold. Raises PermanentError when kernel or initramfs is missing.
        """

    async def adopt(self, uid: str, run_dir: Path, cgroup: str) -> Machine | None:
        """The machine of that folder, or None; leftovers of a dead one are removed.

        A machine whose guest ended while nobody watched may still be found: its `wait` then says at once how it ended.
        """

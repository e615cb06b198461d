"""The QEMU body of the VMM port: start, fork and adopt. What a running machine does is in machine.py.

A start is a ladder of steps, each undone when a later one fails, so that a start that raises leaves nothing: no process,
cgroup, socket or pid file. The pid file is written before QEMU can be asked anything, so that a daemon killed at any rung
leaves a machine the next one can find and end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from primordia.drivers.vmm_qemu import process, rundir
from primordia.drivers.vmm_qemu.argv import (
    Accelerator,
    boot_cpu_milli,
    launch_argv,
    memory_limit_bytes,
    qemu_argv,
)
from primordia.drivers.vmm_qemu.handover import opened
from primordia.drivers.vmm_qemu.key import image_key
from primordia.drivers.vmm_qemu.layout import Note, layout_of, unpack, write_note
from primordia.drivers.vmm_qemu.machine import QemuMachine
from primordia.drivers.vmm_qemu.process import Process
from primordia.drivers.vmm_qemu.tsc import host_tsc_khz
from primordia.kit import cgroup, identity
from primordia.kit.command import CommandError, run
from primordia.kit.errors import ConflictError, PermanentError, PrimordiaError, UnsupportedError
from primordia.kit.tasks import ended
from primordia.ports.vmm import MachineIdentity, MachineSpec, VmmInfo
from primordia.wire.nodeconfig import Tools

log = logging.getLogger(__name__)

Beside = Callable[[QemuMachine], Awaitable[None]]


class QemuVmm:
    """Starts microVMs with one QEMU, one accelerator, below one cgroup."""

    def __init__(self, tools: Tools, accelerator: str, accelerator_reason: str, cgroup_root: str) -> None:
        """`accelerator` is the verdict of the boot probe, kvm or tcg, and `accelerator_reason` its sentence.

        `cgroup_root` is the cgroup below which each machine gets its own, as `primordia/S/N/vm`.
        """
        self._tools = tools
        self._accelerator = accelerator
        self._reason = accelerator_reason
        self._cgroup_root = cgroup_root
        self._version = ""

    async def info(self) -> VmmInfo:
        """QEMU's version and the accelerator. Raises UnsupportedError when QEMU does not run."""
        if not self._version:
            try:
                said = (await run([self._tools.qemu, "--version"], env=environment(self._tools))).text()
            except CommandError as error:
                raise UnsupportedError(f"QEMU does not run: {error.message}", remedy="Run `primordia doctor`.") from error
            self._version = parse_version(said)
        newest = tuple(int(part) for part in self._version.split(".")[:2]) >= (8, 2)
        return VmmInfo("qemu", self._version, self._accelerator, self._reason, template_read_only=newest)

    async def start(self, spec: MachineSpec) -> QemuMachine:
        """Start a microVM; returns when QEMU runs it. What else the port says."""
        return await self._begin(spec, None)

    async def fork(self, spec: MachineSpec, image: Path, *, beside: Beside | None = None) -> QemuMachine:
        """A copy-on-write child of the image; returns when it is loaded, and `beside` has ended. What else the port says.

        Raises UnsupportedError where QEMU cannot map a file that it must not write.
        """
        if not (await self.info()).template_read_only:
            raise UnsupportedError(
                f"QEMU {self._version} cannot share an image's memory with forks: 8.2 is the first that can.",
                remedy="Install a newer QEMU; `primordia doctor` shows which one is used.",
            )
        unpack(image, layout_of(spec))
        return await self._begin(spec, image, beside)

    async def image_key(self, spec: MachineSpec) -> dict[str, str]:
        """What an image of such a machine depends on."""
        version = (await self.info()).version
        cpuinfo = await asyncio.to_thread(Path("/proc/cpuinfo").read_text)
        return await asyncio.to_thread(image_key, spec, Accelerator(self._accelerator), version, cpuinfo)

    async def adopt(self, uid: str, run_dir: Path, cgroup: str) -> QemuMachine | None:
        """Find the machine again by its pid file; needs nothing of it but that its process runs."""
        found = self._running(run_dir)
        if found is None:
            await self._clear(run_dir, self._group(cgroup))
            return None
        machine = QemuMachine(uid, run_dir, self._group(cgroup), found, rundir.open_stderr(run_dir))
        machine.adopted()
        return machine

    async def _begin(self, spec: MachineSpec, image: Path | None, beside: Beside | None = None) -> QemuMachine:
        group = self._group(spec.cgroup)
        if self._running(spec.run_dir) is not None:
            raise ConflictError(f"microVM {spec.uid} runs already in {spec.run_dir}.")
        await self._clear(spec.run_dir, group)
        machine: QemuMachine | None = None
        try:
            machine = await self._launch(spec, group, image, stands=beside is None)
            if beside is not None:
                await _loaded_beside(machine, beside)
            else:
                await (machine.running() if image is None else machine.loaded())
        except BaseException:
            await self._undo(machine, spec.run_dir, group)
            raise
        return machine

    async def _launch(self, spec: MachineSpec, group: str, image: Path | None, *, stands: bool) -> QemuMachine:
        accelerator = await self._host()
        cgroup.make(group, cgroup.Limits(boot_cpu_milli(spec), memory_limit_bytes(spec, accelerator)))
        stderr = rundir.prepare(spec.run_dir)
        try:
            with opened(spec, accelerator, image) as files:
                inode = os.fstat(files.memory).st_ino if image is not None else 0
                write_note(spec.run_dir, Note(layout=layout_of(spec), base_inode=inode))
                inherit = [*files.all(), *((spec.nic.tap_fd,) if spec.nic else ())]
                qemu = qemu_argv(spec, self._tools, accelerator, files, stands=stands)
                command = self._command(spec, group, inherit, qemu)
                errors = str(spec.run_dir / rundir.STDERR)
                pid = await process.launch(command, env=environment(self._tools), stderr=errors, inherit=inherit)
            found = Process(pid)
            identity.write_pid_file(spec.run_dir / rundir.PID, pid)
            return QemuMachine(spec.uid, spec.run_dir, group, found, stderr)
        except BaseException as error:
            os.close(stderr)
            if isinstance(error, OSError):
                raise PermanentError(f"microVM {spec.uid} cannot be started: {error.strerror} ({error.filename}).") from error
            raise

    def _command(self, spec: MachineSpec, group: str, inherit: Sequence[int], qemu: tuple[str, ...]) -> tuple[str, ...]:
        if not self._tools.launcher:
            raise UnsupportedError(
                f"microVM {spec.uid} cannot be started: this node knows no launcher.",
                remedy="Its settings are from an earlier version: run `primordia up` (or `join`) again.",
            )
        return launch_argv(self._tools.launcher, spec.owner_id, inherit, cgroup.procs_files(group), qemu)

    async def _undo(self, machine: QemuMachine | None, run_dir: Path, group: str) -> None:
        """Leave nothing of a failed start, and never let that hide why it failed."""
        try:
            if machine is not None:
                await machine.kill()
            await self._clear(run_dir, group)
        except (PrimordiaError, OSError) as error:
            log.error("a failed start left something in %s: %s", run_dir, error)

    async def _clear(self, run_dir: Path, group: str) -> None:
        """Remove what a dead machine left; whatever still runs in its cgroup is not a machine we know."""
        if cgroup.exists(group):
            await asyncio.to_thread(cgroup.kill_tree, group)
        rundir.clear(run_dir)

    def _running(self, run_dir: Path) -> Process | None:
        try:
            record = json.loads((run_dir / rundir.PID).read_text())
            wanted = MachineIdentity(int(record["pid"]), int(record["startTicks"]), str(record["bootId"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return Process.find(wanted) if wanted.boot_id == identity.boot_id() else None

    async def _host(self) -> Accelerator:
        if self._accelerator == "kvm":
            return Accelerator("kvm")
        return Accelerator("tcg", await asyncio.to_thread(host_tsc_khz))

    def _group(self, name: str) -> str:
        return f"{self._cgroup_root}/{name}"


async def _loaded_beside(machine: QemuMachine, beside: Beside) -> None:
    """Both at once. Where both fail, what QEMU said is why."""
    talking = asyncio.ensure_future(beside(machine))
    try:
        await machine.loaded()
        await talking
    finally:
        await ended(talking)


def environment(tools: Tools) -> dict[str, str]:
    """All of the environment that QEMU gets."""
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    if tools.qemu_library_path:
        variables["LD_LIBRARY_PATH"] = tools.qemu_library_path
    return variables


def parse_version(text: str) -> str:
    """`10.0.2` out of `QEMU emulator version 10.0.2 (Debian ...)`."""
    words = text.split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "0.0"

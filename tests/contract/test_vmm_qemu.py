"""The QEMU body keeps the VMM contract, with real microVMs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from vmm_contract import VmmContract

from primordia.drivers.vmm_qemu import QemuVmm
from primordia.kit import cgroup
from primordia.ports.vmm import Machine, MachineSpec
from primordia.testing.vmm import Guests, guests, obedient_initramfs, tools
from primordia.wire.nodeconfig import Tools

__all__ = ["obedient_initramfs", "tools"]


@dataclass
class QemuWorld:
    guests: Guests
    initramfs: Path

    def vmm(self) -> QemuVmm:
        return self.guests.vmm()

    def spec(self, name: str = "vm") -> MachineSpec:
        return self.guests.spec(name, initramfs=self.initramfs)

    async def kill_from_outside(self, machine: Machine) -> None:
        descriptor = os.pidfd_open(machine.identity.pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # reaped already, by whoever noticed first
                await asyncio.to_thread(os.waitid, os.P_PIDFD, descriptor, os.WEXITED | os.WNOWAIT)
        finally:
            os.close(descriptor)

    def cpu_milli(self, spec: MachineSpec) -> int:
        if any("cpu controller" in sentence for sentence in cgroup.hierarchies().missing()):
            pytest.skip("this machine has no cpu controller")
        return cgroup.cpu_milli(f"{self.guests.group}/{spec.cgroup}")

    def left(self, spec: MachineSpec) -> list[str]:
        return self.guests.left(spec)


class TestQemuVmm(VmmContract):
    @pytest.fixture
    async def world(self, tools: Tools, obedient_initramfs: Path, tmp_path: Path) -> AsyncIterator[QemuWorld]:
        async with guests(tools, tmp_path) as made:
            yield QemuWorld(made, obedient_initramfs)

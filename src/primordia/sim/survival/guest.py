"""The parts of a running context that a node's volumes look at: the guest that writes back, and who has the disk."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from primordia.kit.errors import TemporaryError
from primordia.node.live import Live
from primordia.node.logs import LogBook
from primordia.node.records import Record
from primordia.ports.guest import Guest
from primordia.ports.vmm import Machine as Vmm
from primordia.sim.survival.machine import Machine, Vm
from primordia.sim.survival.process import Process
from primordia.wire.resources import Context


class SimGuest:
    """The agent in a microVM. One that is frozen does not answer until it is thawed, if it ever is."""

    def __init__(self, machine: Machine, vm: Vm, process: Process) -> None:
        self._machine = machine
        self._vm = vm
        self._process = process

    async def sync(self) -> None:
        """Write back."""
        await self._answer()

    async def grow_data(self) -> None:
        """Nothing to do."""

    async def freeze_data(self, deadline_s: float) -> None:
        """Stand still: a disk that is cut here never changes within a cut."""
        await self._answer()

    async def thaw_data(self) -> None:
        """Go on."""
        await self._answer()

    async def _answer(self) -> None:
        await self._process.clock.sleep(0.01)
        while not self._machine.writes(self._vm):
            if self._machine.vms.get(self._vm.context_uid) is not self._vm:
                raise TemporaryError("The guest is gone.", reason="GuestUnreachable")
            await asyncio.sleep(0.25)
            await self._process.passes()


class SimVmm:
    """The microVM's own side of a disk that grows."""

    async def resize_drive(self, *_: object) -> None:
        """It is as large as it is told."""

    async def write_again(self) -> bool:
        """No write of its has failed for want of room."""
        return False


def live_of(context: Context, process: Process) -> Live:
    """What the node holds of a context, before its microVM is there."""
    meta = context.metadata
    record = cast(Record, SimpleNamespace(uid=meta.uid, namespace=meta.namespace, name=meta.name, spec=context.spec))
    return Live(record, cast(LogBook, None), context=context, known=True)


def enter(live: Live, machine: Machine, vm: Vm, process: Process) -> None:
    """Its microVM is there."""
    live.machine = cast(Vmm, SimVmm())
    live.guest = cast(Guest, SimGuest(machine, vm, process))

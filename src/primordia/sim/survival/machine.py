"""A simulated machine: its power, its clock, its pool, the microVMs in its cgroup, and the two processes that look after them.

What a microVM does, it does without anybody: from the moment it is started it writes, until it is stopped, killed or frozen,
or the machine stands. So who writes at any instant is known exactly, and is told to the witness whenever it changes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from primordia.sim.counting import Sum
from primordia.sim.survival.pool import Shelf
from primordia.sim.survival.process import NodeClock, Process, true_s

if TYPE_CHECKING:
    from primordia.sim.survival.daemon import SimDaemon
    from primordia.sim.survival.supervisor import SimSupervisor, SimWarden


@dataclass
class Vm:
    """A microVM: `print` is what it was started from. It is up from `runs_s` on (boot time), and gone at `stops_s`, if set."""

    context_uid: str
    lifeform_uid: str
    name: str
    epoch: int
    print: str
    size: Sum
    runs_s: float
    volume_uid: str = ""
    stops_s: float | None = None


class Witness(Protocol):
    """Who is told what really happens."""

    def runs(self, machine: Machine, vm: Vm) -> None:
        """The microVM writes from now on: it was started, or thawed."""

    def started(self, machine: Machine, vm: Vm) -> None:
        """A microVM was started on the disk as it is."""

    def crashed(self, machine: Machine, error: Exception) -> None:
        """Its daemon ended by a mistake of its own."""


@dataclass
class RunFiles:
    """What is in the run folder: it outlives processes, and is gone after a boot.

    `life` is the one under which the daemon may start something, `settled` the one under which what runs runs, `standing_s`
    from when on all of it must stand, `beat_s` the daemon's last sign of life.
    """

    incarnation: str = ""
    life: int = 0
    settled: int | None = None
    others: frozenset[str] | None = None
    beat_s: float | None = None
    standing_s: float | None = None


class Machine:
    """One node's. `suspended` and `frozen` say that nothing at all, or no microVM, goes on."""

    def __init__(self, name: str, rack: str, segment: str, shelf: Shelf, witness: Witness, rng: random.Random) -> None:
        self.name = name
        self.rack = rack
        self.segment = segment
        self.shelf = shelf
        self.rng = rng
        self.clock = NodeClock()
        self.witness = witness
        self.vms: dict[str, Vm] = {}
        self.up = False
        self.suspended = 0
        self.stood: list[tuple[float, float]] = []
        """From when till when all of it stood, and then went on (true seconds)."""
        self._stands_s = 0.0
        self.frozen = False
        self.run_files = RunFiles()
        self.boots = 0
        self.excused_until_s = 0.0
        """Until then nobody can ask of the fence that it has acted: it was stopped itself."""
        self.kills = 0
        self.freezes = 0
        self.supervisor: SimSupervisor | None = None
        self.warden: SimWarden | None = None
        self.daemon: SimDaemon | None = None
        self._daemons = 0
        self._settled_s = 0.0
        shelf.settle = self.settle

    def count_daemon(self) -> int:
        """The number of its next daemon."""
        self._daemons += 1
        return self._daemons

    # ------------------------------------------------------------ what is true

    def writes(self, vm: Vm) -> bool:
        """Whether that microVM of this machine writes now."""
        return self.up and not self.suspended and not self.frozen and self.vms.get(vm.context_uid) is vm

    def settle(self) -> None:
        """Bring the disks up to now. Called before whatever changes who writes."""
        for vm in self.vms.values():
            volume = self.shelf.volumes.get(vm.volume_uid)
            if volume is not None and self.writes(vm):
                if volume.dirty_s is None:
                    volume.dirty_s = self._settled_s  # it has done nothing else since
                volume.written_s, volume.writer_epoch = true_s(), vm.epoch
        self._settled_s = true_s()

    # ------------------------------------------------------------ microVMs

    def start_vm(self, vm: Vm) -> None:
        """It is there, in the cgroup."""
        self.settle()
        self.vms[vm.context_uid] = vm
        self.witness.started(self, vm)
        if self.writes(vm):
            self.witness.runs(self, vm)

    def end_vm(self, context_uid: str) -> None:
        """It has ended, or is killed."""
        self.settle()
        self.vms.pop(context_uid, None)

    def freeze(self) -> None:
        """The whole cgroup."""
        self.settle()
        self.freezes += not self.frozen
        self.frozen = True

    def thaw(self) -> None:
        """Let them write again."""
        self.frozen = False
        self._tell()

    def kill_all(self) -> None:
        """The cgroup is empty, and what enters it goes on."""
        self.settle()
        self.kills += bool(self.vms)
        self.vms.clear()
        self.frozen = False

    def _tell(self) -> None:
        for vm in list(self.vms.values()):
            if self.writes(vm):
                self.witness.runs(self, vm)

    # ------------------------------------------------------------ the machine as a whole

    def processes(self) -> list[Process]:
        """Those that run."""
        return [
            each.process for each in (self.supervisor, self.warden, self.daemon) if each is not None and not each.process.dead
        ]

    def suspend(self) -> None:
        """Everything stands; the clock goes on."""
        self.settle()
        self.suspended += 1
        if self.suspended == 1:
            self._stands_s = true_s()
            for process in self.processes():
                process.stop("machine")

    def resume(self, excuse_s: float) -> None:
        """Everything goes on where it stood. The fence is given a moment to see what time it is."""
        self.suspended -= 1
        if not self.suspended and self.up:
            self.stood.append((self._stands_s, true_s()))
            self.excused_until_s = max(self.excused_until_s, true_s() + excuse_s)
            for process in self.processes():
                process.go_on("machine")
            self._tell()

    async def lose_power(self) -> None:
        """Everything ends at once but what lies in the pool."""
        self.settle()
        self.up = False
        self.vms.clear()
        self.frozen = False
        processes, self.supervisor, self.warden, self.daemon = self.processes(), None, None, None
        for process in processes:
            process.dead = True
        for process in processes:
            await process.kill()
        self.run_files = RunFiles()

    def boot(self) -> None:
        """Power is back."""
        self.up = True
        self.suspended = 0
        self.boots += 1
        self.clock.boot()
        self.run_files = RunFiles(incarnation=f"{self.name}-{self.boots}")

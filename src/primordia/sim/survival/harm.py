"""Carries faults out, and takes each back when its time is over. Faults of one kind may overlap; nothing forgets another's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError
from primordia.registry.registry import Registry
from primordia.sim.faults import Fault
from primordia.sim.survival.engine import SimEngine
from primordia.sim.survival.faults import Harm
from primordia.sim.survival.links import ENGINE, Links
from primordia.sim.survival.machine import Machine
from primordia.sim.survival.process import Process
from primordia.wire.resources import Node, Volume

_DRIFT = 0.002
"""Clocks of machines differ by a few hundred millionths; what timings allow for is far more than this."""
_WALL_S = 3600.0
_LONG_S = 15.0


class Harming:
    """`excuse_s` is how long a fence that stood is given once it goes on; `boot` gives a machine its power back."""

    def __init__(
        self,
        machines: dict[str, Machine],
        engine: SimEngine,
        links: Links,
        registry: Registry,
        clock: Clock,
        boot: Callable[[Machine], None],
        excuse_s: float,
    ) -> None:
        self._machines = machines
        self._engine = engine
        self._links = links
        self._registry = registry
        self._clock = clock
        self._boot = boot
        self._excuse_s = excuse_s
        self._off: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.stood_s = 0.0
        """When something went on last that had stood, and may do what it had decided before."""
        self._bodies: dict[Harm, Callable[[Fault[Harm]], Awaitable[None]]] = {
            Harm.POWER_CUT: self._cut_power,
            Harm.SUSPEND: self._suspend,
            Harm.DAEMON_STOP: self._stop_daemon,
            Harm.DAEMON_CRASH: self._crash_daemon,
            Harm.SUPERVISOR_STOP: self._stop_supervisor,
            Harm.SUPERVISOR_CRASH: self._crash_supervisor,
            Harm.ENGINE_CUT: self._cut_from_engine,
            Harm.ENGINE_CUT_ONE_WAY: self._cut_from_engine,
            Harm.PEERS_CUT: self._cut_from_peers,
            Harm.PEER_CUT_ONE_WAY: self._cut_one_way,
            Harm.ISOLATED: self._isolate,
            Harm.MANY_CUT: self._cut_many,
            Harm.RACK_LOSS: self._lose_rack,
            Harm.HEIR_BEHIND: self._leave_one_behind,
            Harm.SEGMENT_CUT: self._cut_segment,
            Harm.SLOW_NODE: self._slow_down,
            Harm.DRIFT: self._drift,
            Harm.WALL_JUMP: self._jump,
            Harm.MESSAGES_LOST: self._hurt_messages,
            Harm.MESSAGES_DOUBLED: self._hurt_messages,
            Harm.MESSAGES_LATE: self._hurt_messages,
            Harm.LEASE_REVOKED: self._revoke,
            Harm.REVOKED_UNHEARD: self._revoke_unheard,
            Harm.ENGINE_LEADER: self._lose_leader,
            Harm.ENGINE_QUORUM: self._lose_leader,
            Harm.DISK_FULL: self._fill_disk,
            Harm.DISK_ROT: self._rot,
            Harm.COMPACTION: self._compact,
            Harm.CORDON: self._cordon,
        }

    @property
    def is_prompt(self) -> bool:
        """Whether what is decided now is done now."""
        slow = any(process.slow_s for machine in self._machines.values() for process in machine.processes())
        return not (slow or self._links.late or self._links.lossy) and self._clock.boottime() - self.stood_s > _LONG_S

    async def suffer(self, fault: Fault[Harm]) -> None:
        """Wait for it, do it, and take it back."""
        await self._clock.sleep(fault.at_s)
        self.done[fault.kind] += 1
        await self._bodies[fault.kind](fault)

    def _victim(self, fault: Fault[Harm]) -> Machine:
        names = sorted(self._machines)
        return self._machines[names[int(fault.dice * len(names))]]

    def _another(self, fault: Fault[Harm], machine: Machine) -> Machine:
        others = [each for name, each in sorted(self._machines.items()) if each is not machine]
        return others[int(fault.dice * 1000) % len(others)]

    # ------------------------------------------------------------ machines

    async def _cut_power(self, fault: Fault[Harm]) -> None:
        await self._without_power([self._victim(fault)], fault.for_s)

    async def _lose_rack(self, fault: Fault[Harm]) -> None:
        rack = self._victim(fault).rack
        await self._without_power([each for each in self._machines.values() if each.rack == rack], fault.for_s)

    async def _leave_one_behind(self, fault: Fault[Harm]) -> None:
        """One copy of a volume is cut off from its owner while that syncs to the other; then both of these lose their power."""
        try:
            found = (await self._registry.list(Volume)).items
        except PrimordiaError:
            return
        volumes = [volume for volume in found if volume.status.node and len(volume.status.replicas) == 2]
        if not volumes:
            return
        volume = volumes[int(fault.dice * 1000) % len(volumes)]
        owner, (copy, behind) = volume.status.node, volume.status.replicas
        self._links.cut(owner, behind, 1)
        await self._clock.sleep(6.0)
        await self.want_sync(volume)
        await self._clock.sleep(3.0)
        await self._without_power([self._machines[owner], self._machines[copy]], fault.for_s)
        self._links.cut(owner, behind, -1)

    async def _without_power(self, machines: Iterable[Machine], for_s: float) -> None:
        for machine in machines:
            self._off[machine.name] += 1
            if machine.up:
                await machine.lose_power()
        await self._clock.sleep(for_s)
        for machine in machines:
            self._off[machine.name] -= 1
            if not self._off[machine.name] and not machine.up:
                self._boot(machine)

    async def _suspend(self, fault: Fault[Harm]) -> None:
        machine = self._victim(fault)
        if not machine.up:
            return
        boots = machine.boots
        machine.suspend()
        await self._clock.sleep(fault.for_s)
        if machine.boots == boots and machine.up:
            machine.resume(self._excuse_s)
            self.stood_s = self._clock.boottime()

    async def _stop_daemon(self, fault: Fault[Harm]) -> None:
        daemon = self._victim(fault).daemon
        if daemon is not None:
            await self._stopped(daemon.process, fault.for_s)

    async def _crash_daemon(self, fault: Fault[Harm]) -> None:
        daemon = self._victim(fault).daemon
        if daemon is not None:
            await daemon.process.kill()

    async def _stop_supervisor(self, fault: Fault[Harm]) -> None:
        machine = self._victim(fault)
        if machine.supervisor is not None:
            await self._stopped(machine.supervisor.process, fault.for_s)

    async def _crash_supervisor(self, fault: Fault[Harm]) -> None:
        """It is killed, and started again by the host's own supervisor."""
        machine = self._victim(fault)
        supervisor, boots = machine.supervisor, machine.boots
        if supervisor is None or supervisor.process.dead:
            return
        await supervisor.process.kill()
        await self._clock.sleep(0.2 + fault.for_s)
        if machine.up and machine.boots == boots and machine.supervisor is supervisor:
            self._restart(machine)

    async def _stopped(self, process: Process, for_s: float) -> None:
        process.stop("signal")
        await self._clock.sleep(for_s)
        process.go_on("signal")
        self.stood_s = self._clock.boottime()

    def _restart(self, machine: Machine) -> None:
        self.restart(machine)

    want_sync: Callable[[Volume], Awaitable[None]]
    """Has a volume synced by whoever runs with it."""

    restart: Callable[[Machine], None] = staticmethod(lambda machine: None)
    """Starts a new supervisor on a machine that runs."""

    async def _slow_down(self, fault: Fault[Harm]) -> None:
        """Everything of the daemon's takes its time, and a little of what the supervisor does."""
        machine = self._victim(fault)
        processes = machine.processes()
        for process in processes:
            process.slow_s = 0.15 if process.name.endswith("supervisor") else 1.0
        await self._clock.sleep(fault.for_s)
        for process in processes:
            process.slow_s = 0.0

    # ------------------------------------------------------------ clocks

    async def _drift(self, fault: Fault[Harm]) -> None:
        machine = self._victim(fault)
        machine.clock.drift(1.0 + (_DRIFT if fault.dice * 1000 % 2 >= 1 else -_DRIFT))
        await self._clock.sleep(fault.for_s)
        machine.clock.drift(1.0)

    async def _jump(self, fault: Fault[Harm]) -> None:
        machine = self._victim(fault)
        machine.clock.skew_s = _WALL_S if fault.dice * 1000 % 2 >= 1 else -_WALL_S
        await self._clock.sleep(fault.for_s)
        machine.clock.skew_s = 0.0

    # ------------------------------------------------------------ links

    async def _cut(self, pairs: Iterable[tuple[str, str]], for_s: float, *, both: bool = True) -> None:
        for one, other in pairs:
            self._links.cut(one, other, 1, both=both)
        await self._clock.sleep(for_s)
        for one, other in pairs:
            self._links.cut(one, other, -1, both=both)

    async def _cut_from_engine(self, fault: Fault[Harm]) -> None:
        name, one_way = self._victim(fault).name, fault.kind == Harm.ENGINE_CUT_ONE_WAY
        pair = (name, ENGINE) if fault.dice * 1000 % 2 >= 1 else (ENGINE, name)
        await self._cut([pair], fault.for_s, both=not one_way)

    def _to_peers(self, machine: Machine) -> list[tuple[str, str]]:
        return [(machine.name, other) for other in sorted(self._machines) if other != machine.name]

    async def _cut_from_peers(self, fault: Fault[Harm]) -> None:
        await self._cut(self._to_peers(self._victim(fault)), fault.for_s)

    async def _cut_one_way(self, fault: Fault[Harm]) -> None:
        machine = self._victim(fault)
        await self._cut([(machine.name, self._another(fault, machine).name)], fault.for_s, both=False)

    async def _isolate(self, fault: Fault[Harm]) -> None:
        machine = self._victim(fault)
        await self._cut([(machine.name, ENGINE), *self._to_peers(machine)], fault.for_s)

    async def _cut_many(self, fault: Fault[Harm]) -> None:
        """One node of each rack."""
        racks = {machine.rack: name for name, machine in sorted(self._machines.items())}
        await self._cut([(name, ENGINE) for name in racks.values()], fault.for_s)

    async def _cut_segment(self, fault: Fault[Harm]) -> None:
        """The segment that has not the engine is cut from the others."""
        segments: dict[str, list[str]] = {}
        for name, machine in sorted(self._machines.items()):
            segments.setdefault(machine.segment, []).append(name)
        first, *others = (segments[each] for each in sorted(segments))
        away = [name for names in others for name in names]
        await self._cut([(name, far) for name in away for far in (*first, ENGINE)], fault.for_s)

    async def _hurt_messages(self, fault: Fault[Harm]) -> None:
        field = {Harm.MESSAGES_LOST: "lossy", Harm.MESSAGES_DOUBLED: "doubling", Harm.MESSAGES_LATE: "late"}[fault.kind]
        setattr(self._links, field, getattr(self._links, field) + 1)
        await self._clock.sleep(fault.for_s)
        setattr(self._links, field, getattr(self._links, field) - 1)

    # ------------------------------------------------------------ the engine

    async def _revoke(self, fault: Fault[Harm]) -> None:
        if not self._engine.leaderless:
            self._engine.revoke_early(self._victim(fault).name)

    async def _revoke_unheard(self, fault: Fault[Harm]) -> None:
        name = self._victim(fault).name
        self._links.cut(name, ENGINE, 1)
        await self._revoke(fault)
        await self._clock.sleep(fault.for_s)
        self._links.cut(name, ENGINE, -1)

    async def _lose_leader(self, fault: Fault[Harm]) -> None:
        self._engine.lose_leader()
        await self._clock.sleep(fault.for_s)
        self._engine.find_leader()

    async def _compact(self, fault: Fault[Harm]) -> None:
        await self._engine.compact(self._engine.revision)

    # ------------------------------------------------------------ disks

    async def _fill_disk(self, fault: Fault[Harm]) -> None:
        shelf = self._victim(fault).shelf
        shelf.full += 1
        await self._clock.sleep(fault.for_s)
        shelf.full -= 1

    async def _rot(self, fault: Fault[Harm]) -> None:
        """The newest snapshot of one copy can no longer be read."""
        copies = [volume for _, volume in sorted(self._victim(fault).shelf.volumes.items()) if volume.head is None]
        if copies:
            copies[int(fault.dice * 1000) % len(copies)].rot()

    # ------------------------------------------------------------ people

    async def _cordon(self, fault: Fault[Harm]) -> None:
        await self._set_cordon(self._victim(fault).name, True)
        await self._clock.sleep(fault.for_s)
        await self._set_cordon(self._victim(fault).name, False)

    async def _set_cordon(self, name: str, unschedulable: bool) -> None:
        def changed(node: Node) -> Node:
            return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, unschedulable=unschedulable))

        while True:
            try:
                await self._registry.mutate(Node, name, "", changed)
                return
            except PrimordiaError:
                await self._clock.sleep(1.0)

"""One seed's soup whose machines die: from its first lifeform, through everything that befalls it, to rest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from primordia.domain.timings import Timings
from primordia.drivers.store_memory import KeyChange
from primordia.kit.errors import PrimordiaError
from primordia.registry.registry import Registry
from primordia.sim.checkers import Checker, Epochs, Ownership, Togetherness, Violation
from primordia.sim.data_checkers import Copies, Together
from primordia.sim.history import History
from primordia.sim.objects import make_node
from primordia.sim.survival.contents import Contents
from primordia.sim.survival.daemon import SimDaemon
from primordia.sim.survival.engine import SimEngine
from primordia.sim.survival.faults import Harm, schedule
from primordia.sim.survival.harm import Harming
from primordia.sim.survival.keys import KeyHistory, key_checkers
from primordia.sim.survival.links import Links, NodeStore
from primordia.sim.survival.machine import Machine
from primordia.sim.survival.pool import Shelf
from primordia.sim.survival.process import NodeClock, Process
from primordia.sim.survival.rest import Quiet, problems_at_rest
from primordia.sim.survival.supervisor import SimSupervisor, SimWarden
from primordia.sim.survival.users import Users
from primordia.sim.survival.witness import SimWitness
from primordia.sim.virtual import VirtualClock, run_virtual
from primordia.sim.world import Result
from primordia.wire.resources import Volume

_REACTION_S = 1.5
"""What a fence that stood is given to see it, once it goes on."""
_QUIET_S = 40.0
_LEAST_REST_S = 70.0
_NO_REST_S = 900.0


@dataclass(frozen=True)
class SurvivalProfile:
    """The size of a world. `act_every_s` and `harm_every_s` are averages."""

    racks: tuple[int, ...] = (2, 2, 2)
    lifeforms: int = 8
    duration_s: float = 150.0
    act_every_s: float = 0.8
    harm_every_s: float = 9.0
    kinds: tuple[Harm, ...] = tuple(Harm)
    latency_s: float = 0.01


class SurvivalWorld:
    """One seed's. `live` is its whole story."""

    def __init__(self, seed: int, profile: SurvivalProfile, folder: Path) -> None:
        self.seed = seed
        self.profile = profile
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.timings = Timings()
        self.contents = Contents()
        self.witness = SimWitness(self.contents)
        self.history = History(self.clock)
        self.quiet = Quiet()
        self.keys = KeyHistory(self.clock, self.timings)
        self.checkers: list[Checker] = [
            self.witness,
            Togetherness(),
            Ownership(),
            Epochs(),
            Together(),
            Copies(),
            *key_checkers(self.keys),
        ]
        self.history.listen(self.quiet)
        for checker in self.checkers:
            self.history.listen(checker)
        self._uids = self._dice()
        self._folder = folder
        self.engine = SimEngine(self.clock, observe=self._observe)
        self.keys.revoked = self.engine.revoked
        self.links = Links(self._dice(), profile.latency_s)
        self.machines: dict[str, Machine] = {}
        self.witness.machines = self.machines
        client = Process("client", NodeClock(), self._dice())
        self.registry = Registry(NodeStore("client", client, self.engine, self.links, 2.0), self.clock, new_uid=self._new_uid)
        self.users = Users(
            self.registry, self.clock, self._dice(), self._daemon_of, most=profile.lifeforms, racks=len(profile.racks)
        )
        self.users.loss_allowed = self.witness.loss_allowed.add
        self.plan = schedule(self._dice(), profile.duration_s, profile.harm_every_s, profile.kinds)
        self.harm = Harming(self.machines, self.engine, self.links, self.registry, self.clock, self._boot, _REACTION_S)
        self.keys.is_prompt = lambda: self.harm.is_prompt
        self.harm.want_sync = self._sync
        self.harm.restart = self._start_supervisor

    async def live(self) -> Result:
        """The whole story."""
        begin_s = self.clock.boottime()
        async with self._populated():
            async with asyncio.TaskGroup() as group:
                group.create_task(self.users.run(self.profile.duration_s, self.profile.act_every_s))
                for fault in self.plan:
                    group.create_task(self.harm.suffer(fault))
            problems = [] if await self._rest() else [("Rest", f"There is no end of changes: {self.quiet.last}.")]
            problems += problems_at_rest(self.history.state, self.machines, self.contents)
        now_s = self.clock.boottime()
        found = [violation for checker in self.checkers for violation in checker.violations]
        found += [Violation(name, now_s, self.history.commits, message) for name, message in problems]
        return Result(
            self.seed,
            self.history.fingerprint,
            self.history.commits,
            now_s - begin_s,
            self.history.terms,
            self.harm.done + self._links_did(),
            self.users.done + self._seen(),
            tuple(sorted(found, key=lambda violation: violation.revision)),
        )

    def _links_did(self) -> Counter[str]:
        return +Counter({"(a message lost)": self.links.lost, "(doubled)": self.links.doubled, "(late)": self.links.delayed})

    def _seen(self) -> Counter[str]:
        """What came of it, so that a run in which nothing happened is not taken for a good one."""
        machines = self.machines.values()
        return +Counter(
            {
                "(promise recorded)": self.witness.promises,
                "(takeover)": self.witness.takeovers,
                "(loss, allowed)": self.witness.losses,
                "(death)": self.keys.deaths,
                "(fence froze)": sum(each.freezes for each in machines),
                "(fence killed)": sum(each.kills for each in machines),
                "(overlap, excused)": self.witness.overlaps_excused,
            }
        )

    # ------------------------------------------------------------ the parts

    @contextlib.asynccontextmanager
    async def _populated(self) -> AsyncIterator[None]:
        number = 0
        for rack, count in enumerate(self.profile.racks):
            for _ in range(count):
                await self._make_machine(number, f"r{rack}", f"s{rack // 2}")
                number += 1
        for machine in self.machines.values():
            self._boot(machine)
        await self.users.populate()
        await self.clock.sleep(15.0)
        try:
            yield
        finally:
            for machine in self.machines.values():
                await machine.lose_power()
            await self.links.close()
            await self.engine.close()

    async def _make_machine(self, number: int, rack: str, segment: str) -> None:
        name = f"n{number}"
        disk = self._folder / "disk"
        disk.touch()
        os.truncate(disk, 1 << 20)
        shelf = Shelf(name, self.contents, disk)
        machine = Machine(name, rack, segment, shelf, self.witness, self._dice())
        shelf.on_cut = lambda uid, manifest: self.witness.cut(machine, uid, manifest)
        shelf.on_accept = lambda uid, manifest: self.witness.accepted(machine, uid, manifest)
        self.machines[name] = machine
        memory = self.rng.choice(("3Gi", "6Gi"))
        await self.registry.create(make_node(name, cpu="16", memory=memory, rack=rack, segment=segment, pool="64Gi"))

    def _boot(self, machine: Machine) -> None:
        machine.boot()
        machine.warden = SimWarden(machine)
        machine.warden.start()
        self._start_supervisor(machine)

    def _start_supervisor(self, machine: Machine) -> None:
        def make_daemon() -> SimDaemon:
            leads = int(machine.name[1:]) % 2 == 0
            return SimDaemon(machine, self.engine, self.links, self._daemon_of, self._folder, self._new_uid, leads=leads)

        machine.supervisor = SimSupervisor(machine, self.engine, self.links, make_daemon, self._supervisor_of, self.timings)
        machine.supervisor.start()

    async def _sync(self, volume: Volume) -> None:
        with contextlib.suppress(PrimordiaError):
            await self.users.sync_volume(volume)

    def _supervisor_of(self, node: str) -> SimSupervisor | None:
        supervisor = self.machines[node].supervisor if node in self.machines else None
        return None if supervisor is None or supervisor.process.dead else supervisor

    def _daemon_of(self, node: str) -> SimDaemon | None:
        machine = self.machines.get(node)
        return machine.daemon if machine is not None else None

    async def _rest(self) -> bool:
        """Wait until nothing has changed for a while; whether that came."""
        begin_s = self.clock.boottime()
        await self.clock.sleep(_LEAST_REST_S)
        await self.users.scrub_all()
        while self.clock.boottime() - begin_s < _NO_REST_S:
            quiet_s = self.clock.boottime() - max(begin_s, self.quiet.last_s)
            if quiet_s >= _QUIET_S:
                return True
            await self.clock.sleep(_QUIET_S - quiet_s)
        return False

    # ------------------------------------------------------------ chance

    def _observe(self, revision: int, changes: Sequence[KeyChange]) -> None:
        self.keys.observe(revision, changes)
        self.history.observe(revision, changes)

    def _new_uid(self) -> str:
        return str(uuid.UUID(int=self._uids.getrandbits(128), version=4))

    def _dice(self) -> random.Random:
        return random.Random(self.rng.getrandbits(64))


def survive(seed: int, profile: SurvivalProfile | None = None) -> Result:
    """Live through one seed under virtual time."""

    async def story() -> Result:
        with tempfile.TemporaryDirectory(prefix="primordia-sim-") as folder:
            return await SurvivalWorld(seed, profile or SurvivalProfile(), Path(folder)).live()

    return run_virtual(story())

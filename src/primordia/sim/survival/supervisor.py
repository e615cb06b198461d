"""A simulated node's supervisor: lease keeper, fence and failsafe by the product's machines, and who starts the daemon again.

Beside it stands the warden, a process of its own, which freezes when the supervisor has not moved the moment on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from primordia.domain import fence
from primordia.domain.fence import Action, AskPeers, DaemonView, FenceState, Freeze, Kill, Rest, Thaw, View
from primordia.domain.timings import Timings
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.registry.lives import Life
from primordia.sim.survival.daemon import SimDaemon
from primordia.sim.survival.engine import SimEngine
from primordia.sim.survival.keeper import Past, SimKeeper
from primordia.sim.survival.links import Links, NodeStore
from primordia.sim.survival.machine import Machine
from primordia.sim.survival.process import Process

_LEAST_WAIT_S = 0.005
_RESTART_S = 0.5
_FREEZE_TAKES_S = 0.05
_KILL_TAKES_S = 0.2
_WARDEN_SLEEPS_S = 5.0
_FREEZE_AGAIN_S = 1.0


class SimSupervisor:
    """One life of it. `make_daemon` gives a fresh daemon, `find` another node's supervisor, None while it has none."""

    def __init__(
        self,
        machine: Machine,
        engine: SimEngine,
        links: Links,
        make_daemon: Callable[[], SimDaemon],
        find: Callable[[str], SimSupervisor | None],
        timings: Timings,
    ) -> None:
        self.machine = machine
        self.process = Process(f"{machine.name}/supervisor", machine.clock, random.Random(machine.rng.getrandbits(64)))
        self._links = links
        self._make_daemon = make_daemon
        self._find = find
        self._timings = timings
        store = NodeStore(machine.name, self.process, engine, links, timings.request_timeout_s)
        files = machine.run_files
        past = Past((files.settled or 0) if machine.vms else None, files.others)
        life = Life(machine.name, f"boot-{machine.boots}", files.incarnation)
        self.keeper = SimKeeper(life, store, self.process.clock, timings, past, self._told)
        self._state = FenceState()
        if machine.vms:
            self._state = FenceState(until=self._now() if files.standing_s is None else files.standing_s)
        self._round_s: float | None = None
        self._asking = False
        self._daemon_held = False

    def start(self) -> None:
        """Begin."""
        for task in (self.keeper.run(), self._mind_daemon(), self._fence()):
            self.process.tasks.start(task, name="part")

    def _now(self) -> float:
        return self.machine.clock.boottime()

    def _told(self, life: int, past: Past) -> None:
        files = self.machine.run_files
        files.life, files.settled, files.others = life, past.life, past.others

    # ------------------------------------------------------------ the daemon

    async def _mind_daemon(self) -> None:
        """What has ended is started again, but for a kill."""
        while True:
            daemon = self.machine.daemon
            if not self._daemon_held and (daemon is None or daemon.process.dead):
                self.machine.run_files.beat_s = None
                self.machine.daemon = daemon = self._make_daemon()
                daemon.start()
            await self.process.clock.sleep(_RESTART_S)

    # ------------------------------------------------------------ the fence

    async def _fence(self) -> None:
        while True:
            pause_s = await self._turn()
            await self.process.clock.sleep(max(_LEAST_WAIT_S, pause_s))

    async def _turn(self) -> float:
        view = self._view()
        if self._state.frozen_s is None and self.machine.frozen:
            self._state = fence.after(self._state, Freeze("the warden froze it"), view.now, self._now())
            self.keeper.look_again()
        self._state = fence.observe(self._state, self._timings, view)
        self.machine.run_files.standing_s = fence.stands_from(self._state, view)
        action = fence.decide(self._state, self._timings, view)
        if isinstance(action, Rest):
            return action.until - self._now()
        began = self._now()
        await self._perform(action)
        self._state = fence.after(self._state, action, began, self._now())
        return 0.0

    def _view(self) -> View:
        files, daemon = self.machine.run_files, self.machine.daemon
        seen = DaemonView()
        if daemon is not None and not daemon.process.dead and not self._daemon_held:
            seen = DaemonView(daemon.number, files.beat_s)
        return View(self._now(), self.keeper.view(), self.keeper.others, self._round_s, seen)

    async def _perform(self, action: Action) -> None:
        clock, rng = self.process.clock, self.machine.rng
        if isinstance(action, AskPeers):
            self._ask_peers()
        elif isinstance(action, Freeze):
            await clock.sleep(rng.uniform(0, _FREEZE_TAKES_S))
            self.machine.freeze()
            self.keeper.look_again()
        elif isinstance(action, Thaw):
            self.machine.thaw()
        elif isinstance(action, Kill):
            self._daemon_held = True
            if self.machine.daemon is not None:
                await self.machine.daemon.process.kill()
            await clock.sleep(rng.uniform(0, _KILL_TAKES_S))
            self.machine.kill_all()
            self.keeper.nothing_runs(action.why if action.prove else "")
            self._daemon_held = False

    # ------------------------------------------------------------ failsafe

    def _ask_peers(self) -> None:
        others = self.keeper.others
        if others and not self._asking:
            self._asking = True
            self.process.tasks.start(self._round(sorted(others)), name="round")

    async def _round(self, others: list[str]) -> None:
        begun = self._now()
        try:
            said = await asyncio.gather(*(self._hear(name) for name in others))
            if all(said):
                self._round_s = begun
        finally:
            self._asking = False

    async def _hear(self, name: str) -> bool:
        """Whether that node says that it has no engine."""
        source = self.machine.name, self.process
        try:
            return await self._links.ask(source, name, lambda: self._answer_of(name), self._timings.failsafe_round_s, once=True)
        except PrimordiaError:
            return False

    async def _answer_of(self, name: str) -> bool:
        other = self._find(name)
        if other is None:
            raise TemporaryError(f"{name} refuses connections.", reason="NodeUnreachable")
        await other.process.passes()
        return bool(other.keeper.view().trouble)


class SimWarden:
    """The one that watches over the fence of a machine, for one boot."""

    def __init__(self, machine: Machine) -> None:
        self.process = Process(f"{machine.name}/warden", machine.clock, random.Random(machine.rng.getrandbits(64)))
        self._machine = machine

    def start(self) -> None:
        """Begin."""
        self.process.tasks.start(self._watch(), name="watch")

    async def _watch(self) -> None:
        machine, clock = self._machine, self.process.clock
        while True:
            until = machine.run_files.standing_s
            left_s = _WARDEN_SLEEPS_S if until is None else until - clock.boottime()
            if left_s > 0:
                await clock.sleep(min(left_s, _WARDEN_SLEEPS_S))
                continue
            if machine.vms and not machine.frozen:
                await clock.sleep(machine.rng.uniform(0, _FREEZE_TAKES_S))
                machine.freeze()
            await clock.sleep(_FREEZE_AGAIN_S)

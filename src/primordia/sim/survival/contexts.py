"""What a simulated daemon does about contexts: it starts, adopts and stops microVMs as it is told, and tells how they are.

It believes its cache, which may be late. Before each start it asks the real guard, and takes the disk from the real keeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import msgspec

from primordia.control.blueprint import CONTEXT_FINALIZER
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.node.live import Live
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.registry.ownership import StartGuard
from primordia.registry.registry import Registry
from primordia.sim import counting
from primordia.sim.survival.guest import enter, live_of
from primordia.sim.survival.machine import Machine, Vm
from primordia.sim.survival.process import Process
from primordia.wire.resources import Context, ContextStatus

BY_NODE = "node"
_RETRY_S = 1.0
_START_S = (0.2, 2.0)
_STOP_S = (0.05, 1.0)


class SimContexts:
    """One daemon's. The microVMs are the machine's, and outlive it."""

    def __init__(
        self,
        machine: Machine,
        process: Process,
        registry: Registry,
        informers: Informers,
        guard: StartGuard,
        keeper: VolumeKeeper,
        rng: random.Random,
    ) -> None:
        self._machine = machine
        self._process = process
        self._clock = process.clock
        self._registry = registry
        self._contexts = informers.of(Context)
        self._contexts.index(BY_NODE, lambda context: context.spec.node)
        self._guard = guard
        self._keeper = keeper
        self._rng = rng
        self._lives: dict[str, Live] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Adopt what runs, then serve until cancelled."""
        await self._contexts.synced()
        self._contexts.subscribe(self._on_context)
        while True:
            self._wake.clear()
            await wait_event(self._clock, self._wake, await self._look())

    def _on_context(self, change: Change[Context]) -> None:
        if any(each is not None and each.spec.node == self._machine.name for each in (change.old, change.new)):
            self._wake.set()

    # ------------------------------------------------------------ one look

    async def _look(self) -> float | None:
        """Take every context one step further; the seconds until something is due, if anything is."""
        due: list[float] = []
        bound = {context.metadata.uid: context for context in self._contexts.by_index(BY_NODE, self._machine.name)}
        for uid in [uid for uid in self._machine.vms if uid not in bound]:
            self._machine.end_vm(uid)
        for uid in [uid for uid in self._lives if uid not in bound]:
            self._keeper.leave(self._lives.pop(uid))
        for context in bound.values():
            try:
                again_s = await self._serve(context)
            except PrimordiaError:
                again_s = self._clock.boottime() + _RETRY_S
            if again_s is not None:
                due.append(again_s)
        return max(0.001, min(due) - self._clock.boottime()) if due else None

    async def _serve(self, context: Context) -> float | None:
        """The next step for one context; when to come again, if not by a change. Raises PrimordiaError."""
        await self._process.passes()
        uid = context.metadata.uid
        live = self._known(context)
        if context.metadata.deletion_timestamp is not None:
            if self._stopped(live):
                await self._let_go(context)
                return None
        elif context.spec.wanted == "Stopped":
            if self._stopped(live):
                await self._tell(context, "Stopped")
                return None
        else:
            return await self._keep_running(context, live)
        return self._machine.vms[uid].stops_s

    def _known(self, context: Context) -> Live:
        """What is held of it; its microVM is adopted if there is one."""
        live = self._lives.get(context.metadata.uid)
        if live is None:
            live = self._lives[context.metadata.uid] = live_of(context, self._process)
        live.context = context
        vm = self._machine.vms.get(context.metadata.uid)
        if vm is None:
            live.machine = live.guest = None
        elif live.machine is None:
            enter(live, self._machine, vm, self._process)
        self._keeper.enter(live)
        return live

    async def _keep_running(self, context: Context, live: Live) -> float | None:
        print_, now_s = repr((context.spec.template, context.spec.epoch)), self._clock.boottime()
        vm = self._machine.vms.get(context.metadata.uid)
        if vm is None:
            vm = await self._start(context, live, print_)
        if vm.stops_s is not None or vm.print != print_:
            return now_s if self._stopped(live) else vm.stops_s
        if now_s < vm.runs_s:
            await self._tell(context, "Booting")
            return vm.runs_s
        await self._tell(context, "Running")
        return None

    async def _start(self, context: Context, live: Live, print_: str) -> Vm:
        spec = context.spec
        async with contextlib.AsyncExitStack() as stack:
            if spec.volume_uid:
                await stack.enter_async_context(self._keeper.disk_for(live))
            await self._guard.permit(spec.lifeform_uid, spec.epoch)
            # What was permitted is done a moment later, whatever has become true meanwhile.
            await self._clock.sleep(self._rng.uniform(0.001, 0.05))
            await self._process.passes()
            size = counting.of_template(spec.template)
            runs_s = self._clock.boottime() + self._rng.uniform(*_START_S)
            uid, lifeform = context.metadata.uid, spec.lifeform_uid
            vm = Vm(uid, lifeform, spec.template.name, spec.epoch, print_, size, runs_s, spec.volume_uid)
            self._machine.start_vm(vm)
            enter(live, self._machine, vm, self._process)
            return vm

    def _stopped(self, live: Live) -> bool:
        """Whether there is no microVM; begins to stop one that is there."""
        vm, now_s = self._machine.vms.get(live.uid), self._clock.boottime()
        if vm is None:
            return True
        if vm.stops_s is None:
            vm.stops_s = now_s + self._rng.uniform(*_STOP_S)
        if now_s < vm.stops_s:
            return False
        self._machine.end_vm(live.uid)
        live.machine = live.guest = None
        return True

    # ------------------------------------------------------------ telling

    async def _tell(self, context: Context, phase: str) -> None:
        generation = context.metadata.generation
        status = ContextStatus(phase=phase, ready=phase == "Running", observed_generation=generation)
        if context.status == status:
            return

        def told(stored: Context) -> Context | None:
            mine = (stored.metadata.uid, stored.spec.node) == (context.metadata.uid, self._machine.name)
            return msgspec.structs.replace(stored, status=status) if mine else None

        await self._registry.mutate(Context, context.metadata.name, context.metadata.namespace, told, status=True)

    async def _let_go(self, context: Context) -> None:
        def freed(stored: Context) -> Context | None:
            meta = stored.metadata
            if meta.uid != context.metadata.uid or CONTEXT_FINALIZER not in meta.finalizers:
                return None
            return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(meta, finalizers=()))

        await self._registry.mutate(Context, context.metadata.name, context.metadata.namespace, freed)

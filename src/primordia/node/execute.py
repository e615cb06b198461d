"""Carries out what was decided about a context. Each action may be cut off anywhere and be decided on again."""

from __future__ import annotations

import contextlib
import logging
import shutil

import msgspec

from primordia.domain.contexts import Action, Attach, Close, Discard, Finish, Remove, Rest, Start, Stop
from primordia.kit.deadline import within
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.node.guests import GuestLinks
from primordia.node.live import Live
from primordia.node.machines import Machines
from primordia.node.records import Memory
from primordia.node.services import Services
from primordia.node.starting import Starter
from primordia.ports.guest import Guest, GuestError
from primordia.wire.resources import Context

log = logging.getLogger(__name__)

FINALIZER = "primordia.dev/node"
_LAST_CALL_S = 5.0


class Executor:
    """The hands of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.links = GuestLinks(services)
        self.machines = Machines(services, self.links)
        self._starter = Starter(services, self.machines, self.links)

    async def do(self, live: Live, action: Action) -> None:
        """Carry one action out. Raises PrimordiaError."""
        if isinstance(action, Start):
            await self._starter.start(live, action)
        elif isinstance(action, Attach):
            await self._attach(live)
        elif isinstance(action, Finish):
            await self._finish(live)
        elif isinstance(action, Stop):
            await self._stop(live, action)
        elif isinstance(action, Discard):
            await self.machines.kill(live)
        elif isinstance(action, Close):
            await self.machines.record_stop(live, "Resumed")
        elif isinstance(action, Remove):
            await self._remove(live)
        else:
            assert isinstance(action, Rest)

    async def adopt(self, live: Live) -> None:
        """Find what an earlier daemon left running. Raises PrimordiaError when that cannot be told."""
        services = self._services
        uid = live.record.machine
        machine = await services.vmm.adopt(uid, services.paths.context_run(uid), uid)
        if machine is not None:
            log.info("%s: adopted, pid %d", live.title, machine.identity.pid)
            self.machines.hold(live, machine)
            await self._bind_again(live)
            if live.record.run is not None and live.record.run.memory == "keeping":
                await machine.resume()

    async def _bind_again(self, live: Live) -> None:
        """Whoever held the machine before may have bound it to another CPU time, or to none."""
        try:
            await self.machines.bind(live)
        except PrimordiaError as error:
            log.warning("%s: its CPU limit cannot be set: %s", live.title, error)

    async def _attach(self, live: Live) -> None:
        """Connect to the agent again, and to what its main program does. Returns when the microVM dies instead."""
        await self.links.disconnect(live)
        try:
            guest = await self.links.connect(live, None)
        except TimeoutError:
            return
        if not live.freezing:
            await self._let_go_on(live, guest)
        state = await self.links.ask_main(live, guest)
        live.main_status = state.status
        if state.phase == "none" and not live.is_fork:
            live.main = "none"
            return
        live.log.reopen()
        self.links.watch(live, guest)
        live.main = state.phase
        live.hosts_changed.set()

    async def _let_go_on(self, live: Live, guest: Guest) -> None:
        """Whoever held it before may have frozen its processes, for children, and not lived to thaw them."""
        services = self._services
        try:
            await within(services.clock, services.settings.call_deadline_s, guest.thaw())
        except GuestError as error:
            log.warning("%s: its processes cannot be told to go on: %s", live.title, error)

    async def _finish(self, live: Live) -> None:
        await self.machines.record_end(live)
        await self.machines.shut_down(live, 0.0)

    async def _stop(self, live: Live, action: Stop) -> None:
        run, services = live.record.run, self._services
        started = run is not None and run.phase == "running"
        memory, said = await self._keep(live) if started and action.keep_memory else ("", "")
        if memory == "kept":
            await self.machines.record_stop(live, action.next_because or "", memory, said)
            live.log.complete()
            await self.machines.kill(live)
            return
        if live.context is not None and started:
            services.events.record(live.context, "Stopping", f"It is shut down, for {action.reason}.")
        await self.machines.record_stop(live, action.next_because or "", memory, said)
        if started and live.guest is None:
            with contextlib.suppress(TimeoutError, PrimordiaError):
                await self.links.connect(live, _LAST_CALL_S)
        if started:
            await self.machines.shut_down(live, live.spec.termination_grace_period_seconds)
        else:
            await self.machines.kill(live)

    async def _keep(self, live: Live) -> tuple[Memory, str]:
        """Keep its memory; what became of that. A microVM whose memory was not kept runs as before."""
        services = self._services
        assert services.memories is not None
        await self.machines.record_memory(live, "keeping")
        try:
            if live.guest is None:
                with contextlib.suppress(TimeoutError):
                    await within(services.clock, services.settings.call_deadline_s, self._attach(live))
            said = await services.memories.keep(live)
        except (PrimordiaError, OSError) as error:
            why = error.message if isinstance(error, PrimordiaError) else f"{error.strerror or error}."
            log.warning("%s: its memory is not kept: %s", live.title, error)
            if live.context is not None:
                words = f"Its memory is not kept, and it will start from its disk: {why}"
                services.events.record(live.context, "MemoryNotKept", words, warning=True)
            return "not kept", why
        if live.context is not None:
            services.events.record(live.context, "MemoryKept", f"It stands: {said}")
        return "kept", said

    async def _remove(self, live: Live) -> None:
        """Every trace goes before the finalizer does, so that a context that is gone has left nothing."""
        services = self._services
        if services.volumes is not None and live.is_fork:
            await services.volumes.scratch.drop(live.uid)
        if services.memories is not None and not live.is_fork:
            await services.memories.forget(live.uid)
        await services.records.remove(live.uid)
        for uid in {live.uid, live.record.machine}:
            shutil.rmtree(services.paths.context_run(uid), ignore_errors=True)
        live.log.close()
        if live.context is None:
            return
        context, meta = live.context, live.context.metadata
        with contextlib.suppress(NotFoundError):
            await services.registry.mutate(Context, meta.name, meta.namespace, lambda stored: _freed(stored, context))


def _freed(stored: Context, ours: Context) -> Context | None:
    """The context without our finalizer; None when it has none, is another one of that name, or went to another node."""
    meta = stored.metadata
    if (meta.uid, stored.spec.node) != (ours.metadata.uid, ours.spec.node) or FINALIZER not in meta.finalizers:
        return None
    rest = tuple(each for each in meta.finalizers if each != FINALIZER)
    return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(meta, finalizers=rest))

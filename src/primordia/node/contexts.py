"""One worker for each context: observe, decide, execute, tell; again whenever something has changed.

The worker is the only one that changes its context's state, so nothing in it needs a lock. While an action is under way it
goes on listening: a wish that makes the action pointless breaks it off, which is the same to the state as a crash there,
and the next decision goes on from what is left.
"""

from __future__ import annotations

import asyncio
import logging

from primordia.domain.contexts import Action, Failure, Remove, Rest, Start, Stop, decide, still_wanted
from primordia.domain.restart import attempt_delay_s
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.node.execute import Executor
from primordia.node.live import Live
from primordia.node.observe import status_of
from primordia.node.program import fingerprint
from primordia.node.services import Services
from primordia.node.status import StatusWriter
from primordia.ports.store import StoreUnavailableError
from primordia.registry.ownership import StartDeniedError
from primordia.registry.rules import timestamp
from primordia.wire.resources import STARTING_PHASES

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0


class Worker:
    """Drives one context until it is removed."""

    def __init__(self, services: Services, executor: Executor, writer: StatusWriter, live: Live) -> None:
        self._services = services
        self._executor = executor
        self._writer = writer
        self.live = live
        self._troubles = 0
        self._holds = False

    def begin_holding(self) -> None:
        """The microVM is held already: nothing has to be adopted."""
        self._holds = True

    async def run(self) -> None:
        """Drive the context; returns when nothing of it is left here."""
        if not self._holds:
            await self._adopt()
        while True:
            live = self.live
            live.woken.clear()
            wish = live.wish()
            now = self._services.clock.boottime()
            action = decide(wish, live.seen(), now)
            self._tell(action)
            if isinstance(action, Rest):
                await wait_event(self._services.clock, live.woken, None if action.until is None else action.until - now)
                continue
            log.info("%s: %s, for %s", live.title, type(action).__name__, action.reason)
            done = await self._perform(action, wish.fingerprint)
            if done and isinstance(action, Remove) and live.wish().removed:
                return

    async def release(self) -> None:
        """The daemon ends, the microVM goes on: let go of all handles."""
        await self._executor.links.disconnect(self.live)
        await self.live.machine_tasks.close()
        self._executor.machines.release(self.live)

    async def shut_down(self) -> None:
        """The node goes down: end the guest in order, and let the next daemon start it again."""
        if self.live.machine is None:
            return
        try:
            await self._executor.do(self.live, Stop("NodeRestarted", "the node going down"))
        except (PrimordiaError, OSError) as error:
            log.warning("%s: it could not be shut down: %s", self.live.title, error)
            return
        self._tell(Rest("Pending", "NodeDown", "Its node was taken down."))

    # ------------------------------------------------------------ inside

    async def _adopt(self) -> None:
        """Nothing is decided before it is known whether a microVM runs."""
        while True:
            try:
                async with self._services.adopt_gate:
                    await self._executor.adopt(self.live)
                return
            except PrimordiaError as error:
                log.warning("%s: it cannot be told whether its microVM runs: %s", self.live.title, error)
                await self._rest_after_trouble()

    async def _perform(self, action: Action, wanted: str) -> bool:
        """Carry the action out, or break it off when the wish has changed; whether it was done."""
        work = asyncio.get_running_loop().create_task(self._executor.do(self.live, action), name=self.live.title)
        try:
            await self._accompany(work, action, wanted)
        except BaseException:
            await _end(work)
            raise
        if work.cancelled():
            return False
        error = work.exception()
        if error is None:
            self._troubles = 0
            if isinstance(action, Start):
                self.live.failure = None
            return True
        await self._note(action, error)
        return False

    async def _accompany(self, work: asyncio.Task[None], action: Action, wanted: str) -> None:
        """Wait for the work, tell its progress, and break it off when it is no longer wanted."""
        live = self.live
        while not work.done():
            listener = asyncio.get_running_loop().create_task(_wait(live.woken))
            try:
                await asyncio.wait({work, listener}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                listener.cancel()
            if work.done():
                return
            live.woken.clear()
            if not still_wanted(action, live.wish(), wanted):
                log.info("%s: %s is broken off", live.title, type(action).__name__)
                await _end(work)
                return
            self._tell(action)

    async def _note(self, action: Action, error: BaseException) -> None:
        """A failure becomes part of the state; one that is not ours to expect goes to the log with its trace."""
        live = self.live
        if not isinstance(error, PrimordiaError | OSError):
            log.error("%s: %s failed", live.title, type(action).__name__, exc_info=error)
        elif not isinstance(action, Start):
            log.warning("%s: %s has to be repeated: %s", live.title, type(action).__name__, error)
        if not isinstance(action, Start):
            await self._rest_after_trouble()
            return
        reason, message = _words(error)
        prints = fingerprint(live.spec)
        before = live.failure
        count = before.count + 1 if before is not None and before.fingerprint == prints else 1
        delay_s = attempt_delay_s(count)
        if isinstance(error, StartDeniedError | StoreUnavailableError):
            delay_s = error.retry_after_s  # it passes by itself, and then nobody should wait
        live.failure = Failure(prints, count, self._services.clock.boottime() + delay_s, reason, message)
        log.warning("%s: the start failed, again in %g s: %s", live.title, delay_s, message)
        if live.context is not None and reason != "ImagePullBackOff":
            self._services.events.record(live.context, reason, message, warning=True)

    async def _rest_after_trouble(self) -> None:
        self._troubles += 1
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(self._troubles - 1, 10))
        await wait_event(self._services.clock, self.live.woken, delay_s)

    def _tell(self, action: Action) -> None:
        """Put the status in the queue, when it differs from what the registry has."""
        live = self.live
        if live.context is None:
            return
        clock = self._services.clock
        before = live.context.status
        now = timestamp(clock.wall())
        status = status_of(live, action, before, now, clock.boottime())
        live.phase = status.phase
        if status == before:
            self._writer.drop(live.context)
        else:
            # How far a start has come is news only while it lasts; that it began is news, and others wait for its address.
            passing = status.phase in STARTING_PHASES and before.phase in STARTING_PHASES and status.ip == before.ip
            self._writer.put(live.context, status, passing=passing)


def _words(error: BaseException) -> tuple[str, str]:
    if isinstance(error, PrimordiaError):
        return error.reason, str(error)
    if isinstance(error, OSError):
        return "DiskPressure", f"{error.strerror or error}."
    return "InternalError", "The start failed for a reason that is a bug; the node's log has it."


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _end(work: asyncio.Task[None]) -> None:
    """Break the work off and wait until it has ended."""
    work.cancel()
    await asyncio.wait({work})

"""Handles of microVMs: held, watched, ended; and the record that goes before each step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import msgspec

from primordia.domain.restart import ends_in_a_row
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError
from primordia.kit.units import parse_milli_cpu
from primordia.node.guests import GuestLinks
from primordia.node.live import Live
from primordia.node.observe import EXIT_BY_MACHINE
from primordia.node.records import Memory, Record
from primordia.node.services import Services
from primordia.ports.vmm import Machine
from primordia.registry.rules import timestamp

log = logging.getLogger(__name__)

_LOG_DRAIN_S = 5.0
_CONSOLE_S = 5.0


class Machines:
    """Ends and watches what `Starter` began or an earlier daemon left."""

    def __init__(self, services: Services, links: GuestLinks) -> None:
        self._services = services
        self._links = links

    def hold(self, live: Live, machine: Machine, uid: str = "") -> None:
        """A microVM runs: watch for its end. `uid` is what it is called, where that is not what its record says."""
        live.machine = machine
        live.machine_uid = uid or live.record.machine
        live.exit = None
        live.died.clear()
        live.machine_tasks.start(self._watch(live, machine), name=live.title)

    async def bind(self, live: Live) -> None:
        """Bind the microVM to the CPU time that its spec names. Raises PrimordiaError when that cannot be done."""
        if live.machine is not None:
            await live.machine.limit_cpu(parse_milli_cpu(live.record.spec.template.resources.cpu))

    async def write(self, live: Live, record: Record) -> None:
        """Make a record durable, then believe it."""
        await self._services.records.save(record)
        live.record = record

    async def console(self, live: Live) -> str:
        """The guest's last words; empty when there are none."""
        if live.machine is None:
            return ""
        with contextlib.suppress(PrimordiaError, TimeoutError, OSError):
            return (await within(self._services.clock, _CONSOLE_S, live.machine.console())).strip()
        return ""

    async def kill(self, live: Live) -> None:
        """End the microVM now, let go of it, and free its scratch disk: the next run gets a new one."""
        machine = live.machine
        await self._links.disconnect(live)
        if machine is not None:
            await machine.kill()
        await live.machine_tasks.close()
        live.machine = None
        with contextlib.suppress(OSError):
            scratch_of(self._services, live).unlink(missing_ok=True)
            (self._services.paths.pool / f"{live.machine_uid}.ext4").unlink(missing_ok=True)
        if live.machine_uid != live.uid:
            self._services.addresses.free(live.machine_uid)

    async def shut_down(self, live: Live, grace_s: float) -> None:
        """Ask the guest to end in order, wait that long, then kill what is left."""
        machine, guest = live.machine, live.guest
        if machine is not None and guest is not None:
            clock, margin_s = self._services.clock, self._services.settings.shutdown_margin_s
            try:
                await within(clock, margin_s, guest.shutdown(grace_s))
                await within(clock, grace_s + margin_s, live.died.wait())
            except TimeoutError:
                log.info("%s: the guest did not end within its grace", live.title)
            except PrimordiaError as error:
                log.info("%s: the guest cannot be asked to end: %s", live.title, error)
        await self.drain_log(live)
        await self.kill(live)

    async def drain_log(self, live: Live) -> None:
        """Let the log take the program's last bytes."""
        task = live.log_task
        if task is not None and not task.done():
            with contextlib.suppress(TimeoutError):
                await within(self._services.clock, _LOG_DRAIN_S, _done(task))
        live.log.complete()

    async def record_end(self, live: Live) -> None:
        """Record how the run ended, as far as it is known, before the rest of its microVM goes."""
        run, services = live.record.run, self._services
        if run is None or run.phase in ("ended", "stopped"):
            return
        status = live.main_status
        now_s = services.clock.boottime()
        ran_s = now_s - run.started_s if run.boot_id == live.boot_id else 0.0
        if status is not None:
            code, reason = status.code, "Completed" if status.code == 0 else "Error"
            message = status.error or (f"Killed by signal {status.signal}." if status.signal else f"Exit code {status.code}.")
        else:
            code, reason, message = None, EXIT_BY_MACHINE, self._machine_end(live, run.boot_id)
        ended = msgspec.structs.replace(
            run,
            phase="ended",
            boot_id=live.boot_id,
            exit_code=code,
            ends=ends_in_a_row(run.ends, ran_s),
            ended_s=now_s,
            ended_at=timestamp(services.clock.wall()),
            end_reason=reason,
            end_message=message,
        )
        await self.write(live, msgspec.structs.replace(live.record, run=ended))
        if live.context is not None:
            services.events.record(live.context, "Exited" if status else reason, message, warning=code != 0)

    async def record_memory(self, live: Live, memory: Memory, said: str = "") -> None:
        """Record what becomes of the context's memory."""
        assert live.record.run is not None
        run = msgspec.structs.replace(live.record.run, memory=memory, memory_said=said)
        await self.write(live, msgspec.structs.replace(live.record, run=run))

    async def record_stop(self, live: Live, next_because: str, memory: Memory = "", said: str = "") -> None:
        """Record that the run is over by wish, and what became of its memory."""
        run = live.record.run
        if run is None or run.phase == "stopped":
            return
        over_by_itself = run.phase == "ended"
        stopped = msgspec.structs.replace(
            run,
            phase="stopped",
            next_because=next_because,
            ends=0,
            memory=memory,
            memory_said=said,
            ended_at=run.ended_at if over_by_itself else timestamp(self._services.clock.wall()),
        )
        await self.write(live, msgspec.structs.replace(live.record, run=stopped))

    def release(self, live: Live) -> None:
        """Let go of the microVM without stopping it."""
        if live.machine is not None:
            live.machine.release()
            live.machine = None

    # ------------------------------------------------------------ inside

    def _machine_end(self, live: Live, boot_id: str) -> str:
        if boot_id != live.boot_id:
            return "The machine restarted under it."
        if live.exit is None:
            return "The microVM was gone when the daemon came back."
        words = {
            "shutdown": "The guest shut itself down",
            "killed": "The microVM was killed",
            "crashed": "The microVM crashed",
            "lost": "The microVM was lost",
        }[live.exit.cause]
        return f"{words}: {live.exit.detail}" if live.exit.detail else f"{words}."

    async def _watch(self, live: Live, machine: Machine) -> None:
        ended = await machine.wait()
        if live.machine is machine:
            log.info("%s: the microVM ended: %s %s", live.title, ended.cause, ended.detail)
            live.exit = ended
            live.machine = None
            live.died.set()
            live.wake()


def scratch_of(services: Services, live: Live) -> Path:
    """Where the context's scratch disk lies."""
    return services.records.folder(live.uid) / "scratch.ext4"


async def _done(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})

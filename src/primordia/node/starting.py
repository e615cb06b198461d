"""A start: everything from the image to a running main program, in the order that a crash between any two steps forgives.

The record says "starting" before anything exists that could be left behind, and "running" only when the program runs. What
fails on the way is undone here and told as one error with a reason; the caller decides when to try again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec

from primordia.domain.addresses import mac_of, owner_id_of
from primordia.domain.contexts import Start
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.kit.units import parse_bytes, parse_milli_cpu
from primordia.node.guests import GuestLinks
from primordia.node.live import Live
from primordia.node.machines import Machines, scratch_of
from primordia.node.preparing import StartError, check_disk, check_memory, data_drive, image_root, secret_files
from primordia.node.program import filesystem_of, fingerprint, initramfs_of, mounts_of, program_of
from primordia.node.records import RunRecord
from primordia.node.services import Services, Way
from primordia.ports.guest import (
    ExitStatus,
    Guest,
    GuestConfig,
    GuestError,
    GuestGoneError,
    GuestNetwork,
    Program,
    SecretFile,
)
from primordia.ports.images import RootImage
from primordia.ports.vmm import Drive, MachineSpec, Nic
from primordia.registry.rules import timestamp
from primordia.wire.resources import Context

log = logging.getLogger(__name__)

_EXIT_NOT_FOUND = 127
_EXIT_NOT_RUNNABLE = 126
_CONSOLE_TAIL = 600


def _of_way(way: Way | None) -> dict[str, Any]:
    """What a run's record says of how it came to be."""
    if way is None:
        return {"machine": "", "slot": "", "frozen": "", "started_from": "boot"}
    return {
        "machine": way.machine,
        "slot": way.slot,
        "frozen": way.frozen,
        "started_from": "memory" if way.goes_on else "warm" if way.warm else "cold",
    }


def _of_memory(before: RunRecord | None) -> dict[str, Any]:
    """What a new run's record says of the memory that was kept of the last: until it is used, or not, in this start."""
    if before is None or before.phase not in ("stopped", "starting") or before.memory not in ("kept", "lost"):
        return {}
    return {"memory": before.memory, "memory_said": before.memory_said}


class Starter:
    """Starts contexts."""

    def __init__(self, services: Services, machines: Machines, links: GuestLinks) -> None:
        self._services = services
        self._machines = machines
        self._links = links

    async def start(self, live: Live, action: Start) -> None:
        """Start the context's microVM and main program. Raises PrimordiaError; nothing runs then.

        A program that the guest has not, or cannot run, is no failed start but a run that ended at once (127 or 126).
        """
        context = live.context
        if context is None:
            raise StartError("The context is not in the registry.")
        self._services.give_address(live)
        check_disk(self._services)
        root = await image_root(self._services, live, context)
        program = program_of(context.spec.template, root.config)
        files = await secret_files(self._services, context)
        async with data_drive(self._services, live), self._services.start_gate:
            check_memory(self._services, context)
            if self._services.start_guard is not None:
                await self._services.start_guard.permit(context.spec.lifeform_uid, context.spec.epoch)
            forks = self._services.fork_starts
            way = await self._way(live, context, root)
            await self._begin_record(live, context, action, root, program, way)
            begin_s = self._services.clock.boottime()
            try:
                forked = way is not None and await self._fork(live, context, way, files)
                if not forked:
                    await self._start_machine(live, context, root)
                    await self._boot(live, context, files, begin_s)
                    if forks is not None:
                        forks.booted(context, root)
                if forked and way is not None and way.goes_on:
                    await self._go_on(live, context, begin_s)
                else:
                    await self._run_main(live, context, program, begin_s)
            except BaseException:
                # A start that is broken off keeps its machine: the next decision sees it and discards it.
                live.progress = ""
                raise

    async def _way(self, live: Live, context: Context, root: RootImage) -> Way | None:
        """From the memory that was kept of it, else as any other start, which is told then; None: it boots."""
        forks, run = self._services.fork_starts, live.record.run
        if forks is None:
            return None
        if run is not None and run.memory == "kept":
            way = await forks.way_on(live, root)
            if isinstance(way, Way):
                return way
            await self._memory_lost(live, context, way)
        return await forks.way(live, context, root)

    async def _memory_lost(self, live: Live, context: Context, why: str) -> None:
        words = f"It starts from its disk, for {why}."
        await self._machines.record_memory(live, "lost", words)
        self._services.events.record(context, "StartsFromDisk", words, warning=True)

    # ------------------------------------------------------------ the record

    async def _begin_record(
        self, live: Live, context: Context, action: Start, root: RootImage, program: Program, way: Way | None
    ) -> None:
        services, before, spec = self._services, live.record.run, context.spec
        again = action.because in ("Restarted", "NodeRestarted") and (before is None or before.phase != "starting")
        goes_on = way is not None and way.goes_on
        if before is not None and before.machine not in ("", live.uid):
            services.addresses.free(before.machine)  # that of a fork that a daemon did not live to make
        run = RunRecord(
            number=(before.number if before is not None else 0) + (not goes_on),
            fingerprint=fingerprint(spec),
            phase="starting",
            because=action.because,
            boot_id=live.boot_id,
            ends=before.ends if before is not None and action.because == "Restarted" else 0,
            started_s=services.clock.boottime(),
            started_at=timestamp(services.clock.wall()),
            image_digest=root.digest,
            program=program,
            **_of_memory(before),
            **_of_way(way),
        )
        restarts = live.record.restarts + again
        await self._machines.write(live, msgspec.structs.replace(live.record, spec=spec, run=run, restarts=restarts))
        if goes_on:
            live.log.reopen()
        else:
            live.log.begin(run.number)
        live.main = live.main_status = live.exit = live.readiness = None
        live.confirmed = ()

    # ------------------------------------------------------------ the machine

    async def _fork(self, live: Live, context: Context, way: Way, files: tuple[SecretFile, ...]) -> bool:
        """Bring the microVM up as a fork; whether that was done. If not, nothing of it is left, and it has to boot."""
        forks = self._services.fork_starts
        assert forks is not None
        try:
            await forks.bring_up(live, way, files)
        except (PrimordiaError, OSError) as error:
            log.warning("%s: it boots, for no fork could be made: %s", live.title, error)
            if way.goes_on:
                await self._memory_lost(live, context, f"it could not go on from its memory: {error}".rstrip("."))
            else:
                self._services.events.record(
                    context, "ForkFailed", f"It boots, for no fork could be made: {error}", warning=True
                )
        else:
            return True
        await self._machines.kill(live)
        assert live.record.run is not None
        run = msgspec.structs.replace(live.record.run, **_of_way(None))
        if way.goes_on:
            run = msgspec.structs.replace(run, number=run.number + 1)
            live.log.begin(run.number)
        await self._machines.write(live, msgspec.structs.replace(live.record, run=run))
        live.exit = None
        return False

    async def _start_machine(self, live: Live, context: Context, root: RootImage) -> None:
        services, record = self._services, live.record
        resources = context.spec.template.resources
        scratch = scratch_of(services, live)
        scratch.unlink(missing_ok=True)
        await services.images.scratch(scratch, services.settings.scratch_bytes)
        mac = mac_of(record.address)
        owner = owner_id_of(record.address, services.config.soup_pod_cidr)
        tap = await services.network.open_tap(live.uid, record.address, mac)
        try:
            spec = MachineSpec(
                uid=live.uid,
                run_dir=services.paths.context_run(live.uid),
                cpu_milli=parse_milli_cpu(resources.cpu),
                memory_bytes=parse_bytes(resources.memory),
                kernel=Path(services.config.tools.kernel),
                initramfs=initramfs_of(services.config.tools, filesystem_of(context.spec)),
                drives=(
                    Drive("root", root.path, read_only=True),
                    Drive("scratch", scratch),
                    *((live.data,) if live.data is not None else ()),
                ),
                owner_id=owner,
                cgroup=live.uid,
                nic=Nic(tap.fd, mac),
            )
            self._machines.hold(live, await services.vmm.start(spec))
        finally:
            with contextlib.suppress(OSError):
                os.close(tap.fd)
        live.wake()

    async def _boot(self, live: Live, context: Context, files: tuple[SecretFile, ...], begin_s: float) -> None:
        """From the VMM's start to a guest that knows who it is."""
        services = self._services
        left_s = services.settings.boot_deadline_s - (services.clock.boottime() - begin_s)
        services.network_keeper.changed()
        try:
            guest = await self._links.connect(live, left_s)
            await within(services.clock, services.settings.call_deadline_s, self._configure(live, context, guest, files))
        except (TimeoutError, PrimordiaError) as error:
            raise await self._boot_error(live, error) from error

    async def _run_main(self, live: Live, context: Context, program: Program, begin_s: float) -> None:
        """Start the main program, behind a network that knows the context."""
        services = self._services
        try:
            await within(services.clock, services.settings.call_deadline_s, services.network_keeper.settled())
            guest = live.guest
            if guest is None:
                raise GuestGoneError("The link to the guest's agent broke.")
            await within(services.clock, services.settings.call_deadline_s, guest.start_main(program))
            # Before the record says "running": a start that is cut off here is thrown away, so no machine stays unbound.
            await self._machines.bind(live)
        except GuestError as error:
            await self._not_started(live, program, error)
            return
        except (TimeoutError, PrimordiaError) as error:
            raise await self._boot_error(live, error) from error
        boot_ms = round((services.clock.boottime() - begin_s) * 1000, 1)
        assert live.record.run is not None
        run = msgspec.structs.replace(live.record.run, phase="running", boot_ms=boot_ms, confirmed=live.confirmed)
        await self._machines.write(live, msgspec.structs.replace(live.record, run=run))
        live.main = "running"
        self._links.watch(live, guest, live.told)
        services.events.record(context, "Started", f"Running {program.argv[0]}, started because {run.because}.")

    async def _go_on(self, live: Live, context: Context, begin_s: float) -> None:
        """Its program runs already, in the memory that was kept of it."""
        services = self._services
        try:
            guest = live.guest
            if guest is None:
                raise GuestGoneError("The link to the guest's agent broke.")
            state = await self._links.ask_main(live, guest)
            await self._machines.bind(live)
        except (TimeoutError, PrimordiaError) as error:
            raise await self._boot_error(live, error) from error
        boot_ms = round((services.clock.boottime() - begin_s) * 1000, 1)
        said = "It goes on from the memory that was kept of it."
        assert live.record.run is not None
        run = msgspec.structs.replace(
            live.record.run, phase="running", boot_ms=boot_ms, confirmed=live.confirmed, memory="resumed", memory_said=said
        )
        await self._machines.write(live, msgspec.structs.replace(live.record, run=run))
        live.main, live.main_status = state.phase, state.status
        self._links.watch(live, guest, live.told)
        services.events.record(context, "ResumedFromMemory", said)

    async def _configure(self, live: Live, context: Context, guest: Guest, files: tuple[SecretFile, ...]) -> None:
        services, spec, meta = self._services, context.spec, context.metadata
        domain = services.config.domain
        live.told = dict(live.peers)
        config = GuestConfig(
            hostname=f"{spec.lifeform}-{spec.template.name}"[:63].rstrip("-"),
            machine_id=live.uid.replace("-", ""),
            root="root",
            scratch="scratch",
            wall_ns=int(services.clock.wall().timestamp() * 1e9),
            entropy=secrets.token_bytes(64),
            network=GuestNetwork(
                address=live.record.address,
                mac=mac_of(live.record.address),
                gateway=services.network.GATEWAY,
                gateway_mac=services.network.GATEWAY_MAC,
            ),
            hosts=live.told,
            search=(f"{spec.lifeform}.{meta.namespace}.{domain}", f"{meta.namespace}.{domain}", domain),
            secrets=files,
            mounts=mounts_of(spec),
        )
        try:
            await guest.configure(config)
        except GuestError as error:
            raise StartError(f"The guest could not be set up: {error.message}", reason="ConfigureFailed") from error

    # ------------------------------------------------------------ what goes wrong

    async def _not_started(self, live: Live, program: Program, error: GuestError) -> None:
        """The guest has not got the program, or cannot run it: the run is over."""
        code = _EXIT_NOT_FOUND if error.reason == "ENOENT" else _EXIT_NOT_RUNNABLE
        live.main = "ended"
        live.main_status = ExitStatus(code, error=f"{program.argv[0]} cannot be started: {error.message}")
        assert live.record.run is not None
        run = msgspec.structs.replace(live.record.run, phase="running")
        await self._machines.write(live, msgspec.structs.replace(live.record, run=run))

    async def _boot_error(self, live: Live, error: BaseException) -> PrimordiaError:
        """The failure in words, with the guest's last ones; nothing of the microVM is left."""
        if isinstance(error, StartError):
            await self._machines.kill(live)
            return error
        console = await self._machines.console(live)
        how = live.exit.detail if live.exit is not None else ""
        await self._machines.kill(live)
        said = f" Its console ended with: {console[-_CONSOLE_TAIL:]}" if console else ""
        if isinstance(error, TemporaryError | TimeoutError) or not isinstance(error, PrimordiaError):
            deadline_s = self._services.settings.boot_deadline_s
            what = how or f"its agent did not answer within {deadline_s:g} s"
            return StartError(f"The microVM did not come up: {what}.{said}", reason="BootFailed")
        return StartError(f"The microVM did not come up: {error.message}{said}", reason="BootFailed")

"""The link to the agent of a running microVM: made, watched, made again; and what runs over it all the time.

While the link stands, tasks of its own follow the log, wait for the main program's end, probe readiness and push the
names of peers. When it breaks they end, the context is woken, and the next decision makes it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from primordia.domain.probes import Readiness
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.node.guest_api import GuestApi, Self, Sync
from primordia.node.live import Live
from primordia.node.probes import Target
from primordia.node.services import Services
from primordia.ports.guest import Guest, GuestGoneError, MainState
from primordia.ports.vmm import Machine
from primordia.wire.data import SyncResult
from primordia.wire.resources import Probe

log = logging.getLogger(__name__)


class GuestLinks:
    """Makes and watches the links of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def connect(self, live: Live, deadline_s: float | None) -> Guest:
        """Connect to the agent, trying again while it does not answer.

        Raises TimeoutError at the deadline (None: no deadline), and ends with PrimordiaError when the microVM dies.
        """
        settings, clock = self._services.settings, self._services.clock
        end_s = None if deadline_s is None else clock.boottime() + deadline_s
        delay_s = settings.reconnect_first_s
        while (machine := live.machine) is not None and not live.died.is_set():
            left_s = settings.greeting_s if end_s is None else min(settings.greeting_s, end_s - clock.boottime())
            if left_s <= 0:
                break
            try:
                guest = await within(clock, left_s, self._connect_or_die(live, machine))
            except (PrimordiaError, TimeoutError, OSError) as error:
                log.debug("%s: no link to the guest yet: %s", live.title, error)
                await clock.sleep(delay_s)
                delay_s = min(settings.reconnect_longest_s, delay_s * 2)
                continue
            self.serve(live, guest)
            return guest
        raise TimeoutError("the agent did not answer")

    async def ask_main(self, live: Live, guest: Guest) -> MainState:
        """What the main program does. Raises GuestGoneError, GuestError, TimeoutError."""
        return await within(self._services.clock, self._services.settings.call_deadline_s, guest.main_state())

    def watch(self, live: Live, guest: Guest, told: Mapping[str, str] | None = None) -> None:
        """The main program runs: follow everything about it. `told` are the names of peers that it has been given just now."""
        tasks = live.guest_tasks
        tasks.start(self._watch_link(live, guest), name="link")
        tasks.start(self._watch_main(live, guest), name="main")
        live.log_task = tasks.start(self._follow_log(live, guest), name="log")
        tasks.start(self._push_hosts(live, guest, told), name="hosts")
        tasks.start(self._probe(live, guest), name="probe")

    async def disconnect(self, live: Live) -> None:
        """Drop the link and everything that runs over it; the guest goes on."""
        guest, live.guest = live.guest, None
        live.main = None
        await live.guest_tasks.close()
        live.log_task = None
        if guest is not None:
            await guest.close()

    # ------------------------------------------------------------ inside

    async def _connect_or_die(self, live: Live, machine: Machine) -> Guest:
        """Connect and keep the link in `live` at once; a microVM that dies meanwhile ends the wait."""
        attempt = asyncio.ensure_future(self._services.connect(machine))
        death = asyncio.ensure_future(live.died.wait())
        try:
            await asyncio.wait({attempt, death}, return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done():
                raise GuestGoneError("The microVM ended.")
            live.guest = attempt.result()
            return live.guest
        except BaseException:
            await _abandon(attempt)
            raise
        finally:
            death.cancel()

    def serve(self, live: Live, guest: Guest) -> None:
        """Answer the streams that the guest opens."""
        api = GuestApi(lambda: self._describe(live), self._services.clock, self._sync_of(live))
        guest.on_stream("api", api.serve)
        if self._services.names is not None:
            guest.on_stream("dns", self._services.names(live))

    def _sync_of(self, live: Live) -> Sync | None:
        """How the context's data is synced; None where it has none, or nobody copies it."""
        volumes, sync, uid = self._services.volumes, self._services.sync, live.spec.volume_uid
        if volumes is None or sync is None or not uid:
            return None

        async def sync_it(timeout_s: float) -> SyncResult:
            owned = volumes.owned.get(uid)
            if owned is None:
                raise TemporaryError("This node does not own the data now.", reason="NotOwner")
            return await sync(owned, timeout_s)

        return sync_it

    def _describe(self, live: Live) -> Self:
        record, config = live.record, self._services.config
        spec = live.spec
        recovered = live.spec.recovered
        parts = recovered.volumes if recovered is not None else ()
        mine = next((each for each in parts if each.name == spec.volume), None)
        return Self(
            name=spec.lifeform or record.name,
            namespace=record.namespace,
            uid=record.uid,
            context=spec.template.name,
            epoch=spec.epoch,
            node=config.name,
            rack=config.rack,
            segment=config.segment,
            started_because=record.run.because if record.run is not None else "",
            address=record.address,
            restored_from=mine.restored_from if mine is not None else None,
            lost_seconds=mine.lost_seconds if mine is not None else None,
        )

    async def _watch_link(self, live: Live, guest: Guest) -> None:
        await guest.closed()
        if live.guest is guest:
            log.info("%s: the link to the guest broke", live.title)
            live.guest = None
            live.main = None
            live.wake()

    async def _watch_main(self, live: Live, guest: Guest) -> None:
        try:
            status = await guest.wait_main()
        except PrimordiaError as error:
            log.debug("%s: the main program is out of sight: %s", live.title, error)
            await guest.close()
            return
        if live.guest is guest:
            live.main, live.main_status = "ended", status
            live.wake()

    async def _follow_log(self, live: Live, guest: Guest) -> None:
        try:
            await live.log.follow(guest)
        except PrimordiaError as error:
            log.debug("%s: the log stops: %s", live.title, error)

    async def _push_hosts(self, live: Live, guest: Guest, told: Mapping[str, str] | None) -> None:
        """Give the guest the names of its peers whenever they change."""
        pushed = told
        while True:
            live.hosts_changed.clear()
            if live.peers != pushed:
                wanted = dict(live.peers)
                try:
                    await within(self._services.clock, self._services.settings.call_deadline_s, guest.set_hosts(wanted))
                except (PrimordiaError, TimeoutError) as error:
                    log.warning("%s: its names could not be renewed: %s", live.title, error)
                    return
                pushed = wanted
            await live.hosts_changed.wait()

    async def _probe(self, live: Live, guest: Guest) -> None:
        """Probe as the spec says, anew whenever it says otherwise."""
        while True:
            live.spec_changed.clear()
            probe = live.spec.template.readiness_probe
            live.readiness = None if probe is None else live.readiness or Readiness()
            live.wake()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self._probe_with(live, probe, Target(live.record.address, guest, live.program)))
                while live.spec.template.readiness_probe == probe:
                    live.spec_changed.clear()
                    await live.spec_changed.wait()
                task.cancel()

    async def _probe_with(self, live: Live, probe: Probe | None, target: Target) -> None:
        if probe is None:
            return

        def tell(readiness: Readiness) -> None:
            before, live.readiness = live.readiness, readiness
            if live.context is not None and readiness.message and (before is None or before.message != readiness.message):
                self._services.events.record(live.context, "Unhealthy", readiness.message, warning=True)
            live.wake()

        await self._services.prober.watch(probe, target, tell)


async def _abandon(attempt: asyncio.Future[Guest]) -> None:
    """End an attempt to connect; a link that was made all the same is closed."""
    attempt.cancel()
    await asyncio.wait({attempt})
    if not attempt.cancelled() and attempt.exception() is None:
        await attempt.result().close()

"""Forks as machines: made from an image, greeted, kept waiting, destroyed. What they become is decided by others.

A fork has an address of its own from the start (its VMM's user is named by it) and a TAP that leads to it; no packet passes
before the network's state knows the fork. Its user processes stand until `identify` lets them go, so a fork may run and be
greeted, which warms it up, long before anybody claims it.

Whatever fails in between leaves nothing: no process, no disk, no address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from primordia.domain.addresses import mac_of, owner_id_of
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.kit.files import clone_file
from primordia.kit.tasks import to_the_end
from primordia.node.addresses import AddressBook
from primordia.node.forks.identity import Person, identity_of
from primordia.node.forks.shape import Disks, Shape
from primordia.node.forks.store import disk_error
from primordia.node.services import Services
from primordia.ports.guest import Guest
from primordia.ports.vmm import Machine, Nic

log = logging.getLogger(__name__)

PLACE_BYTES = 65536
"""Of a disk that stands for data that is to come."""
_REHEARSALS = 5
"""Of a claim; under emulation they take 80, 13, 6, 4 and 3 ms."""


@dataclass(frozen=True)
class Image:
    """What forks are made from: a template, or a running context frozen for a moment. `name` is its folder's."""

    name: str
    folder: Path
    scratch: Path


@dataclass
class Fork:
    """A microVM made from an image. `uid` names machine, cgroup, run folder and TAP. `warm` says that it has waited,
    `practised` that it has run an exec in rehearsal."""

    uid: str
    image: Image
    address: str
    scratch: Path
    machine: Machine
    guest: Guest
    warm: bool = False
    practised: bool = False

    def release(self) -> None:
        """Let go of its handle without stopping it."""
        self.machine.release()


class Forker:
    """Makes and destroys forks."""

    def __init__(self, services: Services, addresses: AddressBook) -> None:
        self._services = services
        self._addresses = addresses
        self._gate = asyncio.Semaphore(services.settings.fork_parallel)
        self.uids: set[str] = set()
        """Machines that belong here though no record names them: those that are being made, and those that wait."""
        self.linked: set[str] = set()
        """Those of them that have a TAP, so that the network knows them before anybody does."""

    def _place_of(self, uid: str) -> Path:
        """A disk that stands for the data of a fork that waits."""
        return self._services.paths.pool / f"{uid}.place"

    def scratch_of(self, uid: str) -> Path:
        """Where a fork's disk lies until a context takes it over."""
        return self._services.paths.pool / f"{uid}.ext4"

    async def make(self, uid: str, image: Image, shape: Shape, data: Path | None = None) -> Fork:
        """A running fork whose agent has said hello; its user processes stand. `data` is its disk, where the shape has data;
        without one another stands in its place (`Machine.replace_drive`).

        Raises PrimordiaError naming the cause; nothing is left then.
        """
        self.uids.add(uid)
        try:
            async with self._gate:
                address = self._addresses.give(uid)
                return await self._make(uid, image, shape, address, data)
        except BaseException:
            await self._leave_nothing(uid, None)
            raise

    async def make_waiting(self, uid: str, image: Image, shape: Shape, *, practise: bool = True) -> Fork:
        """A fork that waits: greeted, its claim rehearsed, and an exec if it is to `practise`, then paused.

        Without the rehearsals its claim would take twenty times as long: what a guest runs for the first time has to be
        translated first, under emulation, then the translations linked, and its pages brought in everywhere.
        """
        fork = await self.make(uid, image, shape)
        try:
            await self._rehearse(fork, practise)
            await fork.machine.pause()
        except BaseException as error:
            await self.destroy(fork)
            if isinstance(error, TimeoutError):
                raise TemporaryError(f"The agent of fork {uid} does not answer.", reason="ForkSilent") from error
            raise
        fork.warm, fork.practised = True, practise
        return fork

    async def _rehearse(self, fork: Fork, practise: bool) -> None:
        """The claim comes last, as it will: what runs after it costs it half of what it gained.

        The passing name becomes longer each time, as it will in the end, for so do the files that have it.
        """
        clock, deadline_s = self._services.clock, self._services.settings.fork_deadline_s
        for turn in range(_REHEARSALS):
            name = "x" * (turn + 1)
            person = Person(fork.uid, name, fork.address, search=(name,))
            identity = replace(identity_of(self._services, person), rehearsal=True)
            await within(clock, deadline_s, fork.guest.identify(identity))
            if practise and turn == 0:
                await within(clock, deadline_s, fork.guest.rehearse())

    async def destroy(self, fork: Fork) -> None:
        """End it now; nothing of it is left."""
        await to_the_end(self._destroy(fork))

    def given_away(self, fork: Fork) -> None:
        """A record names it now: it is its context's."""
        self.uids.discard(fork.uid)
        self.linked.discard(fork.uid)

    # ------------------------------------------------------------ inside

    async def _make(self, uid: str, image: Image, shape: Shape, address: str, data: Path | None) -> Fork:
        services, scratch = self._services, self.scratch_of(uid)
        try:
            await services.offload(lambda: _clone(image.scratch, scratch))
            if shape.data and data is None:
                place = data = self._place_of(uid)
                await services.offload(lambda: place.write_bytes(bytes(PLACE_BYTES)))
        except OSError as error:
            raise disk_error(error, f"The scratch disk of fork {uid}") from error
        machine, guest = await self._start(uid, image, shape, address, Disks(scratch, data))
        self._place_of(uid).unlink(missing_ok=True)  # the machine has it open
        try:
            await self._known_to_the_network(uid)
        except BaseException:
            await to_the_end(_end(machine))
            raise
        return Fork(uid, image, address, scratch, machine, guest)

    async def _start(self, uid: str, image: Image, shape: Shape, address: str, disks: Disks) -> tuple[Machine, Guest]:
        """The machine, and its agent, who is greeted while it loads: it finds the greeting there when it wakes."""
        services, config = self._services, self._services.config
        mac, deadline_s = mac_of(address), services.settings.fork_deadline_s
        tap = await services.network.open_tap(uid, address, mac)
        self.linked.add(uid)
        services.network_keeper.changed()
        try:
            owner = owner_id_of(address, config.soup_pod_cidr)
            run_dir = services.paths.context_run(uid)
            spec = shape.machine(uid, run_dir, disks, owner, config.tools, Nic(tap.fd, mac))
            greeted: list[Guest] = []

            async def greet(machine: Machine) -> None:
                greeted.append(await within(services.clock, deadline_s, self._greet(machine)))

            machine = await services.vmm.fork(spec, image.folder, beside=greet)
            return machine, greeted[0]
        except TimeoutError as error:
            silent = f"The agent of fork {uid} did not answer within {deadline_s:g} s."
            raise TemporaryError(silent, reason="ForkSilent") from error
        finally:
            with contextlib.suppress(OSError):
                os.close(tap.fd)

    async def _known_to_the_network(self, uid: str) -> None:
        """Wait until it is: it takes as long as the fork's start, beside which it happens."""
        services = self._services
        try:
            await within(services.clock, services.settings.fork_deadline_s, services.network_keeper.settled())
        except TimeoutError:
            raise TemporaryError(
                f"The node's network does not know fork {uid} after {services.settings.fork_deadline_s:g} s.",
                remedy="The node's log says why its network cannot be changed.",
                reason="NetworkNotReady",
            ) from None

    async def _greet(self, machine: Machine) -> Guest:
        return await self._services.connect(machine)

    async def _destroy(self, fork: Fork) -> None:
        with contextlib.suppress(PrimordiaError):
            await fork.guest.close()
        await self._leave_nothing(fork.uid, fork.machine)

    async def _leave_nothing(self, uid: str, machine: Machine | None) -> None:
        if machine is not None:
            await _end(machine)
        with contextlib.suppress(OSError):
            self.scratch_of(uid).unlink(missing_ok=True)
            self._place_of(uid).unlink(missing_ok=True)
        self._addresses.free(uid)
        self.uids.discard(uid)
        self.linked.discard(uid)


def _clone(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    target.unlink(missing_ok=True)
    clone_file(source, target)


async def _end(machine: Machine) -> None:
    """Kill it, and never let that hide why."""
    try:
        await machine.kill()
    except PrimordiaError as error:
        log.error("a fork that is not wanted does not end: %s", error)

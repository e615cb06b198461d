"""A template is built by booting a microVM that is thrown away: prepared, warmed up if it is to be, frozen, killed.

It has an address of its own only to name its VMM's user; its TAP leads nowhere, for what runs in a warm-up must not be known
to anybody, nor know anybody, that its forks would meet again. Nothing of a build that fails is left, whatever failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from primordia.domain.addresses import mac_of, owner_id_of
from primordia.kit.deadline import within
from primordia.kit.errors import CapacityError, PermanentError, PrimordiaError
from primordia.kit.ids import new_uid
from primordia.kit.units import human_bytes
from primordia.node.addresses import AddressBook
from primordia.node.forks.forking import PLACE_BYTES, Forker
from primordia.node.forks.shape import Disks, Recipe
from primordia.node.forks.store import DEVICES, MEMORY, SCRATCH, Stored, TemplateStore, disk_error
from primordia.node.services import Services
from primordia.ports.guest import Guest, GuestError, GuestIdentity, GuestNetwork
from primordia.ports.vmm import Machine, MachineSpec, Nic

log = logging.getLogger(__name__)

READY = "/run/primordia/ready"
T = TypeVar("T")

_LOOK_S = 0.2
_SETTLE_S = 1.0
"""What a kernel still does in the second after its boot, as taking up a finer clock, each fork would do again."""
_SAY_S = 1.0
_SAID_BYTES = 600
_IMAGE = "image"
_PLACE = "place"
"""A disk that stands for the data that a fork will have."""


class BuildError(PermanentError):
    """A template that could not be built; what its warm-up said is in the message."""

    reason = "TemplateBuildFailed"


class Builder:
    """Builds templates into a store, one at a time: what runs must not suffer from it."""

    def __init__(self, services: Services, store: TemplateStore, forker: Forker, addresses: AddressBook) -> None:
        self._services = services
        self._store = store
        self._forker = forker
        self._addresses = addresses
        self._one = asyncio.Lock()

    async def key_of(self, recipe: Recipe) -> dict[str, str]:
        """The key of what `build` would make of the recipe now. Raises what `Vmm.image_key` raises."""
        return recipe.key(
            await self._services.vmm.image_key(self._spec("key", Path("/"), Disks(Path("/"), Path("/")), recipe, None, 0))
        )

    async def build(self, recipe: Recipe) -> Stored:
        """Build and publish it. Raises PrimordiaError naming the cause; nothing is left then."""
        async with self._one:
            self._check_room(recipe)
            uid = new_uid()
            folder = self._store.new_folder(uid)
            self._forker.uids.add(uid)
            try:
                key = await self.key_of(recipe)
                await self._frozen(uid, recipe, folder)
                return await self._store.publish(folder, key)
            except OSError as error:
                raise disk_error(error, f"The template of {recipe.title}") from error
            finally:
                await self._store.discard(folder)
                self._addresses.free(uid)
                self._forker.uids.discard(uid)

    # ------------------------------------------------------------ inside

    def _check_room(self, recipe: Recipe) -> None:
        services, shape = self._services, recipe.shape
        _, free = services.host.disk(services.paths.state)
        wanted = shape.memory_bytes + services.settings.disk_reserve_bytes
        if free < wanted:
            raise CapacityError(
                f"The template of {recipe.title} may take {human_bytes(shape.memory_bytes)}, and the disk has "
                f"{human_bytes(free)} free, of which {human_bytes(services.settings.disk_reserve_bytes)} are kept.",
                remedy="Free space on the disk of the node's state folder.",
                reason="DiskPressure",
            )
        free_memory = services.host.memory_available()
        if free_memory < shape.memory_bytes + services.settings.memory_reserve_bytes:
            raise CapacityError(
                f"The template of {recipe.title} needs {human_bytes(shape.memory_bytes)} of memory, and "
                f"{human_bytes(free_memory)} are free.",
                remedy="Stop something else on this machine, or give it less memory.",
                reason="InsufficientMemory",
            )

    def _spec(self, uid: str, run_dir: Path, disks: Disks, recipe: Recipe, nic: Nic | None, owner: int) -> MachineSpec:
        # The network card is part of the layout, so a key that is asked for without one gets one all the same.
        card = nic or Nic(-1, mac_of("0.0.0.0"))
        return recipe.shape.machine(uid, run_dir, disks, owner, self._services.config.tools, card)

    async def _frozen(self, uid: str, recipe: Recipe, folder: Path) -> None:
        """Boot it, make it ready, freeze it into the folder; the microVM is gone afterwards."""
        scratch, services = folder / SCRATCH, self._services
        await services.images.scratch(scratch, recipe.shape.scratch_bytes)
        place = folder / _PLACE
        await self._services.offload(lambda: place.write_bytes(bytes(PLACE_BYTES)))
        machine = await self._start(uid, recipe, Disks(scratch, place))
        try:
            guest = await self._greet(recipe, machine)
            try:
                await self._call(recipe, guest.prepare("root", "scratch"))
                # The files that an identity writes are there then, and its forks only write over them.
                await self._call(recipe, guest.identify(replace(_passing(uid, services), rehearsal=True)))
                if recipe.is_warm:
                    await self._warm_up(uid, recipe, guest)
                await self._call(recipe, guest.freeze())
                await services.clock.sleep(_SETTLE_S)
                # Once more, for what has been written back meanwhile would have to be fetched by each of its forks. Nobody runs
                # any more, so the way out that all forks have can be made here.
                await self._call(
                    recipe, guest.identify(replace(_passing(uid, services), rehearsal=True, network=_way(services)))
                )
                # It does not go on, so the disk stays as it is now, and needs no copy.
                await machine.freeze(folder / _IMAGE, go_on=False)
            finally:
                await guest.close()
        finally:
            await machine.kill()
        for name in (MEMORY, DEVICES):
            (folder / _IMAGE / name).rename(folder / name)
        (folder / _IMAGE).rmdir()
        place.unlink()

    async def _start(self, uid: str, recipe: Recipe, disks: Disks) -> Machine:
        services, config = self._services, self._services.config
        address = self._addresses.give(uid)
        tap = await services.network.open_tap(uid)
        try:
            owner = owner_id_of(address, config.soup_pod_cidr)
            spec = self._spec(uid, services.paths.context_run(uid), disks, recipe, Nic(tap.fd, mac_of(address)), owner)
            return await services.vmm.start(spec)
        finally:
            with contextlib.suppress(OSError):
                os.close(tap.fd)

    async def _greet(self, recipe: Recipe, machine: Machine) -> Guest:
        services = self._services
        try:
            return await within(services.clock, services.settings.boot_deadline_s, self._connect(machine))
        except (TimeoutError, PrimordiaError, OSError) as error:
            said = ""
            with contextlib.suppress(PrimordiaError, TimeoutError):
                said = (await within(services.clock, services.settings.call_deadline_s, machine.console())).strip()
            tail = f" Its console ended with: {said[-_SAID_BYTES:]}" if said else ""
            raise BuildError(f"The microVM of {recipe.title} did not come up: {error}.{tail}") from error

    async def _connect(self, machine: Machine) -> Guest:
        return await self._services.connect(machine)

    async def _call(self, recipe: Recipe, call: Coroutine[Any, Any, T]) -> T:
        services = self._services
        try:
            return await within(services.clock, services.settings.call_deadline_s, call)
        except TimeoutError as error:
            raise BuildError(f"The agent in the microVM of {recipe.title} does not answer.") from error
        except GuestError as error:
            raise BuildError(f"The microVM of {recipe.title} cannot be prepared: {error.message}") from error

    # ------------------------------------------------------------ the warm-up

    async def _warm_up(self, uid: str, recipe: Recipe, guest: Guest) -> None:
        """Run the warm-up until it says that it is ready. Raises BuildError with what it wrote."""
        services = self._services
        # An identity for the time being: no fork ever runs a user's instruction with it.
        await self._call(recipe, guest.identify(_passing(uid, services)))
        deadline_s = services.settings.warm_up_deadline_s
        try:
            await self._call(recipe, guest.start_main(recipe.program))
            await within(services.clock, deadline_s, self._until_ready(guest))
        except (TimeoutError, BuildError) as error:
            said = await self._said(guest)
            why = f"{READY} was not there after {deadline_s:g} s" if isinstance(error, TimeoutError) else str(error)
            raise BuildError(f"The warm-up of {recipe.title} failed: {why}.{said}", reason="WarmUpFailed") from error

    async def _until_ready(self, guest: Guest) -> None:
        """Raises BuildError when the warm-up ends: what is frozen is its living process."""
        while True:
            state = await guest.main_state()
            if state.phase == "ended":
                how = f"it ended with exit code {state.status.code}" if state.status is not None else "it ended"
                raise BuildError(f"{how}, and it has to stay alive")
            if await _exists(guest, READY):
                return
            await self._services.clock.sleep(_LOOK_S)

    async def _said(self, guest: Guest) -> str:
        """The last of what the warm-up wrote."""
        text = b""

        async def read() -> None:
            nonlocal text
            async for chunk in guest.logs(0):
                text = (text + chunk.data)[-_SAID_BYTES:]

        with contextlib.suppress(TimeoutError, PrimordiaError):
            await within(self._services.clock, _SAY_S, read())
        words = text.decode(errors="replace").strip()
        return f" It wrote: {words}" if words else " It wrote nothing."


def _way(services: Services) -> GuestNetwork:
    return GuestNetwork("", "", services.network.GATEWAY, services.network.GATEWAY_MAC)


def _passing(uid: str, services: Services) -> GuestIdentity:
    return GuestIdentity(
        hostname="t",  # shorter than its forks': a file that becomes shorter costs them more
        machine_id=uid.replace("-", ""),
        wall_ns=int(services.clock.wall().timestamp() * 1e9),
        entropy=secrets.token_bytes(64),
    )


async def _exists(guest: Guest, path: str) -> bool:
    try:
        async for _ in guest.read_tar(path):
            continue
    except GuestError as error:
        if error.reason == "ENOENT":
            return False
        raise
    return True

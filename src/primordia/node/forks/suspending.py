"""Memory kept over a suspension: a context frozen with what it has in memory, and let go on from there, once.

The disk may not change in between. What a guest has in memory of a disk that has been written since is wrong, and it would
write it back. So an image says what it belongs to (the spec and epoch, the disk as it was, all that `Vmm.image_key` names),
and is used only where all of that is the same: a restore, a failover, a move or another VMM make it void, and then the
context starts from its disk, and says so. It is used once: it loses its name before the first instruction runs from it.

What the programs wrote is flushed before they stand, so a start from the disk finds what was written before the suspension.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from primordia.domain.addresses import mac_of
from primordia.kit.deadline import within
from primordia.kit.errors import CapacityError, PrimordiaError, TemporaryError
from primordia.kit.files import clone_file
from primordia.kit.ids import new_uid
from primordia.kit.tasks import to_the_end
from primordia.kit.units import human_bytes
from primordia.node.forks.forking import Image
from primordia.node.forks.shape import Disks, Shape, plain_recipe, shape_of
from primordia.node.forks.store import DEVICES, MEMORY, SCRATCH, Stored, TemplateStore, disk_error, fsync
from primordia.node.live import Live
from primordia.node.machines import scratch_of
from primordia.node.program import filesystem_of, fingerprint
from primordia.node.services import Services
from primordia.ports.images import RootImage
from primordia.ports.vmm import Nic
from primordia.wire.resources import ContextSpec, ImageConfig

log = logging.getLogger(__name__)

_IMAGE = "image"
_LOOK_S = 0.05
_CONTEXT, _SPEC, _DISK = "context", "spec", "disk"
_WORDS = {
    _SPEC: "its spec or its epoch is another one now",
    _DISK: "its data is not what it was then",
}


@dataclass(frozen=True)
class Kept:
    """An image that may be used, and the shape that its fork must have."""

    stored: Stored
    shape: Shape


class KeptMemories:
    """services.Memories: the images of one node's suspended contexts."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = TemplateStore(services.paths.suspended, lambda key, message: log.error("%s", message), services.offload)
        self._opening = asyncio.Lock()
        self._opened = False
        self._busy: set[str] = set()

    async def keep(self, live: Live) -> str:
        """See services.Memories."""
        await self._open()
        self._busy.add(live.uid)
        try:
            await self._drop(live.uid)
            shape = await self._shape_of(live)
            self._check_room(shape)
            stored = await self._taken(live, shape)
        except TimeoutError as error:
            raise TemporaryError("Its guest does not answer.", reason="GuestUnreachable") from error
        finally:
            self._busy.discard(live.uid)
        return f"{human_bytes(stored.size_bytes)} of its memory and scratch disk are kept."

    async def find(self, live: Live, root: RootImage) -> Kept | str:
        """The image that the context may go on from, verified; else why there is none, as a clause. Its disk is open."""
        try:
            await self._open()
            stored = self._of(live.uid)
            if stored is None:
                return "this node has no image of its memory any more"
            shape = self._shape(live.spec, root)
            key = await self._key(live.uid, live.spec, shape, live.data.path if live.data is not None else None)
            if stored.key != key:
                return _difference(stored.key, key)
            if await self._store.find(key) is None:
                return "the image is damaged, and was put aside"
            return Kept(stored, shape)
        except (PrimordiaError, OSError) as error:
            return f"the image cannot be used: {error}"

    async def take(self, kept: Kept) -> Image:
        """The image, to be used this once, however that ends; `drop` deletes it. Raises OSError."""
        folder = await self._store.take(kept.stored)
        return Image(kept.stored.digest, folder, folder / SCRATCH)

    async def drop(self, image: Image) -> None:
        """Delete a used image: a fork keeps the memory that it maps."""
        await self._store.discard(image.folder)

    async def forget(self, uid: str) -> None:
        """Delete what is kept of a context, if anything."""
        await self._open()
        await self._drop(uid)

    async def collect(self, lives: Mapping[str, Live]) -> None:
        """Delete what no context of this node waits to go on from."""
        await self._open()
        for stored in self._store.all():
            uid = stored.key[_CONTEXT]
            live = lives.get(uid)
            if uid not in self._busy and (live is None or _is_void(live)):
                await self._store.remove(stored)

    # ------------------------------------------------------------ keeping

    async def _taken(self, live: Live, shape: Shape) -> Stored:
        """Frozen, and the image published. The microVM stands then; if not, it runs as before."""
        services = self._services
        machine, guest = live.machine, live.guest
        if machine is None or guest is None or live.main != "running":
            raise TemporaryError("Its program did not run.", reason="NotRunning")
        await within(services.clock, services.settings.call_deadline_s, self._until_nobody_freezes(live))
        live.freezing = True
        folder = self._store.new_folder(new_uid())
        try:
            try:
                await within(services.clock, services.settings.call_deadline_s, guest.sync())
                await within(services.clock, services.settings.call_deadline_s, guest.freeze())
                scratch = scratch_of(services, live)

                async def cut() -> None:
                    await services.offload(lambda: clone_file(scratch, folder / SCRATCH))

                await machine.freeze(folder / _IMAGE, during=cut, go_on=False)
            except BaseException:
                await to_the_end(self._go_on(live))
                raise
            try:
                key = await self._key(live.uid, live.record.spec, shape, await self._disk(live))
                await services.offload(lambda: _unpack(folder))
                return await self._store.publish(folder, key)
            except BaseException:
                await machine.resume()
                await to_the_end(self._go_on(live))
                raise
        except OSError as error:
            raise disk_error(error, "The image") from error
        finally:
            live.freezing = False
            await self._store.discard(folder)

    async def _until_nobody_freezes(self, live: Live) -> None:
        while live.freezing:
            await self._services.clock.sleep(_LOOK_S)

    async def _go_on(self, live: Live) -> None:
        """Its programs go on, to be ended in order."""
        guest = live.guest
        if guest is not None:
            try:
                await within(self._services.clock, self._services.settings.call_deadline_s, guest.thaw())
            except (PrimordiaError, TimeoutError) as error:
                log.warning("%s: its processes could not be told to go on: %s", live.title, error)

    def _check_room(self, shape: Shape) -> None:
        services = self._services
        _, free = services.host.disk(services.paths.state)
        reserve = services.settings.disk_reserve_bytes
        if free < shape.memory_bytes + reserve:
            raise CapacityError(
                f"The image may take {human_bytes(shape.memory_bytes)}, and the disk has {human_bytes(free)} free, of which "
                f"{human_bytes(reserve)} are kept.",
                remedy="Free space on the disk of the node's state folder.",
                reason="DiskPressure",
            )

    # ------------------------------------------------------------ what it belongs to

    async def _open(self) -> None:
        async with self._opening:
            if not self._opened:
                await self._services.offload(self._store.open)
                self._opened = True

    def _of(self, uid: str) -> Stored | None:
        return next((stored for stored in self._store.all() if stored.key.get(_CONTEXT) == uid), None)

    async def _drop(self, uid: str) -> None:
        while (stored := self._of(uid)) is not None:
            await self._store.remove(stored)

    async def _disk(self, live: Live) -> Path | None:
        uid, volumes = live.record.spec.volume_uid, self._services.volumes
        return await volumes.pool.disk(uid) if uid and volumes is not None else None

    async def _shape_of(self, live: Live) -> Shape:
        run = live.record.run
        root = await self._services.images.find(run.image_digest) if run is not None else None
        if root is None:
            raise TemporaryError("Its image is not in the cache of this node any more.")
        return self._shape(live.record.spec, root)

    def _shape(self, spec: ContextSpec, root: RootImage) -> Shape:
        template, scratch_bytes = spec.template, self._services.settings.scratch_bytes
        return shape_of(template.image, root, template.resources, scratch_bytes, data=filesystem_of(spec))

    async def _key(self, uid: str, wanted: ContextSpec, shape: Shape, disk: Path | None) -> dict[str, str]:
        services = self._services
        # The network card is part of the layout; which TAP is behind it is not.
        spec = shape.machine(
            "key", Path("/"), Disks(Path("/"), Path("/")), 0, services.config.tools, Nic(-1, mac_of("0.0.0.0"))
        )
        machine_key = plain_recipe(shape, ImageConfig()).key(await services.vmm.image_key(spec))
        state = await services.offload(lambda: _state_of(disk)) if disk is not None else ""
        return {**machine_key, _CONTEXT: uid, _SPEC: fingerprint(wanted), _DISK: state}


def _is_void(live: Live) -> bool:
    """Whether nothing can go on from what is kept of it: it runs, or nobody wants its memory any more."""
    run = live.record.run
    if run is None or run.memory != "kept":
        return True
    return live.context is not None and live.context.spec.wanted == "Stopped" and not live.context.spec.keep_memory


def _state_of(disk: Path) -> str:
    """What a disk is, as far as can be seen without reading it. Each write changes it, and so does another file in its place.

    What was written is durable then: after a power cut the disk is this one, or is seen not to be.
    """
    fsync(disk)
    found = disk.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    said = [_WORDS.get(name) or f"its {name} was {then.get(name, 'none')} and is {now.get(name, 'none')}" for name in names]
    return " and ".join(said)


def _unpack(folder: Path) -> None:
    for name in (MEMORY, DEVICES):
        (folder / _IMAGE / name).rename(folder / name)
    (folder / _IMAGE).rmdir()

"""Live forks: a running context is frozen for a moment, and its children are made from that moment.

The parent's user processes are stopped first, by its own agent, so that what is frozen is one coherent point and no child
runs a single instruction of it before it knows who it is; then the virtual CPUs stand while devices, memory and scratch disk
are taken. The parent goes on at once, whatever fails: every step before its `thaw` is undone by it.

The frozen image stays for as long as a child lives that reads it, and goes with the last. A parent's data is cloned in the
same pause, and each child has a clone of that as its own (node/volumes/scratch.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from primordia.domain.forklimits import Ask
from primordia.kit.deadline import within
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError, TemporaryError
from primordia.kit.files import clone_file
from primordia.kit.ids import new_uid, suffix
from primordia.kit.tasks import to_the_end
from primordia.node.fleet import Fleet
from primordia.node.forks.births import Birth, Births
from primordia.node.forks.expiry import expires_at
from primordia.node.forks.forking import Forker, Image
from primordia.node.forks.identity import Person, UnconfirmedError
from primordia.node.forks.meters import ForkMeters
from primordia.node.forks.programs import Programs
from primordia.node.forks.room import ForkRoom
from primordia.node.forks.shape import Shape, shape_of
from primordia.node.forks.store import SCRATCH, disk_error
from primordia.node.live import Live
from primordia.node.machines import scratch_of
from primordia.node.program import hooks_of
from primordia.node.services import Services
from primordia.ports.forks import ForkOutcome, ForkReport, ForkRequest
from primordia.ports.guest import Guest
from primordia.ports.vmm import Frozen, Machine
from primordia.wire.meta import LABEL_PARENT, ObjectMeta
from primordia.wire.resources import Context, ContextSpec

log = logging.getLogger(__name__)

_IMAGE = "image"
_THAW_TRIES = 3


@dataclass(frozen=True)
class _Parent:
    """What is forked, as it was when it was asked for."""

    live: Live
    context: Context
    machine: Machine
    guest: Guest
    shape: Shape
    volume: str = ""
    """Its data, by its name in the pool."""

    @property
    def root(self) -> str:
        """The lifeform or box that its children are counted for."""
        record = self.live.record
        return record.root or record.group


class LiveForks:
    """Forks running contexts of one node."""

    def __init__(
        self,
        services: Services,
        fleet: Fleet,
        forker: Forker,
        room: ForkRoom,
        births: Births,
        meters: ForkMeters,
        programs: Programs,
    ) -> None:
        self._services = services
        self._fleet = fleet
        self._forker = forker
        self._room = room
        self._births = births
        self._meters = meters
        self._programs = programs
        self.images: set[str] = set()
        """Folders of images that children are being made from."""

    async def fork(self, uid: str, request: ForkRequest) -> ForkReport:
        """Fork the running context. Each child has its own outcome.

        Raises NotFoundError, CapacityError, ConflictError while it is being forked already, and TemporaryError or what the
        VMM says when it could not be frozen; the parent is unharmed.
        """
        begin_s = self._services.clock.boottime()
        parent = await self._parent(uid)
        depth = parent.context.spec.depth + 1
        name = f"{uid[:8]}-{suffix(8)}"
        with self._room.granted(parent.root, Ask(request.count, depth, parent.shape.memory_bytes)):
            self.images.add(name)
            folder = self._services.paths.forks / name
            try:
                pause_s, frozen = await self._frozen(parent, folder)
                image = Image(name, folder / _IMAGE, folder / SCRATCH)
                outcomes = await asyncio.gather(*(self._child(parent, request, image, begin_s) for _ in range(request.count)))
            finally:
                self.images.discard(name)
                if self._services.volumes is not None and parent.volume:
                    await self._services.volumes.scratch.drop_image(name)
                if not self._is_read(name):
                    await self._discard(folder)
        made = sum(1 for outcome in outcomes if not outcome.reason)
        self._meters.forked(made=made, failed=request.count - made, pause_s=pause_s)
        self._services.events.record(
            parent.context,
            "Forked",
            f"{made} of {request.count} forks were made; it stood still for {pause_s * 1000:.1f} ms.",
            warning=made < request.count,
        )
        return ForkReport(round(pause_s * 1000, 2), frozen.copied_bytes, tuple(outcomes))

    async def collect(self) -> None:
        """Delete the images that nobody reads."""
        root = self._services.paths.forks
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if folder.name not in self.images and not self._is_read(folder.name):
                await self._discard(folder)

    # ------------------------------------------------------------ the parent

    async def _parent(self, uid: str) -> _Parent:
        live = self._fleet.get(uid)
        if live is None:
            raise NotFoundError(f"Node {self._services.config.name} runs no context with uid {uid[:64]}.")
        run = live.record.run
        if live.context is None or live.machine is None or live.guest is None or run is None or run.phase != "running":
            raise TemporaryError(
                f"Context {live.title} cannot be forked: it is {live.phase}, and has to run.",
                remedy="Try again when it is ready.",
                reason="NotRunning",
            )
        if live.freezing:
            raise ConflictError(f"Context {live.title} is being forked at this moment.", remedy="Try again in a moment.")
        template = live.record.spec.template
        root = await self._services.images.find(run.image_digest)
        if root is None:
            raise NotFoundError(f"The image of context {live.title} is not in the cache of this node any more.")
        scratch_bytes, volume = self._services.settings.scratch_bytes, await self._volume(live)
        shape = shape_of(
            template.image,
            root,
            template.resources,
            scratch_bytes,
            data=template.data.filesystem if template.data is not None and volume else "",
        )
        return _Parent(live, live.context, live.machine, live.guest, shape, volume)

    async def _volume(self, live: Live) -> str:
        """The disk that the context has as its data: its lifeform's, or, of a fork, its own clone of that."""
        volumes = self._services.volumes
        if volumes is None or not live.is_fork:
            return live.record.spec.volume_uid
        return await volumes.scratch.of(live.uid)

    async def _frozen(self, parent: _Parent, folder: Path) -> tuple[float, Frozen]:
        """Take the image. The parent runs again when this ends, however it ends."""
        clock, live = self._services.clock, parent.live
        live.freezing = True
        try:
            await self._services.offload(lambda: folder.mkdir(parents=True, mode=0o700))
            try:
                begin_s, frozen = await self._take(parent, folder)
            finally:
                live.freezing = False
                await to_the_end(self._thaw(parent))
            if live.machine is not parent.machine:
                raise TemporaryError(f"Context {live.title} ended while it was forked.", reason="NotRunning")
            return clock.boottime() - begin_s, frozen
        except TimeoutError as error:
            raise TemporaryError(f"The guest of {parent.live.title} does not answer, so it was not forked.") from error
        except OSError as error:
            raise disk_error(error, f"The image of {parent.live.title}") from error
        finally:
            live.freezing = False

    async def _take(self, parent: _Parent, folder: Path) -> tuple[float, Frozen]:
        """Memory, devices and disks of one moment, and when the parent began to stand, in boot-time seconds.

        What else a child gets of its parent is cut here, while nothing runs. The parent's processes stand only once all is
        done that can be done before: the first copy of memory, which the kernel holds back while the disk is busy.
        """
        scratch, volumes = scratch_of(self._services, parent.live), self._services.volumes
        begin_s = self._services.clock.boottime()

        async def still() -> None:
            nonlocal begin_s
            begin_s = self._services.clock.boottime()
            await self._call(parent, parent.guest.freeze())

        async def cut() -> None:
            await self._services.offload(lambda: clone_file(scratch, folder / SCRATCH))
            if volumes is not None and parent.volume:
                await volumes.scratch.cut(parent.volume, folder.name)

        frozen = await parent.machine.freeze(folder / _IMAGE, before=still, during=cut)
        return begin_s, frozen

    async def _thaw(self, parent: _Parent) -> None:
        """Let the parent's processes go on. Where the link broke, its worker makes it again, and thaws as well."""
        for _ in range(_THAW_TRIES):
            guest = parent.live.guest
            if guest is None:
                return
            try:
                await self._call(parent, guest.thaw())
                return
            except (PrimordiaError, TimeoutError) as error:
                log.warning("%s: its processes could not be told to go on: %s", parent.live.title, error)
        await parent.guest.close()

    async def _call(self, parent: _Parent, call: object) -> None:
        await within(self._services.clock, self._services.settings.call_deadline_s, call)  # type: ignore[arg-type]

    # ------------------------------------------------------------ the children

    async def _child(self, parent: _Parent, request: ForkRequest, image: Image, begin_s: float) -> ForkOutcome:
        birth_uid, volumes = new_uid(), self._services.volumes
        name = f"{parent.context.metadata.name[:50].rstrip('-.')}-{suffix()}"
        try:
            data = await volumes.scratch.give(image.name, birth_uid) if volumes is not None and parent.volume else None
            fork = await self._forker.make(new_uid(), image, parent.shape, data)
            birth = self._birth(parent, request, birth_uid, name, fork.address)
            self._services.network_keeper.changed()
            live = await self._births.bear(fork, birth, begin_s)
        except PrimordiaError as error:
            if volumes is not None and parent.volume:
                await volumes.scratch.drop(birth_uid)
            if isinstance(error, UnconfirmedError):
                self._meters.unconfirmed()
            log.warning("fork %s: %s", name, error)
            return ForkOutcome(reason=error.reason, message=str(error))
        confirmed_ms = round((self._services.clock.boottime() - begin_s) * 1000, 2)
        if request.program is not None:
            with contextlib.suppress(PrimordiaError):
                await self._programs.start(live, request.program)
        return ForkOutcome(name, birth_uid, confirmed_ms)

    def _birth(self, parent: _Parent, request: ForkRequest, uid: str, name: str, address: str) -> Birth:
        services, meta, spec = self._services, parent.context.metadata, parent.context.spec
        run = parent.live.record.run
        assert run is not None
        domain = services.config.domain
        child = ContextSpec(
            node=services.config.name,
            epoch=spec.epoch,
            template=spec.template,
            restart_policy="Never",
            network=spec.network,
            termination_grace_period_seconds=spec.termination_grace_period_seconds,
            parent=meta.name,
            parent_uid=meta.uid,
            depth=spec.depth + 1,
            lifetime="keep" if request.lifetime == "keep" else "parent",
            from_template=spec.from_template,
            expires_at=expires_at(services.clock, request.ttl_s),
        )
        return Birth(
            uid=uid,
            metadata=ObjectMeta(name=name, namespace=meta.namespace, labels={LABEL_PARENT: meta.name}),
            spec=child,
            because="Forked",
            person=Person(
                uid,
                name,
                address,
                search=(f"{meta.namespace}.{domain}", domain),
                inherit_secrets=request.inherit_secrets,
                hooks=hooks_of(spec.template.lifecycle, run.program),
            ),
            program=run.program,
            image_digest=run.image_digest,
            root=parent.root,
            main_runs=parent.live.main in ("running", "ended"),
            ttl_s=request.ttl_s,
            settle=True,
        )

    async def _discard(self, folder: Path) -> None:
        await self._services.offload(lambda: shutil.rmtree(folder, ignore_errors=True))

    def _is_read(self, name: str) -> bool:
        """Whether a context may live that was made from that image."""
        runs = (live.record.run for live in self._fleet.lives.values())
        return any(run is not None and run.frozen == name and run.phase in ("starting", "running") for run in runs)

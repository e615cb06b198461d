"""Images on this node: Image resources made real, and the root that a context asks for found.

Invariant: an Image is Ready only while the node's cache has its root. A failure is written with its cause; what may pass is
tried again with back-off, what cannot waits for a change of the spec.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from primordia.domain.restart import attempt_delay_s
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import NotFoundError, PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet
from primordia.node.status import StatusWriter
from primordia.ports.images import Images, Progress, RootImage
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.rules import timestamp
from primordia.wire.catalogue import builtin_image, builtin_names
from primordia.wire.resources import Image, ImageSpec, ImageStatus, OciSource

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 1.0


class ImageKeeper:
    """Looks after every Image resource. `node` is this node's name."""

    def __init__(
        self, images: Images, informers: Informers, writer: StatusWriter, events: EventRecorder, clock: Clock, node: str
    ) -> None:
        self._images = images
        self._informer = informers.of(Image)
        self._writer = writer
        self._events = events
        self._clock = clock
        self._node = node
        self._tasks = TaskSet("images")
        self._builds: dict[str, tuple[ImageSpec, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Build what is there and what comes, until cancelled."""
        try:
            self._informer.subscribe(self._on_image)
            await asyncio.get_running_loop().create_future()
        finally:
            await self._tasks.close()

    def spec_of(self, name: str) -> ImageSpec:
        """The source that a context's `image` means: an Image, else a name of the catalogue, else an OCI reference.

        Raises NotFoundError.
        """
        image = self._informer.get(name)
        if image is not None:
            return image.spec
        builtin = builtin_image(name)
        if builtin is not None:
            return builtin.spec
        if "/" in name or name.startswith("oci:"):
            return ImageSpec(oci=OciSource(reference=name))
        raise NotFoundError(
            f"There is no image {name!r}.",
            remedy=f"Create an Image of that name, use {', '.join(builtin_names())}, or give HOST/NAME:TAG of a registry.",
            reason="ImageNotFound",
        )

    async def root(self, name: str, progress: Progress) -> RootImage:
        """The root for a context's `image`, made if need be. Raises what `Images.ensure` raises."""
        return await self._images.ensure(self.spec_of(name), progress)

    def _on_image(self, change: Change[Image]) -> None:
        about = change.new or change.old
        if about is None:
            return
        uid = about.metadata.uid
        spec, task = self._builds.get(uid, (None, None))
        if change.new is None or change.new.metadata.deletion_timestamp is not None:
            if task is not None:
                task.cancel()
                self._builds.pop(uid, None)
            return
        if spec == change.new.spec:
            return
        if task is not None:
            task.cancel()
        new = self._tasks.start(self._build(change.new), name=change.new.metadata.name)
        self._builds[uid] = (change.new.spec, new)

    async def _build(self, image: Image) -> None:
        """Build one version of an image, trying again as long as its failure may pass."""
        failures = 0
        while True:
            try:
                self._tell(image, phase="Building")
                root = await self._images.ensure(image.spec, self._progress(image))
            except PrimordiaError as error:
                failures += 1
                self._tell(image, phase="Failed", message=str(error))
                self._events.record(image, "BuildFailed", str(error), warning=True)
                if not isinstance(error, TemporaryError):
                    return
                await wait_event(self._clock, asyncio.Event(), attempt_delay_s(failures))
            except Exception:
                log.exception("image %s: the build failed", image.metadata.name)
                self._tell(image, phase="Failed", message="The build failed for a reason that is a bug; the node's log has it.")
                return
            else:
                self._tell_ready(image, root)
                return

    def _progress(self, image: Image) -> Callable[[str], None]:
        last_s = self._clock.boottime()

        def tell(words: str) -> None:
            nonlocal last_s
            log.info("image %s: %s", image.metadata.name, words)
            now = self._clock.boottime()
            if now - last_s >= _PROGRESS_EVERY_S:
                last_s = now
                self._tell(image, phase="Building", progress=words)

        return tell

    def _tell_ready(self, image: Image, root: RootImage) -> None:
        status = ImageStatus(
            phase="Ready",
            digest=root.digest,
            size_bytes=root.size_bytes,
            config=root.config,
            built_at=root.created or timestamp(self._clock.wall()),
            observed_generation=image.metadata.generation,
        )
        if image.status.digest != root.digest:
            self._events.record(image, "Built", f"{root.source}: {root.digest[:19]}, {root.size_bytes} bytes.")
        self._writer.put(image, status, self._with_node)

    def _tell(self, image: Image, *, phase: str, message: str = "", progress: str = "") -> None:
        status = ImageStatus(phase=phase, message=message, progress=progress, observed_generation=image.metadata.generation)
        self._writer.put(image, status, self._without_node)

    def _with_node(self, stored: ImageStatus, wanted: ImageStatus) -> ImageStatus:
        return msgspec.structs.replace(wanted, nodes=tuple(sorted({*self._others(stored, wanted), self._node})))

    def _without_node(self, stored: ImageStatus, wanted: ImageStatus) -> ImageStatus:
        """An image is Ready where it is, whatever becomes of it here; nor does building it anew here hide the last build."""
        others = self._others(stored, wanted)
        same = stored.observed_generation == wanted.observed_generation
        if same and stored.phase == "Ready":
            if wanted.phase == "Building":
                return stored
            if others:
                return msgspec.structs.replace(stored, nodes=others, message=f"On node {self._node}: {wanted.message}")
        return msgspec.structs.replace(wanted, nodes=others)

    def _others(self, stored: ImageStatus, wanted: ImageStatus) -> tuple[str, ...]:
        """The other nodes that have what this version of the image asks for."""
        same = stored.observed_generation == wanted.observed_generation
        return tuple(each for each in stored.nodes if each != self._node) if same else ()

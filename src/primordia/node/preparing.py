"""What a start needs before there is a machine: room on the node, the image, the secrets, the data's disk."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator

from primordia.kit.errors import CapacityError, NotFoundError, PermanentError, PrimordiaError
from primordia.kit.units import human_bytes, parse_bytes
from primordia.node.live import Live
from primordia.node.program import DATA
from primordia.node.services import Services
from primordia.ports.guest import SecretFile
from primordia.ports.images import RootImage
from primordia.wire.resources import Context, Secret

_UNMOUNTABLE = f"mount drive {DATA}"
"""The agent's name for the step (guest/rootfs.c)."""


class StartError(PermanentError):
    """A start that failed, with the reason that the context's status shows."""

    reason = "StartFailed"


def check_disk(services: Services) -> None:
    """Raises CapacityError when the node's disk is nearly full."""
    settings, path = services.settings, services.paths.state
    _, free = services.host.disk(path)
    if free < settings.disk_reserve_bytes:
        wanted = human_bytes(settings.disk_reserve_bytes)
        raise CapacityError(
            f"The disk of {path} is nearly full: {human_bytes(free)} free, {wanted} wanted.",
            remedy="Free space there, for instance with `primordia image prune`.",
            reason="DiskPressure",
        )


def check_memory(services: Services, context: Context) -> None:
    """Raises CapacityError when the machine has not as much memory free."""
    wanted = parse_bytes(context.spec.template.resources.memory)
    free = services.host.memory_available()
    if wanted > free:
        raise CapacityError(
            f"The machine has not enough memory now: {human_bytes(wanted)} wanted, {human_bytes(free)} free.",
            remedy="Stop something else on this machine, or give the context less memory.",
            reason="InsufficientMemory",
        )


async def image_root(services: Services, live: Live, context: Context) -> RootImage:
    """The context's root, made if need be; how that goes is told. Raises StartError."""
    name = context.spec.template.image

    def progress(words: str) -> None:
        live.progress = f"Image {name}: {words}"
        live.wake()

    progress("looking for it")
    try:
        return await services.image_keeper.root(name, progress)
    except PrimordiaError as error:
        services.events.record(context, "ImageFailed", f"Image {name}: {error}", warning=True)
        raise StartError(f"Image {name}: {error.message}", remedy=error.remedy, reason="ImagePullBackOff") from error
    finally:
        live.progress = ""


async def secret_files(services: Services, context: Context) -> tuple[SecretFile, ...]:
    """What its secrets are in the guest. Raises StartError."""
    files: list[SecretFile] = []
    for mount in context.spec.template.secrets:
        try:
            secret = await services.registry.get(Secret, mount.name, context.metadata.namespace)
        except NotFoundError as error:
            raise StartError(error.message, remedy="Create it.", reason="SecretNotFound") from error
        for key, value in sorted(secret.data.items()):
            try:
                content = base64.b64decode(value, validate=True)
            except binascii.Error as error:
                raise StartError(f"Secret {mount.name}: key {key} is not base64.", reason="SecretInvalid") from error
            files.append(SecretFile(f"{mount.mount_path.rstrip('/')}/{key}", content))
    return tuple(files)


@contextlib.asynccontextmanager
async def data_drive(services: Services, live: Live) -> AsyncIterator[None]:
    """The context's disk, in `live.data`: its own for the length of the start; its microVM has it then.

    Raises StartError where there is no pool, and what `VolumeKeeper.disk_for` raises.
    """
    if not live.spec.volume_uid:
        yield
        return
    volumes = services.volumes
    if volumes is None:
        raise StartError(
            f"The context has data, and node {services.config.name} has no pool of volumes: {services.no_pool}",
            reason="NoPool",
        )
    live.progress = f"Volume {live.spec.volume}"
    live.wake()
    try:
        async with volumes.disk_for(live) as live.data:
            live.progress = ""
            yield
    except PrimordiaError as error:
        if _UNMOUNTABLE in error.message:
            volumes.suspect(live)
        raise
    finally:
        live.progress, live.data = "", None

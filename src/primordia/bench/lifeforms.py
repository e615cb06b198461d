"""The smallest lifeform there is, for measuring what is not it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec

from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.domain.lifeforms import context_object_name
from primordia.kit import ids
from primordia.kit.errors import NotFoundError
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import ContextTemplate, Lifeform, LifeformSpec, Resources, Volume

IMAGE = "busybox"
MEMORY = "128Mi"
_BOOT_S = 120.0
_IMAGE_S = 600.0


def manifest(name: str) -> Lifeform:
    """One context of busybox whose program only waits."""
    context = ContextTemplate(
        name="main",
        image=IMAGE,
        command=("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"),
        resources=Resources(cpu="1", memory=MEMORY),
    )
    spec = LifeformSpec(contexts=(context,), termination_grace_period_seconds=1)
    return Lifeform(metadata=ObjectMeta(name=name), spec=spec)


@contextlib.asynccontextmanager
async def running(client: AsyncClient, wanted: Lifeform | None = None) -> AsyncIterator[str]:
    """The name of one that runs, deleted at the end: the smallest one, or `wanted` under a name of its own."""
    name = f"bench-{ids.suffix()}"
    await client.create(manifest(name) if wanted is None else msgspec.structs.replace(wanted, metadata=ObjectMeta(name=name)))
    try:
        await client.wait(Lifeform, name, answers.phase("Running"), timeout_s=_IMAGE_S)
        yield name
    finally:
        await delete(client, name)


async def delete(client: AsyncClient, name: str) -> None:
    """Delete it and wait until it is gone."""
    await client.delete(Lifeform, name)
    await client.wait(Lifeform, name, answers.deleted, timeout_s=_BOOT_S)


@contextlib.asynccontextmanager
async def with_data(client: AsyncClient, wanted: Lifeform) -> AsyncIterator[tuple[str, str]]:
    """The names of one that runs and of its volume, both gone at the end."""
    volume = ""
    try:
        async with running(client, wanted) as name:
            volume = context_object_name(name, wanted.spec.contexts[0].name)
            yield name, volume
    finally:
        await destroy(client, volume)


async def destroy(client: AsyncClient, volume: str) -> None:
    """Delete a volume with its copies, if there is one, and wait until it is gone."""
    with contextlib.suppress(NotFoundError):
        found = await client.get(Volume, volume)
        await client.delete(Volume, volume, uid=found.metadata.uid)
        await client.wait(Volume, volume, answers.deleted, timeout_s=_BOOT_S)

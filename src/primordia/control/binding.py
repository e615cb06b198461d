"""What the lifeform controller does about volumes: it finds them, says why they cannot be had, and makes them a lifeform's own.

The lifeform's place and epoch and its volumes' are one transaction, so no revision of the store shows a lifeform on one node
and its data on another.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from primordia.control.data import (
    Volumes,
    bound_volumes,
    data_needs,
    epoch_to_bind,
    obstacle,
    templates_with_data,
    volume_name,
)
from primordia.control.planning import mine_of
from primordia.control.scheduler import Scheduler
from primordia.domain.conditions import Verdict
from primordia.kit.errors import NotFoundError
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.registry.together import write_together
from primordia.wire.resources import Context, Lifeform, Volume


class Binder:
    """Knows the volumes of lifeforms."""

    def __init__(self, registry: Registry, informers: Informers, scheduler: Scheduler) -> None:
        self._registry = registry
        self._lifeforms = informers.of(Lifeform)
        self._volumes = informers.of(Volume)
        self._scheduler = scheduler

    def volumes_of(self, lifeform: Lifeform) -> dict[str, Volume]:
        """The volumes that exist, of those that it wants, by the names of their contexts."""
        namespace = lifeform.metadata.namespace
        found = {name: self._volumes.get(volume_name(lifeform, name), namespace) for name in templates_with_data(lifeform)}
        return {name: volume for name, volume in found.items() if volume is not None}

    async def judge(self, lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes) -> Verdict | None:
        """A verdict when the lifeform cannot have its data, or its node has no room for it."""
        if lifeform.metadata.deletion_timestamp is not None or not templates_with_data(lifeform):
            return None
        verdict = obstacle(lifeform, volumes, await self._gone(lifeform, mine_of(lifeform, contexts), volumes))
        if verdict is None and lifeform.status.node:
            lack = self._scheduler.lacks_disk(lifeform, data_needs(lifeform, volumes).disk_bytes)
            if lack:
                message = f"Its data has to wait: {lifeform.status.node} {lack}."
                return Verdict("Scheduled", "False", "InsufficientCapacity", message)
        return verdict

    async def bind(self, lifeform: Lifeform) -> Lifeform:
        """Make the volumes of a placed lifeform its own; one from another life, or a restore, begins the next epoch."""
        volumes = self.volumes_of(lifeform)
        status = msgspec.structs.replace(lifeform.status, epoch=epoch_to_bind(lifeform, volumes))
        return await self.place(lifeform, msgspec.structs.replace(lifeform, status=status), volumes)

    async def place(self, lifeform: Lifeform, placed: Lifeform, volumes: Volumes) -> Lifeform:
        """Write where the lifeform is, and its volumes with it. Raises ConflictError when any of them has changed."""
        if not templates_with_data(lifeform):
            placed = await self._registry.amend(lifeform, placed, whole=True)
            self._lifeforms.learn(placed)
            return placed
        pairs = bound_volumes(placed, volumes, placed.status.node, placed.status.epoch)
        for obj in await write_together(self._registry, [(lifeform, placed), *pairs]):
            if isinstance(obj, Volume):
                self._volumes.learn(obj)
            elif isinstance(obj, Lifeform):
                self._lifeforms.learn(obj)
                placed = obj
        return placed

    async def _gone(self, lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes) -> frozenset[str]:
        """Contexts whose volume is no more. The cache may be late, so the registry is asked."""
        lost = set()
        for name in templates_with_data(lifeform):
            context = contexts.get(name)
            if context is None or not context.spec.volume_uid or name in volumes:
                continue
            try:
                self._volumes.learn(await self._registry.get(Volume, context.spec.volume, lifeform.metadata.namespace))
            except NotFoundError:
                lost.add(name)
        return frozenset(lost)

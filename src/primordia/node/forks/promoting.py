"""A fork's data becomes a lifeform's: what was to go with the child stays, under a name of its own.

The child's file system is stilled for the moment in which its disk is cloned, so that the clone is whole. The clone gets a
Volume, which is called as the lifeform's context is, then comes the lifeform, which takes the volume up as any other does, and
at last the child goes. The lifeform starts from that disk: what the child had in its memory alone is not carried over. Until
the lifeform is there the child is unharmed, whatever fails.
"""

from __future__ import annotations

import contextlib
import logging
import time

import msgspec

from primordia.domain.lifeforms import context_object_name
from primordia.kit.deadline import within
from primordia.kit.errors import AlreadyExistsError, ConflictError, NotFoundError, PrimordiaError, TemporaryError
from primordia.kit.tasks import to_the_end
from primordia.kit.units import bytes_quantity
from primordia.node.fleet import Fleet
from primordia.node.live import Live
from primordia.node.services import Services
from primordia.node.volumes.births import Birth, Births
from primordia.ports.forks import Promoted
from primordia.ports.guest import Guest
from primordia.registry import keys
from primordia.wire.meta import LABEL_PARENT, LABEL_TEMPLATE, ObjectMeta
from primordia.wire.resources import Context, ContextTemplate, Lifeform, LifeformSpec, Volume
from primordia.wire.volumes import Data, VolumeSpec, VolumeStatus

log = logging.getLogger(__name__)

_STILL_S = 10.0
_OWN_LABELS = (LABEL_PARENT, LABEL_TEMPLATE)


class Promoter:
    """One node's."""

    def __init__(self, services: Services, fleet: Fleet) -> None:
        self._services = services
        self._fleet = fleet
        self._at_work: set[str] = set()

    async def promote(self, uid: str, name: str) -> Promoted:
        """Make the fork `uid` the lifeform `name`. What was begun ends, also when nobody waits for it any more.

        Raises NotFoundError, AlreadyExistsError, CapacityError, ConflictError (it has no data, or is promoted already),
        TemporaryError (it does not run).
        """
        live = self._fleet.get(uid)
        if live is None:
            raise NotFoundError(f"Node {self._services.config.name} runs no context with uid {uid[:64]}.")
        if uid in self._at_work:
            raise ConflictError(f"Context {live.title} is being promoted already.", remedy="Wait for it.")
        self._at_work.add(uid)
        try:
            return await to_the_end(self._promote(live, name))
        finally:
            self._at_work.discard(uid)

    async def _promote(self, live: Live, name: str) -> Promoted:
        context, guest, source = await self._child(live)
        template, namespace = context.spec.template, context.metadata.namespace
        assert template.data is not None
        volumes, services = self._services.volumes, self._services
        assert volumes is not None
        births = Births(volumes.pool, services.registry, services.config.name, services.paths.intents)
        volume_name = context_object_name(name, template.name)
        await births.want_free(namespace, volume_name)
        await self._want_free(namespace, name)
        async with births.of(namespace, volume_name) as uid:
            begun_s = time.perf_counter()
            size_bytes = await self._clone(guest, source, uid)
            took_ms = (time.perf_counter() - begun_s) * 1000
            status = VolumeStatus(size_bytes=size_bytes)
            spec = volume_spec(name, template.name, template.data, size_bytes)
            volume = await births.create(uid, Birth(namespace, volume_name), spec, status)
        lifeform = await self._create(lifeform_of(context, name), volume)
        await self._end(context)
        services.events.record(lifeform, "Promoted", f"It begins with the data of the fork {context.metadata.name}.")
        return Promoted(name, lifeform.metadata.uid, volume_name, services.config.name, size_bytes, round(took_ms, 3))

    async def _child(self, live: Live) -> tuple[Context, Guest, str]:
        """A fork that runs with data of its own: its object, its guest, and its disk's name in the pool."""
        volumes = self._services.volumes
        source = await volumes.scratch.of(live.uid) if volumes is not None and live.is_fork else ""
        if not source or live.context is None or live.context.spec.template.data is None:
            raise ConflictError(
                f"Context {live.title} is no fork with data of its own, and only such a one can be promoted.",
                remedy="Make a fork of a lifeform that has `data`.",
                reason="NoData",
            )
        if live.guest is None or live.machine is None or live.freezing:
            raise TemporaryError(
                f"Context {live.title} cannot be promoted: it is {live.phase}, and has to run.", reason="NotRunning"
            )
        return live.context, live.guest, source

    async def _clone(self, guest: Guest, source: str, uid: str) -> int:
        """The disk as it is now, its file system whole. The size in bytes."""
        services = self._services
        assert services.volumes is not None
        try:
            await within(services.clock, _STILL_S, guest.freeze_data(_STILL_S))
            return (await services.volumes.pool.clone(source, uid)).size_bytes
        except TimeoutError as error:
            raise TemporaryError("The guest does not answer, so it was not promoted.", remedy="Try again.") from error
        finally:
            with contextlib.suppress(PrimordiaError, TimeoutError):  # at its deadline it goes on by itself
                await within(services.clock, _STILL_S, guest.thaw_data())

    async def _want_free(self, namespace: str, name: str) -> None:
        try:
            await self._services.registry.get(Lifeform, name, namespace)
        except NotFoundError:
            return
        raise AlreadyExistsError(f"{keys.describe(Lifeform, name, namespace)} exists already.", remedy="Choose another name.")

    async def _create(self, lifeform: Lifeform, volume: Volume) -> Lifeform:
        """The lifeform; where it cannot be, its volume goes too."""
        try:
            return await self._services.registry.create(lifeform)
        except PrimordiaError:
            meta = volume.metadata
            with contextlib.suppress(PrimordiaError):
                await self._services.registry.delete(Volume, meta.name, meta.namespace, uid=meta.uid)
            raise

    async def _end(self, context: Context) -> None:
        """The child has become the lifeform. One that cannot be deleted now ends with its parent."""
        meta = context.metadata
        try:
            await self._services.registry.delete(Context, meta.name, meta.namespace, uid=meta.uid)
        except PrimordiaError as error:
            log.warning("%s/%s was promoted, and is still there: %s", meta.namespace, meta.name, error)


def volume_spec(lifeform: str, context: str, data: Data, size_bytes: int) -> VolumeSpec:
    """The volume of a promoted fork."""
    return VolumeSpec(
        size=bytes_quantity(size_bytes),
        filesystem=data.filesystem,
        lifeform=lifeform,
        context=context,
        snapshots=data.snapshots,
    )


def lifeform_of(context: Context, name: str) -> Lifeform:
    """The lifeform that a fork becomes: its one context as the fork's was. Its parent's published ports stay the parent's."""
    spec, template = context.spec, context.spec.template
    labels = {key: value for key, value in context.metadata.labels.items() if key not in _OWN_LABELS}
    return Lifeform(
        metadata=ObjectMeta(name=name, namespace=context.metadata.namespace, labels=labels),
        spec=LifeformSpec(
            contexts=(_unpublished(template),),
            network=spec.network,
            termination_grace_period_seconds=spec.termination_grace_period_seconds,
        ),
    )


def _unpublished(template: ContextTemplate) -> ContextTemplate:
    ports = tuple(msgspec.structs.replace(port, publish=0) for port in template.ports)
    return msgspec.structs.replace(template, ports=ports)

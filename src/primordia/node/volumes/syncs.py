"""A sync: when it returns, everything that was written before it was asked for is durable on copies on other racks.

The guest writes back, the disk is cut, `acks` copies have said that they hold that very content durably, and the registry
knows of it, in this order and in one transaction that only the owner, in its epoch and with its lease, can pass. Nothing
returns before the record. Those who ask while one is under way share the next: it begins after they asked, so it has what
they wrote. A sync that reaches its deadline fails and says what it waited for; what it had cut stays, and does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from primordia.domain.snapshots import Manifest
from primordia.kit.clock import Clock
from primordia.kit.deadline import within
from primordia.kit.errors import CapacityError, ConflictError, NotFoundError, PrimordiaError, TemporaryError
from primordia.kit.metrics import Metrics
from primordia.kit.tasks import TaskSet
from primordia.node.volumes.owned import OwnedVolume
from primordia.ports.store import Compare
from primordia.registry.guarded import GuardedStore
from primordia.registry.ownership import NodeLife
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.wire.data import SyncResult
from primordia.wire.resources import Volume
from primordia.wire.volumes import HandedOver, LastSync, Replication

log = logging.getLogger(__name__)

_AGAIN_S = 0.2


class Cuts(Protocol):
    """Who snapshots a disk."""

    async def cut(self, owned: OwnedVolume) -> Manifest:
        """As it is now."""


class Copies(Protocol):
    """Who knows the copies."""

    async def until(self, uid: str, number: int, acks: int) -> tuple[str, ...]:
        """The nodes that hold the snapshot, as soon as they are `acks`."""

    def missing(self, uid: str, number: int) -> str:
        """Which do not, and why."""


@dataclass(eq=False)
class _Round:
    """One snapshot that some callers share. `waits_for` is where it is, for who loses patience."""

    ended: asyncio.Future[SyncResult]
    callers: int = 0
    waits_for: str = "its turn"
    number: int = 0
    task: asyncio.Task[None] | None = None


@dataclass
class _Group:
    """One volume's: the round under way, and the one that collects callers."""

    current: _Round | None = None
    following: _Round | None = None
    tasks: TaskSet = field(default_factory=lambda: TaskSet("sync"))


class Syncs:
    """One node's. `life` tells the node's life now, None while it holds no lease; without it the node stands alone."""

    def __init__(
        self,
        cuts: Cuts,
        copies: Copies,
        registry: Registry,
        clock: Clock,
        metrics: Metrics,
        life: Callable[[], NodeLife | None] | None,
    ) -> None:
        self._cuts = cuts
        self._copies = copies
        self._registry = registry
        self._clock = clock
        self._life = life
        self._groups: dict[str, _Group] = {}
        self._took = metrics.histogram("primordia_sync_seconds", "Time of syncs that returned, by step.", ("step",))

    async def close(self) -> None:
        """End what is under way."""
        for group in self._groups.values():
            await group.tasks.close()

    async def sync(self, owned: OwnedVolume, timeout_s: float) -> SyncResult:
        """See the data port's `sync`. CapacityError where the pool is too full to cut."""
        group = self._groups.setdefault(owned.uid, _Group())
        if group.following is None:
            group.following = _Round(asyncio.get_running_loop().create_future())
        shared = group.following
        shared.callers += 1
        self._go_on(owned, group)
        try:
            return await within(self._clock, timeout_s, _of(shared.ended))
        except TimeoutError as error:
            raise self._late(owned, shared, timeout_s) from error
        finally:
            shared.callers -= 1
            if not shared.callers and not shared.ended.done() and shared.task is not None:
                shared.task.cancel()  # nobody waits for it any more

    def _late(self, owned: OwnedVolume, shared: _Round, timeout_s: float) -> TemporaryError:
        waited = shared.waits_for
        if shared.number:
            waited = f"copies of snapshot {shared.number}: {self._copies.missing(owned.uid, shared.number)}"
        return TemporaryError(
            f"The sync of volume {owned.title} was not done within {timeout_s:g} s; it waited for {waited}.",
            remedy=f"See `primordia volume describe {owned.volume.metadata.name}`, and try again.",
            reason="SyncTimeout",
        )

    def _go_on(self, owned: OwnedVolume, group: _Group) -> None:
        """Begin the next round, if there is one and none is under way."""
        if group.current is not None or group.following is None:
            return
        group.current, group.following = group.following, None
        shared = group.current
        shared.task = group.tasks.start(self._round(owned, shared), name=owned.title)

        def done(_: object) -> None:
            group.current = None
            if not shared.ended.done():
                shared.ended.cancel()
            if group.following is not None and not group.following.callers:
                group.following = None
            self._go_on(owned, group)

        shared.task.add_done_callback(done)

    async def _round(self, owned: OwnedVolume, shared: _Round) -> None:
        while not shared.ended.done():
            try:
                result = await self._once(owned, shared)
            except (CapacityError, NotFoundError) as error:
                _fail(shared, error)
            except PrimordiaError as error:
                shared.waits_for, shared.number = f"this to pass: {error}", 0
                log.debug("volume %s: a sync begins anew: %s", owned.title, error)
                await self._clock.sleep(_AGAIN_S)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                _fail(shared, error)
                raise
            else:
                if not shared.ended.done():
                    shared.ended.set_result(result)

    async def _once(self, owned: OwnedVolume, shared: _Round) -> SyncResult:
        begun_s = self._clock.boottime()
        shared.waits_for = "the guest to write back"
        await _write_back(owned)
        flushed_s = self._clock.boottime()
        shared.waits_for, volume = "a snapshot", owned.volume
        manifest = await self._cuts.cut(owned)
        cut_s = self._clock.boottime()
        shared.number = manifest.number
        nodes = await self._copies.until(owned.uid, manifest.number, _acks(owned.volume))
        copied_s = self._clock.boottime()
        shared.waits_for, shared.number = "the engine to record it", 0
        at = timestamp(self._clock.wall())
        synced = LastSync(epoch=manifest.epoch, number=manifest.number, at=at, copies=nodes)
        stored = await self.record(volume, synced, known_as=owned.volume)
        nodes = _wanted(stored, nodes)
        steps = (flushed_s - begun_s, cut_s - flushed_s, copied_s - cut_s, self._clock.boottime() - copied_s)
        for step, seconds in zip(("flush", "cut", "copy", "record"), steps, strict=True):
            self._took.observe(seconds, step)
        return SyncResult(number=manifest.number, epoch=manifest.epoch, copies=nodes, at=at)

    async def record(
        self, volume: Volume, synced: LastSync | None, handed: HandedOver | None = None, *, known_as: Volume | None = None
    ) -> Volume:
        """Make it the volume's last sync, and the end of the hand-over that `volume` asks for; the volume as it is then.

        `known_as` is the volume as it was seen last: while that is what is stored, it need not be read.
        A copy that is wanted no more may be gone already, and counts for nothing, but where all is handed over to it.
        TemporaryError, ConflictError where it has not the owner and epoch of `volume`, another hand-over is asked for, or more
        copies than have it.
        """
        registry = self._registry
        if self._life is not None:
            life = self._life()
            if life is None:
                raise TemporaryError("This node does not hold its lease.", reason="NodeLeaseLost")
            guard = Compare(life.key, "create", life.create_revision)
            registry = Registry(GuardedStore(registry.store, [guard]), self._clock)
        meta, node, epoch = volume.metadata, volume.status.node, volume.status.epoch

        def change(stored: Volume) -> Volume:
            if (stored.metadata.uid, stored.status.node, stored.status.epoch) != (meta.uid, node, epoch):
                raise ConflictError(f"The volume {meta.namespace}/{meta.name} has another owner or epoch.", reason="NotOwner")
            known = synced
            if handed is None and known is not None:
                known = msgspec.structs.replace(known, copies=_wanted(stored, known.copies))
                if _acks(stored) > len(known.copies):
                    raise ConflictError(
                        f"The volume {meta.namespace}/{meta.name} asks for {_acks(stored)} of other copies by now."
                    )
            if handed is not None and stored.status.handover != volume.status.handover:
                raise ConflictError(f"The volume {meta.namespace}/{meta.name} is not handed over any more.")
            status = msgspec.structs.replace(stored.status, last_sync=_newer(stored.status.last_sync, known))
            if handed is not None:
                status = msgspec.structs.replace(status, handed_over=handed)
            return msgspec.structs.replace(stored, status=status)

        return await registry.mutate(Volume, meta.name, meta.namespace, change, status=True, known=known_as)


def _newer(last: LastSync | None, synced: LastSync | None) -> LastSync | None:
    if last is None or synced is None:
        return last or synced
    return synced if (last.epoch, last.number) <= (synced.epoch, synced.number) else last


def _acks(volume: Volume) -> int:
    """The copies that a sync of it waits for."""
    return (volume.spec.replication or Replication()).acks


def _wanted(volume: Volume, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the nodes that are to hold copies of it."""
    return tuple(node for node in nodes if node in volume.status.replicas)


async def _write_back(owned: OwnedVolume) -> None:
    """Have the guest write back what it holds; nothing where none runs."""
    live = owned.live
    if live is None:
        return
    if live.guest is None:
        raise TemporaryError("The guest's agent cannot be reached.", reason="GuestUnreachable")
    await live.guest.sync()


async def _of(ended: asyncio.Future[SyncResult]) -> SyncResult:
    return await asyncio.shield(ended)


def _fail(shared: _Round, error: Exception) -> None:
    if not shared.ended.done():
        shared.ended.set_exception(error)

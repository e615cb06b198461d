"""What this node holds of a dead node's volumes, said once for each death, so that the controllers know who can start what.

Invariant: what is said is whole, verified and durable here, and is said of a life that is over: the write rests on the death
and on the life that it names. An empty answer is an answer, too, for the controllers wait for everybody who lives. It is said
again when there is more to say: the dead node turns out to own another volume, or a copy was still on its way.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from primordia.domain.lease import death_key
from primordia.domain.snapshots import Manifest
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.volumes.copies.currency import Currency
from primordia.ports.store import CompactedError, Compare, Delete, KeyValue, Put, WatchBatch
from primordia.ports.volumes import Volumes
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.registry.lives import DEATHS, Held, Holding, dead_guards, holding_key, read_death
from primordia.registry.registry import Registry
from primordia.wire.resources import Volume
from primordia.wire.volumes import is_tail

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_LOOK_AGAIN_S = 5.0
_SETTLE_WITHIN_S = 0.8
"""What takes longer to be published is said afterwards: the controllers do not wait for long."""
_BY_OWNER = "owner"


@dataclass
class _Dead:
    """A death as its key says it, at revision `revision`, heard of at `heard_s`, and what was said about it last."""

    life: int
    revision: int
    heard_s: float
    said: Holding | None = None


class Holdings:
    """One node's answers. `run` gives them."""

    def __init__(
        self, pool: Volumes, registry: Registry, informers: Informers, node: str, currency: Currency | None = None
    ) -> None:
        self._pool = pool
        self._currency = currency
        self._registry = registry
        self._volumes = informers.of(Volume)
        self._volumes.index(_BY_OWNER, lambda volume: volume.status.node or None)
        self._node = node
        self._dead: dict[str, _Dead] = {}
        self._asked: set[str] = set()
        self._news = asyncio.Event()
        self._tasks = TaskSet("holdings")

    async def run(self) -> NoReturn:
        """Answer until cancelled."""
        await self._volumes.synced()
        self._volumes.subscribe(self._on_volume)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(), name="holdings/deaths")
                while True:
                    await self._answer_all()
                    if not await wait_event(self._registry.clock, self._news, _LOOK_AGAIN_S if self._dead else None):
                        self._asked |= {name for name in self._dead if self._volumes.by_index(_BY_OWNER, name)}
        finally:
            self._volumes.unsubscribe(self._on_volume)
            await self._tasks.close()
        raise AssertionError("nothing ends this but its cancellation")

    # ------------------------------------------------------------ following

    async def _follow(self) -> None:
        revision = 0
        while True:
            try:
                if not revision:
                    listing = await self._registry.store.list(DEATHS)
                    for item in listing.items:
                        self._learn(item.key, item)
                    revision = listing.revision
                async with self._registry.store.watch(DEATHS, after_revision=revision) as batches:
                    async for batch in batches:
                        await self._take(batch)
                        revision = batch.revision
            except CompactedError:
                revision = 0
            except PrimordiaError as error:
                log.warning("the deaths of nodes: %s", error)
            await self._registry.clock.sleep(_RETRY_S)

    async def _take(self, batch: WatchBatch) -> None:
        for event in batch.events:
            if event.value is not None:
                self._learn(event.key, KeyValue(event.key, event.value, event.create_revision, event.revision))
                continue
            name = event.key.removeprefix(DEATHS)
            self._dead.pop(name, None)
            await self._registry.store.txn([], [Delete(holding_key(name, self._node))])

    def _learn(self, key: str, item: KeyValue) -> None:
        name, death = key.removeprefix(DEATHS), read_death(item)
        if death is None or name == self._node:
            return
        known = self._dead.get(name)
        now = self._registry.clock.boottime()
        same = known if known is not None and known.life == death.life else _Dead(death.life, 0, now)
        self._dead[name] = _Dead(death.life, item.mod_revision, same.heard_s, same.said)
        self._ask(name)

    def _on_volume(self, change: Change[Volume]) -> None:
        owner = change.new.status.node if change.new is not None else ""
        if owner in self._dead and (change.old is None or change.old.status.node != owner):
            self._ask(owner)

    def _ask(self, name: str) -> None:
        self._asked.add(name)
        self._news.set()

    # ------------------------------------------------------------ answering

    async def _answer_all(self) -> None:
        self._news.clear()
        while self._asked:
            name = min(self._asked)
            self._asked.discard(name)
            dead = self._dead.get(name)
            if dead is None:
                continue
            try:
                await self._answer(name, dead)
            except PrimordiaError as error:
                log.warning("what is held here of node %s's volumes cannot be said yet: %s", name, error)
                await self._registry.clock.sleep(_RETRY_S)
                self._ask(name)

    async def _answer(self, name: str, dead: _Dead) -> None:
        volumes = {volume.metadata.uid: volume for volume in self._volumes.by_index(_BY_OWNER, name)}
        looks = {uid: self._tasks.start(self._held(volume, dead), name=uid) for uid, volume in volumes.items()}
        if looks:
            late = (await asyncio.wait(looks.values(), timeout=_SETTLE_WITHIN_S))[1]
            for task in late:
                task.add_done_callback(lambda _: self._ask(name))
        found = {uid: task.result() for uid, task in looks.items() if task.done() and not task.cancelled()}
        holding = Holding(dead.life, {uid: held for uid, held in found.items() if held is not None})
        if dead.said is not None and holding.volumes.items() <= dead.said.volumes.items():
            return
        guards = (*dead_guards(name, dead.life), Compare(death_key(name), "mod", dead.revision))
        put = Put(holding_key(name, self._node), msgspec.json.encode(holding))
        if (await self._registry.store.txn(guards, [put])).done:
            dead.said = holding
            log.info("node %s is dead: of its %d volumes, %d are held here", name, len(volumes), len(holding.volumes))
        elif self._dead.get(name) is dead:
            del self._dead[name]  # it lives again, or the death is another one by now, of which the watch tells

    async def _held(self, volume: Volume, dead: _Dead) -> Held | None:
        """The newest whole snapshot of a volume, once all that was acknowledged is published; None without any.

        A tail that an owner before did not have is no part of the volume any more.
        """
        uid, status = volume.metadata.uid, volume.status
        try:
            info = await self._pool.find(uid)
            if info is None:
                return None
            if info.pending:
                await self._settled(uid)
            snapshots = await self._pool.snapshots(uid)
        except PrimordiaError as error:
            log.warning("what is held here of volume %s is not known: %s", uid, error)
            return None
        newest = next(
            (each for each in reversed(snapshots) if not is_tail(status.restored_from, each.epoch, each.number)), None
        )
        if newest is None:
            return None
        known_s = self._currency.at_s(uid, status.node, newest.number) if self._currency is not None else None
        return _said(newest, None if known_s is None else max(0.0, dead.heard_s - known_s))

    async def _settled(self, uid: str) -> None:
        try:
            await self._pool.settle(uid)
        except PrimordiaError as error:
            log.warning("a delta of volume %s is not published: %s", uid, error)


def _said(manifest: Manifest, behind_s: float | None) -> Held:
    at = datetime.datetime.fromtimestamp(manifest.time_s, datetime.UTC).isoformat(timespec="milliseconds")
    behind_s = None if behind_s is None else round(behind_s, 3)
    return Held(manifest.epoch, manifest.number, manifest.root, at.replace("+00:00", "Z"), behind_s)

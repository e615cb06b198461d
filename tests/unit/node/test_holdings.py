"""What a node says that it holds of the dead: also after the store was away, or has forgotten what a watch was to tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from primordia.domain.lease import DEATHS, life_key
from primordia.drivers.store_memory import MemoryStore
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.clock import SystemClock
from primordia.kit.errors import TemporaryError
from primordia.node.volumes import holdings
from primordia.node.volumes.holdings import Holdings
from primordia.ports.store import Delete, Put
from primordia.registry.informers import Informers
from primordia.registry.lives import Death, Holding, Life, death_put, holding_key, read_holding
from primordia.registry.registry import Registry
from primordia.sim.store import FaultyStore
from primordia.testing.volumes import carry
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Volume
from primordia.wire.volumes import VolumeSpec, VolumeStatus


class Place:
    """Node n2, and a store whose faults are the test's."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.memory = MemoryStore(self.clock)
        self.faulty = FaultyStore(self.memory)
        self.sure = Registry(self.memory, self.clock)
        self.pool = MemoryVolumes(folder)
        self.informers = Informers(Registry(self.faulty, self.clock))
        self.work = Holdings(self.pool, Registry(self.faulty, self.clock), self.informers, "n2")

    async def volume(self, name: str, owner: str = "n1") -> str:
        status = VolumeStatus(node=owner, epoch=1)
        meta = ObjectMeta(name=name, namespace="default")
        return (await self.sure.create(Volume(metadata=meta, spec=VolumeSpec(size="1Mi"), status=status))).metadata.uid

    async def dies(self, node: str) -> int:
        life = (await self.memory.txn([], [Put(life_key(node), msgspec.json.encode(Life(node)))])).revision
        await self.memory.txn([], [death_put(node, Death(life=life, by="node"))])
        return life

    async def said(self, dead: str, life: int, volumes: int = 0) -> Holding:
        async with asyncio.timeout(30):
            while True:
                found = read_holding(await self.memory.get(holding_key(dead, "n2")))
                if found is not None and found.life == life and len(found.volumes) >= volumes:
                    return found
                await self.clock.sleep(0.01)


@asynccontextmanager
async def at_work(folder: Path) -> AsyncIterator[Place]:
    place = Place(folder)
    tasks = [asyncio.create_task(each) for each in (place.informers.run(), place.work.run())]
    try:
        yield place
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await place.memory.close()


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(holdings, "_RETRY_S", 0.01)
    async with at_work(tmp_path) as made:
        yield made


async def test_a_store_that_was_away_is_told_when_it_is_back(place: Place) -> None:
    await place.said("n3", await place.dies("n3"))
    place.faulty.away = True
    place.faulty.cut_watches()
    life = await place.dies("n1")
    await place.memory.compact((await place.memory.status()).revision)
    await asyncio.sleep(0.05)
    assert await place.memory.get(holding_key("n1", "n2")) is None
    place.faulty.away = False
    assert not (await place.said("n1", life)).volumes


async def test_what_was_acknowledged_and_not_published_counts(place: Place, tmp_path: Path) -> None:
    uid = await place.volume("a")
    (tmp_path / "owner").mkdir()
    owner = MemoryVolumes(tmp_path / "owner")
    await owner.create(uid, 1 << 20)
    for _ in range(2):
        manifest = await owner.cut(uid, epoch=1, always=True)
    await carry(owner, place.pool, uid, 1)
    delta = await owner.changes(uid, 2, since=1)

    async def nothing() -> AsyncIterator[object]:
        for piece in await owner.read(uid, 2, delta.ranges):
            yield piece

    assert await place.pool.accept(delta, nothing())  # type: ignore[arg-type]
    held = (await place.said("n1", await place.dies("n1"), 1)).volumes[uid]
    assert (held.number, held.root) == (2, manifest.root)


async def test_what_takes_long_is_said_afterwards(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "_SETTLE_WITHIN_S", 0.05)
    quick, slow = [await place.volume(name) for name in ("quick", "slow")]
    for uid in (quick, slow):
        await place.pool.create(uid, 1 << 20)
        await place.pool.cut(uid, epoch=1)
    real, go_on = place.pool.snapshots, asyncio.Event()

    async def snapshots(volume: str) -> object:
        if volume == slow:
            await go_on.wait()
        return await real(volume)

    monkeypatch.setattr(place.pool, "snapshots", snapshots)
    life = await place.dies("n1")
    assert set((await place.said("n1", life, 1)).volumes) == {quick}
    go_on.set()
    assert set((await place.said("n1", life, 2)).volumes) == {quick, slow}


async def test_a_pool_that_fails_is_no_reason_to_say_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = await place.volume("a")

    async def find(volume: str) -> None:
        raise TemporaryError("The pool is read-only.")

    monkeypatch.setattr(place.pool, "find", find)
    assert uid not in (await place.said("n1", await place.dies("n1"))).volumes


async def test_an_answer_goes_with_the_death(place: Place) -> None:
    await place.said("n1", await place.dies("n1"))
    await place.memory.txn([], [Delete(f"{DEATHS}n1")])
    async with asyncio.timeout(30):
        while await place.memory.get(holding_key("n1", "n2")) is not None:
            await place.clock.sleep(0.01)

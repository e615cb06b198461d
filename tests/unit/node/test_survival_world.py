"""What nodes do with data when a node dies: they say what they hold, start from it, and the dead one comes back as a holder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.domain.lease import life_key
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.node.volumes.owned import OwnedVolume
from primordia.ports.store import Put
from primordia.registry.lives import Death, Holding, Life, death_put, holding_key, read_holding
from primordia.testing.copies import CopyWorld, copy_world
from primordia.testing.volumes import content, put
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Volume
from primordia.wire.volumes import LastSync, RestoredFrom, VolumeSpec, VolumeStatus, holder_finalizer, owned_by

BLOCK = 4096


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopyWorld]:
    pools = {}
    for name in ("n1", "n2", "n3"):
        (tmp_path / name).mkdir()
        pools[name] = MemoryVolumes(tmp_path / name)
    async with copy_world(pools, tmp_path) as made:
        yield made


async def write(world: CopyWorld, node: str, uid: str, text: bytes) -> None:
    await put(await world.nodes[node].pool.disk(uid), 0, text * (BLOCK // len(text)))


async def begin_life(world: CopyWorld, node: str) -> int:
    store = world.registry.store
    return (await store.txn([], [Put(life_key(node), msgspec.json.encode(Life(node)))])).revision


async def die(world: CopyWorld, node: str, life: int) -> None:
    await world.registry.store.txn([], [death_put(node, Death(life=life, by="controllers"))])


async def said(world: CopyWorld, dead: str, node: str) -> Holding | None:
    return read_holding(await world.registry.store.get(holding_key(dead, node)))


async def answered(world: CopyWorld, dead: str, node: str, life: int, volumes: int) -> Holding:
    async with asyncio.timeout(60):
        while True:
            holding = await said(world, dead, node)
            if holding is not None and holding.life == life and len(holding.volumes) == volumes:
                return holding
            await world.clock.sleep(0.01)


async def test_the_living_say_what_they_hold_of_the_dead(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    for text in (b"1", b"2"):
        await write(world, "n1", owned.uid, text)
        manifest = await world.nodes["n1"].cutter.cut(owned)
        await world.holds("n2", owned.uid, manifest.number)
    life = await begin_life(world, "n1")
    await die(world, "n1", life)
    held = (await answered(world, "n1", "n2", life, 1)).volumes[owned.uid]
    assert (held.epoch, held.number, held.root) == (1, 2, manifest.root)
    assert held.at.endswith("Z")
    assert not (await answered(world, "n1", "n3", life, 0)).volumes
    assert await said(world, "n1", "n1") is None

    other = Volume(
        metadata=ObjectMeta(name="late", namespace="default"),
        spec=VolumeSpec(size="1Mi"),
        status=VolumeStatus(node="n1", epoch=1),
    )
    uid = (await world.registry.create(other)).metadata.uid
    await world.nodes["n3"].pool.create(uid, 1 << 20)
    await world.nodes["n3"].pool.cut(uid, epoch=1)
    assert set((await answered(world, "n1", "n3", life, 1)).volumes) == {uid}


async def test_of_a_life_that_goes_on_nothing_is_said(world: CopyWorld) -> None:
    life = await begin_life(world, "n1")
    again = await begin_life(world, "n1")
    await die(world, "n1", life)
    await die(world, "n3", await begin_life(world, "n3"))  # what was said of this one comes after what was not of that one
    async with asyncio.timeout(60):
        while await said(world, "n3", "n2") is None:
            await world.clock.sleep(0.01)
    assert await said(world, "n1", "n2") is None
    await die(world, "n1", again)
    await answered(world, "n1", "n2", again, 0)


async def take_over(world: CopyWorld, node: str, epoch: int, *replicas: str, **restored: object) -> None:
    began = RestoredFrom(epoch=epoch, node="n1", **{"number": 2, **restored})  # type: ignore[arg-type]
    await world.status(lambda s: msgspec.structs.replace(owned_by(s, node, epoch), replicas=replicas, restored_from=began))


async def test_another_goes_on_from_its_copy_and_the_dead_comes_back_as_a_holder(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    for number, text in ((1, b"1"), (2, b"2")):
        await write(world, "n1", owned.uid, text)
        await world.nodes["n1"].cutter.cut(owned)
        await world.holds("n2", owned.uid, number)
    for link in (world.nodes["n1"].links["n2"], world.nodes["n2"].links["n1"]):
        await link.cut()
    await write(world, "n1", owned.uid, b"3")
    await world.nodes["n1"].cutter.cut(owned)
    await write(world, "n1", owned.uid, b"4")

    await take_over(world, "n2", 2, "n1")
    there, back = world.nodes["n2"], world.nodes["n1"]
    await world.until(lambda: owned.uid in there.keeper.owned and there.keeper.owned[owned.uid].here)
    assert (await there.pool.disk(owned.uid)).read_bytes()[:BLOCK] == b"2" * BLOCK
    await write(world, "n2", owned.uid, b"5")
    assert (await there.cutter.cut(there.keeper.owned[owned.uid])).number == 3

    async with asyncio.timeout(60):
        while (info := await back.pool.find(owned.uid)) is None or info.written_here:
            await world.clock.sleep(0.01)
    assert [(each.epoch, each.number) for each in await back.pool.snapshots(owned.uid)] == [(1, 1), (1, 2), (1, 3)]
    assert [(each.epoch, each.number) for each in await back.pool.tails(owned.uid)] == [(1, 4)]
    await back.pool.clone(owned.uid, "orphan", number=4, tail=True)
    assert (await back.pool.disk("orphan")).read_bytes()[:BLOCK] == b"4" * BLOCK
    world.nodes["n2"].links["n1"].mend()
    async with asyncio.timeout(60):
        while [(each.epoch, each.number) for each in await back.pool.snapshots(owned.uid)] != [(1, 1), (1, 2), (2, 3)]:
            await world.clock.sleep(0.01)
    assert (await content(back.pool, owned.uid, 3))[:BLOCK] == b"5" * BLOCK
    info = await back.pool.find(owned.uid)
    assert info is not None
    # 2 as well, where the new owner had no use for it any more before it knew what is here.
    assert info.tails in ((3, 4), (2, 3, 4))


async def taken_over_without_its_newest(world: CopyWorld) -> OwnedVolume:
    """A volume of n1 that n2 owns in the next epoch from snapshot 1: cut off from it, n1 had gone on to 2."""
    one, two = world.nodes["n1"], world.nodes["n2"]
    owned = await world.volume(replicas=("n2",))
    await write(world, "n1", owned.uid, b"1")
    await one.cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    for link in (one.links["n2"], two.links["n1"]):
        await link.cut()
    await write(world, "n1", owned.uid, b"2")
    await one.cutter.cut(owned)
    await take_over(world, "n2", 2, "n1", number=1)
    await world.until(lambda: owned.uid in two.keeper.owned and two.keeper.owned[owned.uid].here)
    return owned


async def test_who_owned_it_in_between_takes_what_was_cut_before(world: CopyWorld) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    owned = await taken_over_without_its_newest(world)
    await world.until(lambda: owned.uid not in one.keeper.owned)
    await take_over(world, "n1", 3, "n2")
    await world.until(lambda: owned.uid in one.keeper.owned and one.keeper.owned[owned.uid].here)
    async with asyncio.timeout(60):
        while (info := await two.pool.find(owned.uid)) is None or info.written_here:
            await world.clock.sleep(0.01)
    assert info.epoch == 2
    for link in (one.links["n2"], two.links["n1"]):
        link.mend()
    async with asyncio.timeout(60):
        while [(each.epoch, each.number) for each in await two.pool.snapshots(owned.uid)][-1:] != [(3, 3)]:
            await world.clock.sleep(0.01)
    assert (await content(two.pool, owned.uid, 3))[:BLOCK] == b"2" * BLOCK


async def test_what_a_takeover_left_behind_does_not_come_back_with_the_next(world: CopyWorld) -> None:
    one = world.nodes["n1"]
    owned = await taken_over_without_its_newest(world)
    life = await begin_life(world, "n2")
    await die(world, "n2", life)
    held = (await answered(world, "n2", "n1", life, 1)).volumes[owned.uid]
    assert (held.epoch, held.number) == (1, 1), "2 is no part of the volume any more"

    await world.until(lambda: owned.uid not in one.keeper.owned)
    await take_over(world, "n1", 3, "n2", number=1, earlier=((2, 1),))
    await world.until(lambda: owned.uid in one.keeper.owned and one.keeper.owned[owned.uid].here)
    assert (await one.pool.disk(owned.uid)).read_bytes()[:BLOCK] == b"1" * BLOCK
    assert [(each.epoch, each.number) for each in await one.pool.tails(owned.uid)][:1] == [(1, 2)]


async def test_a_copy_behind_the_last_sync_waits_unless_that_loss_was_accepted(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    for number, text in ((1, b"1"), (2, b"2")):
        await write(world, "n1", owned.uid, text)
        await world.nodes["n1"].cutter.cut(owned)
        await world.holds("n2", owned.uid, number)
    await world.nodes["n1"].links["n2"].cut()
    await world.status(lambda s: msgspec.structs.replace(s, last_sync=LastSync(epoch=1, number=3)))
    await take_over(world, "n2", 2)
    there = world.nodes["n2"]
    await world.until(lambda: owned.uid in there.keeper.owned)
    async with there.keeper.lock(owned.uid):
        pass
    info = await there.pool.find(owned.uid)
    assert info is not None
    assert not info.written_here
    await take_over(world, "n2", 2, allow_loss=True)
    await world.until(lambda: there.keeper.owned[owned.uid].here)
    assert (await there.pool.disk(owned.uid)).read_bytes()[:BLOCK] == b"2" * BLOCK


async def test_a_disk_of_an_earlier_ownership_is_not_written_again(world: CopyWorld) -> None:
    """It had not even been let go when the volume came back to its node."""
    owned = await world.volume()
    pool = world.nodes["n1"].pool
    await write(world, "n1", owned.uid, b"1")
    await world.nodes["n1"].cutter.cut(owned)
    await write(world, "n1", owned.uid, b"2")
    async with world.nodes["n1"].keeper.lock(owned.uid):
        await take_over(world, "n2", 2)
        await world.until(lambda: owned.uid not in world.nodes["n1"].keeper.owned)
        await take_over(world, "n1", 3, number=1)
        await world.until(lambda: owned.uid in world.nodes["n1"].keeper.owned)
    again = world.nodes["n1"].keeper.owned[owned.uid]
    await world.until(lambda: again.here)
    async with asyncio.timeout(60):
        while (info := await pool.find(owned.uid)) is None or info.epoch != 3:
            await world.clock.sleep(0.01)
    assert (await pool.disk(owned.uid)).read_bytes()[:BLOCK] == b"1" * BLOCK
    assert [each.number for each in await pool.snapshots(owned.uid)] == [1]
    assert info.tails == (2,)


async def test_where_no_copy_is_wanted_only_what_its_owner_never_had_stays_until_the_end(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    back = world.nodes["n1"]
    await back.keeper.hold(owned.volume)
    for number, text in ((1, b"1"), (2, b"2")):
        await write(world, "n1", owned.uid, text)
        await back.cutter.cut(owned)
        await world.holds("n2", owned.uid, number)
    await back.links["n2"].cut()
    await write(world, "n1", owned.uid, b"3")
    await back.cutter.cut(owned)
    await write(world, "n1", owned.uid, b"4")

    await take_over(world, "n2", 2, "n3")
    await world.holds("n3", owned.uid, 2)
    async with asyncio.timeout(60):
        while (info := await back.pool.find(owned.uid)) is None or info.newest or info.written_here:
            await world.clock.sleep(0.01)
    assert info.tails == (3, 4)
    assert await back.pool.snapshots(owned.uid) == ()
    assert holder_finalizer("n1") in (await world.seen()).metadata.finalizers

    await world.registry.delete(Volume, "data", "default")
    async with asyncio.timeout(60):
        while any([await node.pool.find(owned.uid) for node in world.nodes.values()]):
            await world.clock.sleep(0.01)

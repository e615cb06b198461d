"""Copies in trouble, over real TLS on loopback: a holder's disk is full, a restore comes while syncs are under way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primordia.domain.snapshots import Manifest
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.errors import ConflictError, TemporaryError
from primordia.node.volumes.owned import OwnedVolume
from primordia.node.volumes.restoring import Intent, Restorer
from primordia.testing.copies import CopyWorld, copy_world
from primordia.testing.volumes import content, put
from primordia.wire.resources import Volume
from primordia.wire.volumes import LastSync, VolumeCopy

SIZE = 1 << 20


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopyWorld]:
    pools = {}
    for name in ("n1", "n2", "n3"):
        (tmp_path / name).mkdir()
        pools[name] = MemoryVolumes(tmp_path / name)
    async with copy_world(pools, tmp_path) as made:
        yield made


async def copy_on(world: CopyWorld, node: str, *, state: str) -> VolumeCopy:
    """Wait until the volume's status says that of a node's copy."""
    seen = None
    async with asyncio.timeout(60):
        while True:
            for each in (await world.seen()).status.copies:
                if each.node == node:
                    seen = each
                    if each.state == state:
                        return each
            await world.clock.sleep(0.05)
    raise AssertionError(seen)


async def test_a_holder_whose_disk_is_full_says_so_and_heals_when_there_is_room(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2", "n3"), acks=1)
    node, full = world.nodes["n1"], world.nodes["n2"].pool
    await put(await node.pool.disk(owned.uid), 0, b"1" * 4096)
    assert (await node.copies.syncs.sync(owned, 30.0)).number == 1
    await world.holds("n2", owned.uid, 1)
    before = await content(full, owned.uid, 1)
    await full.create("other", 512 << 20)
    await put(await full.disk("other"), 0, random.Random(1).randbytes(4096))
    assert isinstance(full, MemoryVolumes)
    full._total_bytes = (await full.pool()).used_bytes + 65536
    await put(await node.pool.disk(owned.uid), 0, random.Random(2).randbytes(512 << 10))
    result = await node.copies.syncs.sync(owned, 30.0)
    assert result.copies == ("n3",), "the other copy is enough, and is not held back"
    told = await copy_on(world, "n2", state="Failed")
    assert "room" in told.message, told
    with pytest.raises(TemporaryError) as caught:
        async with asyncio.timeout(30):
            await world.nodes["n1"].links["n3"].cut()
            await put(await node.pool.disk(owned.uid), 0, b"3" * 4096)
            await node.copies.syncs.sync(owned, 1.5)
    assert caught.value.reason == "SyncTimeout" and "room" in str(caught.value), caught.value
    assert await content(full, owned.uid, 1) == before, "what it had stays whole"
    world.nodes["n1"].links["n3"].mend()
    full._total_bytes = 1 << 30
    await copy_on(world, "n2", state="InSync")
    number = (await node.copies.syncs.sync(owned, 30.0)).number
    await world.holds("n2", owned.uid, number)
    assert await content(full, owned.uid, number) == await content(node.pool, owned.uid, number)


class Race:
    """The order in which restores and syncs reached the object: what each `_record` wrote, and when it began and ended."""

    def __init__(self, world: CopyWorld, restorer: Restorer, chance: random.Random) -> None:
        self.restored: list[tuple[float, int, int]] = []
        syncs, replicator = world.nodes["n1"].copies.syncs, world.nodes["n1"].copies.replicator
        record_sync, record_restore, until = syncs.record, restorer._record, replicator.until

        async def restored(owned: OwnedVolume, made: Manifest, intent: Intent) -> None:
            await record_restore(owned, made, intent)
            self.restored.append((world.clock.boottime(), made.epoch, made.number))

        async def synced(volume: Volume, last: LastSync, *, known_as: Volume) -> Volume:
            begun_s = world.clock.boottime()
            stored = await record_sync(volume, last, known_as=known_as)
            for ended_s, epoch, number in self.restored:
                assert ended_s > begun_s or (last.epoch, last.number) >= (epoch, number), "it has been undone"
            return stored

        async def slowly(uid: str, number: int, acks: int) -> tuple[str, ...]:
            found = await until(uid, number, acks)
            await world.clock.sleep(chance.uniform(0, 0.3))
            return found

        restorer._record, syncs.record, replicator.until = restored, synced, slowly  # type: ignore[method-assign]


async def test_a_sync_that_races_a_restore_returns_nothing_that_was_undone(world: CopyWorld) -> None:
    """What a sync records, and so returns, is not older than any restore that was recorded before; and when no restore ran
    beside it, it has what was written before."""
    owned = await world.volume(replicas=("n2", "n3"), acks=2)
    node, chance = world.nodes["n1"], random.Random(3)
    restorer = Restorer(node.keeper, node.cutter, world.registry, world.clock)
    race = Race(world, restorer, chance)
    begun, over, returned = 0, asyncio.Event(), 0

    async def sync_all_the_time(who: int) -> None:
        nonlocal returned
        turn = 0
        while not over.is_set():
            turn += 1
            mark, ran = b"%d-%d" % (who, turn), begun
            async with owned.lock:  # a guest does not write while its disk is replaced
                await put(await node.pool.disk(owned.uid), who * 65536, mark.ljust(4096, b"."))
            try:
                result = await node.copies.syncs.sync(owned, 20.0)
            except TemporaryError as error:
                assert error.reason == "SyncTimeout", error
                continue
            if begun == ran == len(race.restored):
                there = await content(node.pool, owned.uid, result.number)
                assert there[who * 65536 :].startswith(mark), "it returned without what was written before it"
            returned += 1

    async def restore_now_and_then() -> None:
        nonlocal begun
        for turn in range(8):
            before = returned
            await world.clock.sleep(chance.uniform(0.05, 0.4))
            if turn % 2:  # some come between two syncs, the others whenever
                await world.until(lambda before=before: returned > before)  # type: ignore[misc]
            numbers = [each.number for each in await node.pool.snapshots(owned.uid)]
            begun += 1
            made = None
            while made is None:
                with contextlib.suppress(ConflictError, TemporaryError):
                    made = await restorer.restore(owned, str(chance.choice(numbers)))

    await put(await node.pool.disk(owned.uid), 0, b"0" * 4096)
    await node.copies.syncs.sync(owned, 30.0)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        writers = [group.create_task(sync_all_the_time(who)) for who in range(3)]
        await group.create_task(restore_now_and_then())
        over.set()
        await asyncio.gather(*writers)
    assert len(race.restored) >= 8 and returned >= 4
    await last_sync_is_everywhere(world, owned)


async def last_sync_is_everywhere(world: CopyWorld, owned: OwnedVolume) -> None:
    """What the object promises in the end is what all copies hold, bit for bit."""
    node = world.nodes["n1"]
    result = await node.copies.syncs.sync(owned, 30.0)
    synced = (await world.seen()).status.last_sync
    assert synced is not None and (synced.epoch, synced.number) == (result.epoch, result.number)
    for name in ("n2", "n3"):
        await world.holds(name, owned.uid, result.number)
        assert await content(world.nodes[name].pool, owned.uid, result.number) == await content(
            node.pool, owned.uid, result.number
        )

"""Copies between nodes, over real TLS on loopback: pushed, resumed, seeded, put aside, synced, healed, refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primordia.domain.snapshots import Delta
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.errors import ConflictError, TemporaryError
from primordia.node.volumes.copies import sender as senders
from primordia.ports.volumes import Piece
from primordia.testing.copies import CopyWorld, copy_world
from primordia.testing.volumes import content, put, stream
from primordia.wire.copies import Current, Holding
from primordia.wire.deltas import DeltaWriter, Part
from primordia.wire.resources import Volume
from primordia.wire.volumes import Layout, Replication

SIZE = 1 << 20


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopyWorld]:
    pools = {}
    for name in ("n1", "n2", "n3"):
        (tmp_path / name).mkdir()
        pools[name] = MemoryVolumes(tmp_path / name)
    async with copy_world(pools, tmp_path) as made:
        yield made


async def write(world: CopyWorld, uid: str, at: int, data: bytes) -> None:
    await put(await world.nodes["n1"].pool.disk(uid), at, data)


async def test_each_copy_gets_what_is_cut_and_skips_what_it_missed(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2", "n3"))
    for number in range(1, 4):
        await write(world, owned.uid, number * 65536, b"%d" % number * 4096)
        assert (await world.nodes["n1"].cutter.cut(owned)).number == number
        await world.holds("n2", owned.uid, number)
    await world.holds("n3", owned.uid, 3)
    for node in ("n2", "n3"):
        pool = world.nodes[node].pool
        assert await content(pool, owned.uid, 3) == await content(world.nodes["n1"].pool, owned.uid, 3)
    link = world.nodes["n1"].links["n2"]
    await link.cut()
    for number in range(4, 7):
        await write(world, owned.uid, number * 65536, b"%d" % number * 4096)
        await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n3", owned.uid, 6)
    async with asyncio.timeout(30):
        while not any(each.state == "Unreachable" and each.message for each in (await world.seen()).status.copies):
            await world.clock.sleep(0.05)
    told = {each.node: each for each in (await world.seen()).status.copies}
    assert told["n2"].lag_snapshots >= 1
    assert (told["n2"].rack, told["n2"].segment) == ("r2", "east")
    link.mend()
    await world.holds("n2", owned.uid, 6)
    assert 4 not in [each.number for each in await world.nodes["n2"].pool.snapshots(owned.uid)]
    async with asyncio.timeout(30):
        while {each.state for each in (await world.seen()).status.copies} != {"InSync"}:
            await world.clock.sleep(0.05)


async def test_what_is_told_of_a_copy_stays_until_it_is_heard_of_again(
    world: CopyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = await world.volume(replicas=("n2", "n3"))
    await world.nodes["n1"].cutter.cut(owned, always=True)

    async def in_sync(number: int) -> None:
        async with asyncio.timeout(30):
            while {(each.state, each.number) for each in (await world.seen()).status.copies} != {("InSync", number)}:
                await world.clock.sleep(0.05)

    await in_sync(1)
    holder, asked, may_say = world.nodes["n2"].copies.holder, asyncio.Event(), asyncio.Event()
    says = holder.holding

    async def late(*who: str, **how: float) -> Holding:
        asked.set()
        await may_say.wait()
        return await says(*who, **how)

    monkeypatch.setattr(holder, "holding", late)
    replicator = world.nodes["n1"].copies.replicator
    replicator._leave(owned.uid, replicator._copies[owned.uid])
    replicator._on_volume(owned.uid)  # as a daemon that has just begun
    async with asyncio.timeout(30):
        await asked.wait()
    before = (await world.seen()).metadata.resource_version
    await world.clock.sleep(1.5)
    assert (await world.seen()).metadata.resource_version == before
    may_say.set()
    await world.nodes["n1"].cutter.cut(owned, always=True)
    await in_sync(2)


async def test_a_delta_goes_on_where_the_link_was_cut(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",), size=16 * SIZE)
    noise = random.Random(2).randbytes(7 * SIZE)
    await write(world, owned.uid, 0, noise)
    link = world.nodes["n1"].links["n2"]
    link.after = 5 * SIZE
    await world.nodes["n1"].cutter.cut(owned)
    await world.until(lambda: link.is_cut)
    pool = world.nodes["n2"].pool
    async with asyncio.timeout(30):
        while (partial := await pool.partial(owned.uid)) is None:
            await world.clock.sleep(0.02)
    assert 0 < partial.bytes_done < 7 * SIZE
    link.mend()
    before = link.carried
    await world.holds("n2", owned.uid, 1)
    assert link.carried - before < 7 * SIZE - partial.bytes_done + SIZE
    assert (await content(pool, owned.uid, 1))[: 7 * SIZE] == noise


async def test_a_new_copy_is_fetched_from_a_copy_on_the_way(world: CopyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "PUSHED_WHOLE_BYTES", SIZE)
    owned = await world.volume(replicas=("n2",), size=16 * SIZE)
    noise = random.Random(3).randbytes(6 * SIZE)
    await write(world, owned.uid, 0, noise)
    await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    await world.until(lambda: world.nodes["n1"].copies.replicator.acknowledged(owned.uid, 1) == ("n2",))
    await world.nodes["n3"].links["n1"].cut()
    await world.status(lambda status: msgspec.structs.replace(status, replicas=("n2", "n3")))
    await world.holds("n3", owned.uid, 1)
    assert world.nodes["n3"].links["n2"].carried > 0
    assert await content(world.nodes["n3"].pool, owned.uid, 1) == await content(world.nodes["n1"].pool, owned.uid, 1)


async def test_a_new_copy_keeps_to_the_bandwidth(world: CopyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "PUSHED_WHOLE_BYTES", SIZE)
    owned = await world.volume(replicas=("n2",), size=16 * SIZE)

    def limited(volume: Volume) -> Volume:
        replication = msgspec.structs.replace(volume.spec.replication, bandwidth="4Mi")
        return msgspec.structs.replace(volume, spec=msgspec.structs.replace(volume.spec, replication=replication))

    await write(world, owned.uid, 0, random.Random(3).randbytes(5 * SIZE))
    await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    await world.registry.mutate(Volume, "data", "default", limited)
    begun_s = world.clock.boottime()
    await world.status(lambda status: msgspec.structs.replace(status, replicas=("n2", "n3")))
    await world.holds("n3", owned.uid, 1)
    assert world.clock.boottime() - begun_s > (5 - 4 / 4) / 4 * 0.9


async def test_a_tail_that_the_owner_lacks_is_put_aside(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    pool, cutter = world.nodes["n1"].pool, world.nodes["n1"].cutter
    for number in (1, 2):
        await write(world, owned.uid, 0, b"%d" % number * 4096)
        await cutter.cut(owned)
        await world.holds("n2", owned.uid, number)
    await pool.quarantine(owned.uid, 2)
    await write(world, owned.uid, 0, b"3" * 4096)
    await cutter.cut(owned)
    await world.holds("n2", owned.uid, 3)
    assert [each.number for each in await world.nodes["n2"].pool.snapshots(owned.uid)] == [1, 3]
    info = await world.nodes["n2"].pool.find(owned.uid)
    assert info is not None
    assert info.aside == (2,)


async def test_who_may_not_send_is_refused(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",), epoch=5)
    await write(world, owned.uid, 0, b"1" * 4096)
    manifest = await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    delta = await world.nodes["n1"].pool.changes(owned.uid, 1)

    async def chunks(epoch: int = 5) -> AsyncIterator[bytes]:
        writer = DeltaWriter()
        other = replace(delta, manifest=replace(manifest, epoch=epoch, number=2))
        yield writer.header(other)
        for piece in await world.nodes["n1"].pool.read(owned.uid, 1, delta.ranges):
            yield writer.part(Part(piece.range, piece.data))
        yield writer.end()

    holder = world.nodes["n2"].copies.holder
    stranger = world.nodes["n3"].copies.holder
    for refused, reason in (
        (holder.deliver("n3", owned.uid, chunks(), aside=False), "NotOwner"),
        (stranger.deliver("n1", owned.uid, chunks(), aside=False), "NotAReplica"),
        (holder.deliver("n1", owned.uid, chunks(epoch=4), aside=False), "StaleEpoch"),
        (holder.deliver("n1", owned.uid, chunks(epoch=6), aside=False), "UnknownEpoch"),
        (holder.deliver("n1", "unknown", chunks(), aside=False), "UnknownVolume"),
    ):
        with pytest.raises(ConflictError) as caught:
            await refused
        assert caught.value.reason == reason
    assert await world.nodes["n3"].pool.find(owned.uid) is None
    assert [each.number for each in await world.nodes["n2"].pool.snapshots(owned.uid)] == [1]


async def test_a_sync_returns_what_copies_hold_and_many_share_one(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2", "n3"), acks=2)
    node = world.nodes["n1"]
    await write(world, owned.uid, 0, b"1" * 4096)
    results = await asyncio.gather(*(node.copies.syncs.sync(owned, 30.0) for _ in range(20)))
    assert len({each.number for each in results}) <= 2
    assert results[0].copies == ("n2", "n3")
    synced = (await world.seen()).status.last_sync
    assert synced is not None
    assert (synced.epoch, synced.number, synced.copies) == (1, results[-1].number, ("n2", "n3"))
    for name in ("n2", "n3"):
        holding = await world.nodes[name].copies.holder.holding("n1", owned.uid)
        assert holding.snapshots[-1].number >= results[0].number


async def test_a_sync_without_its_copies_fails_and_names_them(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2", "n3"), acks=2)
    node = world.nodes["n1"]
    await write(world, owned.uid, 0, b"1" * 4096)
    await node.copies.syncs.sync(owned, 30.0)
    await node.links["n3"].cut()
    await write(world, owned.uid, 0, b"2" * 4096)
    with pytest.raises(TemporaryError) as caught:
        await node.copies.syncs.sync(owned, 1.5)
    assert caught.value.reason == "SyncTimeout"
    assert "n3" in str(caught.value)
    assert "r3" in str(caught.value)
    assert "node n2" not in str(caught.value)
    synced = (await world.seen()).status.last_sync
    assert synced is not None
    assert synced.number == 1
    node.links["n3"].mend()
    assert (await node.copies.syncs.sync(owned, 30.0)).copies == ("n2", "n3")


async def test_a_sync_with_no_copy_fails(world: CopyWorld) -> None:
    owned = await world.volume()
    with pytest.raises(TemporaryError, match="no copies"):
        await world.nodes["n1"].copies.syncs.sync(owned, 0.5)
    assert (await world.seen()).status.last_sync is None


@pytest.mark.parametrize("change", [{"node": "n3"}, {"epoch": 2}])
async def test_a_sync_is_recorded_by_the_owner_in_its_epoch_alone(
    world: CopyWorld, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = await world.volume(replicas=("n2",))
    node, rounds = world.nodes["n1"], []
    until = node.copies.replicator.until

    async def and_then_it_is_another(uid: str, number: int, acks: int) -> tuple[str, ...]:
        found = await until(uid, number, acks)
        rounds.append(number)
        await world.status(lambda status: msgspec.structs.replace(status, **change))
        return found

    monkeypatch.setattr(node.copies.replicator, "until", and_then_it_is_another)
    if "node" in change:
        with pytest.raises(TemporaryError):
            await node.copies.syncs.sync(owned, 1.0)
        assert (await world.seen()).status.last_sync is None
    else:  # in the new epoch it begins anew
        await node.copies.syncs.sync(owned, 30.0)
        assert len(rounds) > 1


async def test_a_sync_that_has_too_few_copies_by_now_is_not_recorded(world: CopyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = await world.volume(replicas=("n2", "n3"))
    await write(world, owned.uid, 0, b"1" * 4096)
    node, asked = world.nodes["n1"], []
    until = node.copies.replicator.until

    async def and_then_two_are_wanted(uid: str, number: int, acks: int) -> tuple[str, ...]:
        found = (await until(uid, number, acks))[:acks]
        if not asked:
            wanted = Replication(layout=Layout(mirror=2), acks=2)
            meta = owned.volume.metadata
            await world.registry.mutate(
                Volume,
                meta.name,
                meta.namespace,
                lambda stored: msgspec.structs.replace(stored, spec=msgspec.structs.replace(stored.spec, replication=wanted)),
            )
        asked.append(acks)
        return found

    monkeypatch.setattr(node.copies.replicator, "until", and_then_two_are_wanted)
    assert (await node.copies.syncs.sync(owned, 30.0)).copies == ("n2", "n3")
    assert asked[0] == 1 and asked[-1] == 2


async def test_a_copy_that_is_wanted_no_more_is_not_promised(world: CopyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node may have deleted it while the owner's daemon stood."""
    owned = await world.volume(replicas=("n2", "n3"))
    await write(world, owned.uid, 0, b"1" * 4096)
    replicator = world.nodes["n1"].copies.replicator
    until = replicator.until

    async def and_then_one_is_let_go(uid: str, number: int, acks: int) -> tuple[str, ...]:
        found = await until(uid, number, 2)
        await world.status(lambda status: msgspec.structs.replace(status, replicas=("n3",)))
        return found

    monkeypatch.setattr(replicator, "until", and_then_one_is_let_go)
    assert (await world.nodes["n1"].copies.syncs.sync(owned, 30.0)).copies == ("n3",)
    synced = (await world.seen()).status.last_sync
    assert synced is not None and synced.copies == ("n3",)


async def test_an_owner_says_that_a_copy_is_all_there_is_and_only_then(
    world: CopyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = await world.volume(replicas=("n2",))
    node, other = world.nodes["n1"], world.nodes["n2"].copies.holder
    await write(world, owned.uid, 0, b"1" * 4096)
    manifest = await node.cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    node.copies.replicator.hurry(owned.uid, ask=True)
    await world.until(lambda: other.currency.at_s(owned.uid, "n1", 1) is not None)
    known_s = other.currency.at_s(owned.uid, "n1", 1)
    assert known_s is not None and known_s <= world.clock.boottime()
    await write(world, owned.uid, 0, b"2" * 4096)
    asked, holding = [], other.holding

    async def counted(asker: str, uid: str, *, wait_s: float = 0.0) -> Holding:
        asked.append(asker)
        return await holding(asker, uid, wait_s=wait_s)

    monkeypatch.setattr(other, "holding", counted)
    for times in (1, 2):  # a word about the first answer comes before the next question
        node.copies.replicator.hurry(owned.uid, ask=True)
        await world.until(lambda times=times: len(asked) >= times)
    assert other.currency.at_s(owned.uid, "n1", 1) == known_s, "it holds more than that by now"
    for asker, current, reason in (
        ("n3", Current(number=1, root=manifest.root, stamp=1.0), "NotOwner"),
        ("n1", Current(number=2, root=manifest.root, stamp=1.0), "NotNewest"),
    ):
        with pytest.raises(ConflictError) as caught:
            await other.current(asker, owned.uid, current)
        assert caught.value.reason == reason


async def test_damage_is_put_aside_and_healed(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    node = world.nodes["n1"]
    for number in (1, 2):
        await write(world, owned.uid, number * 65536, b"%d" % number * 4096)
        await node.cutter.cut(owned)
        await world.holds("n2", owned.uid, number)
    pool = world.nodes["n2"].pool
    assert isinstance(pool, MemoryVolumes)
    pool.corrupt(owned.uid, 2, 70000)
    result = await node.copies.scrubber.scrub(owned)
    found = {each.node: each for each in result.copies}
    assert (found["n1"].damaged, found["n1"].snapshots) == ((), 2)
    assert (found["n2"].damaged, found["n2"].healed, found["n2"].message) == ((2,), (2,), "")
    assert await pool.verify(owned.uid, 2) == ()
    assert await content(pool, owned.uid, 2) == await content(node.pool, owned.uid, 2)


async def test_words_lie_beside_a_copy(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await write(world, owned.uid, 0, b"1" * 4096)
    await world.nodes["n1"].copies.syncs.sync(owned, 30.0)
    await write(world, owned.uid, 0, b"2" * 4096)
    await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 2)
    async with asyncio.timeout(30):
        while b'"syncedNumber":1' not in (words := await world.nodes["n2"].pool.notes(owned.uid)):
            await write(world, owned.uid, 0, random.randbytes(64))
            await world.nodes["n1"].cutter.cut(owned)
            await world.clock.sleep(0.2)
    assert msgspec.json.decode(words)["owner"] == "n1"


async def test_what_an_earlier_daemon_acknowledged_is_published_though_nobody_asks(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await write(world, owned.uid, 0, b"1" * 4096)
    await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    await world.nodes["n1"].links["n2"].cut()
    await write(world, owned.uid, 65536, b"2" * 4096)
    await world.nodes["n1"].cutter.cut(owned)
    owner, holder = (world.nodes[name].pool for name in ("n1", "n2"))
    delta = await owner.changes(owned.uid, 2, since=1)
    await holder.accept(delta, stream(await owner.read(owned.uid, 2, delta.ranges)))  # and there the daemon died
    assert [each.number for each in await holder.snapshots(owned.uid)] == [1]
    await world.nodes["n2"].copies.holder.recover()
    assert [each.number for each in await holder.snapshots(owned.uid)] == [1, 2]
    assert await content(holder, owned.uid, 2) == await content(owner, owned.uid, 2)


async def test_what_is_being_given_up_is_not_promised(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await write(world, owned.uid, 0, b"1" * 4096)
    await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    holder, pool = world.nodes["n2"].copies.holder, world.nodes["n1"].pool
    accept = world.nodes["n2"].pool.accept
    await write(world, owned.uid, 0, b"2" * 4096)
    with holder.giving_up(owned.uid):
        with pytest.raises(ConflictError, match="giving its copy"):
            await holder.holding("n1", owned.uid)
        await world.nodes["n1"].cutter.cut(owned)
        await world.clock.sleep(0.3)
        assert world.nodes["n1"].copies.replicator.acknowledged(owned.uid, 2) == ()
    await world.until(lambda: world.nodes["n1"].copies.replicator.acknowledged(owned.uid, 2) == ("n2",))

    async def given_up_meanwhile(delta: Delta, pieces: AsyncIterator[Piece], *, begin: int = 0) -> bool:
        taken = await accept(delta, pieces, begin=begin)
        with holder.giving_up(owned.uid):
            pass
        return taken

    world.nodes["n2"].pool.accept = given_up_meanwhile  # type: ignore[method-assign]
    await write(world, owned.uid, 0, b"3" * 4096)
    manifest = await pool.cut(owned.uid, epoch=1)
    delta = await pool.changes(owned.uid, manifest.number, since=2)
    writer, pieces = DeltaWriter(), await pool.read(owned.uid, manifest.number, delta.ranges)
    parts = [writer.header(delta), *(writer.part(Part(each.range, each.data)) for each in pieces), writer.end()]
    with pytest.raises(ConflictError, match="giving its copy"):
        await holder.deliver("n1", owned.uid, stream(parts), aside=False)
    assert [each.number for each in (await holder.holding("n1", owned.uid)).snapshots][-1] == 3


async def test_a_hand_over_believes_no_answer_from_before_it_asked(world: CopyWorld) -> None:
    owned = await world.volume(replicas=("n2",))
    await write(world, owned.uid, 0, b"1" * 4096)
    manifest = await world.nodes["n1"].cutter.cut(owned)
    await world.holds("n2", owned.uid, 1)
    replicator, pool = world.nodes["n1"].copies.replicator, world.nodes["n2"].pool
    await world.until(lambda: replicator.acknowledged(owned.uid, 1) == ("n2",))
    asked = list[str]()
    holding = world.nodes["n2"].copies.holder.holding

    async def told(asker: str, uid: str, *, wait_s: float = 0.0) -> Holding:
        asked.append(asker)
        return await holding(asker, uid, wait_s=wait_s)

    world.nodes["n2"].copies.holder.holding = told  # type: ignore[method-assign]
    await pool.quarantine(owned.uid, 1)  # its auditor found it damaged, and the owner has not heard of it
    async with asyncio.timeout(30):
        await replicator.until_on(owned.uid, manifest.number, "n2")
    assert asked
    await world.holds("n2", owned.uid, 1)

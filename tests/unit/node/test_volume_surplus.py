"""A copy that is wanted no more goes, and never before the others have what a sync has promised."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primordia.domain.snapshots import Manifest
from primordia.drivers.store_memory import MemoryStore
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.clock import SystemClock
from primordia.kit.errors import CapacityError
from primordia.node.volumes import surplus
from primordia.node.volumes.surplus import Surplus, is_surplus, never_owned
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.conditions import Condition
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Node, NodeSpec, NodeStatus, Volume
from primordia.wire.volumes import (
    CopyState,
    LastSync,
    Layout,
    Replication,
    RestoredFrom,
    VolumeCopy,
    VolumeSpec,
    VolumeStatus,
    holder_finalizer,
)

UID = "11111111-1111-1111-1111-111111111111"
SYNC = LastSync(epoch=2, number=7, copies=("old",))


def a_volume(*copies: VolumeCopy, replicas: tuple[str, ...] = ("new",), sync: LastSync | None = SYNC) -> Volume:
    finalizers = tuple(map(holder_finalizer, ("owner", "old", *replicas)))
    return Volume(
        metadata=ObjectMeta(name="shop.main", namespace="default", uid=UID, finalizers=finalizers),
        spec=VolumeSpec(size="1Gi"),
        status=VolumeStatus(node="owner", epoch=2, replicas=replicas, copies=copies, last_sync=sync),
    )


def with_mirror(volume: Volume, mirror: int) -> Volume:
    replication = Replication(layout=Layout(mirror=mirror))
    return msgspec.structs.replace(volume, spec=msgspec.structs.replace(volume.spec, replication=replication))


def an_owner() -> Node:
    return Node(metadata=ObjectMeta(name="owner"), spec=NodeSpec(), status=NodeStatus())


async def held(folder: Path) -> tuple[MemoryStore, Registry, MemoryVolumes]:
    """A soup, and a pool with a copy of the volume in it."""
    clock = SystemClock()
    store = MemoryStore(clock)
    pool = MemoryVolumes(folder, total_bytes=1 << 26)
    await pool.create(UID, 1 << 20)
    await pool.cut(UID, epoch=1, always=True)
    await pool.release(UID)
    return store, Registry(store, clock, new_uid=lambda: UID), pool


def a_copy(state: CopyState = "InSync", number: int = 7, epoch: int = 2) -> VolumeCopy:
    return VolumeCopy(node="new", state=state, epoch=epoch, number=number)


@pytest.mark.parametrize(
    ("volume", "goes"),
    [
        (a_volume(a_copy()), True),
        (a_volume(a_copy("Behind", 8)), True),
        (a_volume(), False),
        (a_volume(a_copy("Seeding")), False),
        (a_volume(a_copy("Unreachable", 9)), False),
        (a_volume(a_copy("Failed", 9)), False),
        (a_volume(a_copy("Behind", 6)), False),
        (a_volume(a_copy("InSync", 9, 1)), False),
        (a_volume(a_copy("InSync", 1, 1), sync=None), True),
        (a_volume(replicas=()), False),
        (with_mirror(a_volume(replicas=()), 0), True),
        (with_mirror(a_volume(a_copy()), 2), False),
        (a_volume(a_copy(), replicas=("new", "old")), False),
        (msgspec.structs.replace(a_volume(a_copy()), status=VolumeStatus()), False),
    ],
)
def test_when_a_copy_may_go(volume: Volume, goes: bool) -> None:
    assert is_surplus(volume, "old") is goes
    assert not is_surplus(volume, "owner") and not is_surplus(volume, "new") and not is_surplus(volume, "stranger")


async def test_it_goes_with_its_finalizer_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surplus, "_RETRY_S", 0.01)
    clock = SystemClock()
    store = MemoryStore(clock)
    registry = Registry(store, clock, new_uid=lambda: UID)
    informers, pool = Informers(registry), MemoryVolumes(tmp_path, total_bytes=1 << 26)
    refusals = [CapacityError("The disk does not answer.")]
    destroyed = asyncio.Event()

    async def destroy(volume: str) -> None:
        if refusals:
            raise refusals.pop()
        assert volume == UID
        destroyed.set()

    monkeypatch.setattr(pool, "destroy", destroy)
    await registry.create(an_owner())
    work = Surplus(pool, registry, informers, "old")
    tasks = [asyncio.create_task(informers.run()), asyncio.create_task(work.run())]
    try:
        async with asyncio.timeout(20):
            stored = await registry.create(a_volume(a_copy("Seeding")))
            await informers.synced()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not destroyed.is_set()
            await registry.update_status(msgspec.structs.replace(stored, status=a_volume(a_copy()).status))
            await destroyed.wait()
            async with registry.watch(Volume, after_revision=0) as changes:
                async for change in changes:
                    held = change.new.metadata.finalizers if change.new is not None else ()
                    if holder_finalizer("old") not in held:
                        break
            assert held == (holder_finalizer("owner"), holder_finalizer("new"))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await store.close()


async def test_what_is_written_here_stays(tmp_path: Path) -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    registry = Registry(store, clock, new_uid=lambda: UID)
    pool = MemoryVolumes(tmp_path, total_bytes=1 << 26)
    await pool.create(UID, 1 << 20)
    await registry.create(an_owner())
    await registry.create(a_volume(a_copy()))
    assert not await Surplus(pool, registry, Informers(registry), "old")._delete("shop.main", "default", UID)
    assert await pool.find(UID) is not None
    assert holder_finalizer("old") in (await registry.get(Volume, "shop.main", "default")).metadata.finalizers
    await store.close()


async def test_it_stays_while_its_owner_is_silent_or_has_left(tmp_path: Path) -> None:
    """What the silent owner told of the other copies may be old, and a takeover may have been promised this one."""
    store, registry, pool = await held(tmp_path)
    await registry.create(a_volume(a_copy()))
    work = Surplus(pool, registry, Informers(registry), "old")
    assert not await work._delete("shop.main", "default", UID)
    stored = await registry.create(an_owner())
    for ready in ("Unknown", "False", "True"):
        reason = "NodeDead" if ready == "False" else "NodeReady" if ready == "True" else "NodeLeaseExpired"
        status = NodeStatus(conditions=(Condition(type="Ready", status=ready, reason=reason),))
        stored = await registry.update_status(msgspec.structs.replace(stored, status=status))
        assert await work._delete("shop.main", "default", UID) is (ready == "True")
        assert (await pool.find(UID) is None) is (ready == "True")
    await store.close()


async def test_nothing_is_promised_from_when_on_it_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is made a holder again between the first look and the deletion keeps what it may have promised."""
    store, registry, pool = await held(tmp_path)
    await registry.create(an_owner())
    stored = await registry.create(a_volume(a_copy()))
    refusing, seen, meddling = list[str](), list[str](), list[str]()
    read, retire = registry.get, pool.retire

    @contextmanager
    def refuse(uid: str) -> Iterator[None]:
        refusing.append(uid)
        yield
        refusing.remove(uid)

    async def get(kind: Any, name: str, namespace: str = "") -> Any:
        found = await read(kind, name, namespace)
        if kind is Volume and not meddling:
            seen.append("read, refusing" if refusing else "read")
            if len(seen) == 1:
                meddling.append(name)
                await registry.update_status(
                    msgspec.structs.replace(stored, status=msgspec.structs.replace(stored.status, replicas=("new", "old")))
                )
                meddling.clear()
        return found

    async def retired(volume: str) -> None:
        seen.append("retire, refusing" if refusing else "retire")
        await retire(volume)

    monkeypatch.setattr(registry, "get", get)
    monkeypatch.setattr(pool, "retire", retired)
    work = Surplus(pool, registry, Informers(registry), "old", refuse)
    assert await work._delete("shop.main", "default", UID)
    assert await pool.find(UID) is not None
    assert seen == ["read", "read, refusing"]
    again = await read(Volume, "shop.main", "default")
    meddling.append("again")
    await registry.update_status(msgspec.structs.replace(again, status=stored.status))
    meddling.clear()
    assert await work._delete("shop.main", "default", UID)
    assert await pool.find(UID) is None
    assert seen[2:5] == ["read", "read, refusing", "retire, refusing"]
    await store.close()


async def test_what_its_owner_never_had_stays(tmp_path: Path) -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    registry = Registry(store, clock, new_uid=lambda: UID)
    pool = MemoryVolumes(tmp_path, total_bytes=1 << 26)
    await pool.create(UID, 1 << 20)
    for _ in range(3):
        await pool.cut(UID, epoch=1, always=True)
    await pool.release(UID)
    await registry.create(an_owner())
    volume = a_volume(a_copy())
    began = RestoredFrom(epoch=2, node="old", number=1)
    await registry.create(msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, restored_from=began)))
    work = Surplus(pool, registry, Informers(registry), "old")
    for _ in range(2):
        assert await work._delete("shop.main", "default", UID)
        info = await pool.find(UID)
        assert info is not None
        assert (info.newest, info.tails) == (0, (2, 3))
        assert holder_finalizer("old") in (await registry.get(Volume, "shop.main", "default")).metadata.finalizers
    await store.close()


def test_who_slept_through_two_takeovers_knows_what_was_lost_with_the_first() -> None:
    began = RestoredFrom(epoch=3, node="second", number=50, earlier=((2, 10),))
    volume = a_volume(a_copy())
    volume = msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, restored_from=began))
    slept = [a_manifest(1, 10), a_manifest(1, 11), a_manifest(1, 12)]
    assert never_owned(volume, slept) == (11, 12)
    assert never_owned(volume, [a_manifest(1, 10), a_manifest(2, 11), a_manifest(2, 50), a_manifest(3, 51)]) == ()
    assert never_owned(volume, [a_manifest(2, 50), a_manifest(2, 51)]) == (51,)
    assert never_owned(a_volume(a_copy()), slept) == ()


def a_manifest(epoch: int, number: int) -> Manifest:
    return Manifest(UID, epoch, number, "", 1 << 20, 0.0, (), f"{epoch}-{number}")

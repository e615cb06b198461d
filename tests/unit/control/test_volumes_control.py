"""Volumes and their controllers: made, adopted, bound, copied, refused, and cut off anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from primordia.kit.errors import NotFoundError
from primordia.registry.rules import timestamp
from primordia.sim.objects import make_lifeform, make_node, make_pool
from primordia.testing.control import ControlWorld, phase_is, play
from primordia.wire.conditions import NODE_DEAD, find
from primordia.wire.meta import Condition, ObjectMeta
from primordia.wire.resources import Context, Lifeform, Node, Volume
from primordia.wire.volumes import Data, Layout, Replication, VolumeCopy, VolumeSpec, VolumeStatus, holder_finalizer

Check = Callable[[], Awaitable[bool]]
RACKS = tuple(make_node(f"n{i}", rack=f"r{i}", pool="10Gi") for i in (1, 2, 3))


async def volume_of(world: ControlWorld, name: str = "shop.main") -> Volume | None:
    with contextlib.suppress(NotFoundError):
        return await world.sure.get(Volume, name, "default")
    return None


async def the_volume(world: ControlWorld, name: str = "shop.main") -> Volume:
    found = await volume_of(world, name)
    assert found is not None
    return found


def volume_is(world: ControlWorld, holds: Callable[[Volume], bool], name: str = "shop.main") -> Check:
    async def check() -> bool:
        found = await volume_of(world, name)
        return found is not None and holds(found)

    return check


def protection_is(world: ControlWorld, reason: str, name: str = "shop.main") -> Check:
    return volume_is(world, lambda volume: _said(volume)[0] == reason, name)


def _said(volume: Volume) -> tuple[str, str]:
    found = find(volume.status.conditions, "Protected")
    return (found.reason, found.message) if found is not None else ("", "")


async def scheduled(world: ControlWorld, name: str = "shop") -> Condition:
    lifeform = await world.lifeform(name)
    assert lifeform is not None
    found = find(lifeform.status.conditions, "Scheduled")
    assert found is not None
    return found


def waits_because(world: ControlWorld, words: str, name: str = "shop") -> Check:
    async def check() -> bool:
        lifeform = await world.lifeform(name)
        found = find(lifeform.status.conditions, "Scheduled") if lifeform is not None else None
        return found is not None and found.status == "False" and words in found.message

    return check


async def change_node(world: ControlWorld, name: str, **fields: Any) -> None:
    def changed(node: Node) -> Node:
        return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, **fields))

    await world.sure.mutate(Node, name, "", changed, status=True)


async def change_spec(world: ControlWorld, name: str, **fields: Any) -> None:
    def changed(lifeform: Lifeform) -> Lifeform:
        return msgspec.structs.replace(lifeform, spec=msgspec.structs.replace(lifeform.spec, **fields))

    await world.sure.mutate(Lifeform, name, "default", changed)


async def tell(world: ControlWorld, name: str = "shop.main", **fields: Any) -> None:
    """What the owner's daemon, or a restore, writes."""

    def told(volume: Volume) -> Volume:
        return msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, **fields))

    await world.sure.mutate(Volume, name, "default", told, status=True)


def gone(world: ControlWorld, name: str) -> Check:
    async def check() -> bool:
        return await world.lifeform(name) is None

    return check


def test_data_comes_with_a_lifeform_and_outlives_it_and_is_taken_up_again() -> None:
    async def story(world: ControlWorld) -> None:
        replication = Replication(layout=Layout(mirror=2))
        await world.sure.create(make_lifeform("shop", "redis", "db", data="1Gi", replication=replication))
        await world.until(phase_is(world, "shop", "Running"))
        lifeform, contexts = await world.lifeform("shop"), await world.contexts()
        assert lifeform is not None
        for name in ("redis", "db"):
            volume, context = await the_volume(world, f"shop.{name}"), contexts[f"shop.{name}"]
            status = volume.status
            assert (status.node, status.epoch, status.phase) == (lifeform.status.node, 1, "Bound")
            assert (context.spec.volume, context.spec.volume_uid) == (volume.metadata.name, volume.metadata.uid)
            assert volume.metadata.owner_references == (), "it outlives its lifeform"
            spec = volume.spec
            assert (spec.size, spec.lifeform, spec.context, spec.replication) == ("1Gi", "shop", name, replication)
        before = await the_volume(world, "shop.redis")
        await world.sure.delete(Lifeform, "shop", "default")
        await world.until(gone(world, "shop"))
        await world.until(volume_is(world, lambda volume: volume.status.phase == "Available", "shop.redis"))

        await change_node(world, before.status.node, allocatable=make_node("x", memory="1Gi").status.allocatable)
        await world.sure.create(make_lifeform("shop", "redis", data="2Gi"))
        await world.until(phase_is(world, "shop", "Running"))
        after, lifeform = await the_volume(world, "shop.redis"), await world.lifeform("shop")
        assert lifeform is not None
        assert after.metadata.uid == before.metadata.uid
        assert lifeform.status.node == before.status.node, "others have more room, and not its data"
        assert (after.status.epoch, lifeform.status.epoch) == (2, 2)
        assert (after.spec.size, after.spec.replication) == ("2Gi", None)
        assert "its data is there." in str(await world.events())

    play(story, nodes=RACKS)


def test_a_lifeform_goes_nowhere_but_to_its_data() -> None:
    async def story(world: ControlWorld) -> None:
        volume = Volume(
            metadata=ObjectMeta(name="shop.main", namespace="default"),
            spec=VolumeSpec(size="1Gi"),
            status=VolumeStatus(node="n2", epoch=7),
        )
        await world.sure.create(volume)
        await change_node(world, "n2", conditions=(Condition(type="Ready", status="Unknown"),))
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(waits_because(world, "2 do not have its data, which is on n2"))
        await world.until(volume_is(world, lambda volume: volume.status.phase == "Unknown"))
        await world.clock.sleep(3600)
        assert not await world.contexts()
        await change_node(world, "n2", conditions=(Condition(type="Ready", status="True"),))
        await world.until(phase_is(world, "shop", "Running"))
        lifeform = await world.lifeform("shop")
        assert lifeform is not None
        assert (lifeform.status.node, lifeform.status.epoch) == ("n2", 8), "above every epoch its data has seen"
        assert (await the_volume(world)).spec.lifeform == "shop"

    play(story, nodes=RACKS)


def test_new_data_counts_against_the_room_of_the_pools() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="4Gi"))
        await world.until(waits_because(world, "1 has no healthy pool for its data"))
        message = (await scheduled(world)).message
        assert "1 has not enough room in the pool (wants 4Gi, has 1.9Gi free)" in message
        assert await volume_of(world) is None
        await change_node(world, "n2", pool=make_pool(8 * 2**30))
        await world.until(phase_is(world, "shop", "Running"))
        assert (await the_volume(world)).status.node == "n2"

    play(story, nodes=(make_node("n1"), make_node("n2", pool="2Gi")))


def test_data_that_is_added_later_is_made_where_the_lifeform_is() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(phase_is(world, "shop", "Running"))
        lifeform = await world.lifeform("shop")
        assert lifeform is not None
        node = lifeform.status.node
        await change_node(world, node, pool=make_pool(2**30))
        await change_spec(world, "shop", contexts=make_lifeform("shop", data="2Gi").spec.contexts)
        await world.until(waits_because(world, f"Its data has to wait: {node} has not enough room in the pool"))
        assert (await world.contexts())["shop.main"].spec.template.data is None, "it goes on as it was"
        await change_node(world, node, pool=make_pool(2**33))
        await world.until(volume_is(world, lambda volume: volume.status.node == node))

        async def given() -> bool:
            return (await world.contexts())["shop.main"].spec.volume == "shop.main"

        await world.until(given)
        assert (await the_volume(world)).status.epoch == 1

    play(story, nodes=RACKS)


def test_a_restore_begins_an_epoch_of_lifeform_contexts_and_all_its_volumes() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", "redis", "db", data="1Gi"))
        await world.until(phase_is(world, "shop", "Running"))
        await tell(world, "shop.db", epoch=2, number=9)

        async def agreed() -> bool:
            lifeform = await world.lifeform("shop")
            assert lifeform is not None
            epochs = {lifeform.status.epoch, *(each.spec.epoch for each in (await world.contexts()).values())}
            for name in ("shop.redis", "shop.db"):
                epochs.add((await the_volume(world, name)).status.epoch)
            return epochs == {3}

        await world.until(agreed)
        assert (await the_volume(world, "shop.db")).status.number == 9, "what the daemon said stays"

    play(story, nodes=RACKS)


def test_what_cannot_be_had_is_said() -> None:
    async def story(world: ControlWorld) -> None:
        for name, node, filesystem in (("shop.main", "n1", "xfs"), ("far.a", "n1", "ext4"), ("far.b", "n2", "ext4")):
            volume = Volume(
                metadata=ObjectMeta(name=name, namespace="default"),
                spec=VolumeSpec(size="1Gi", filesystem=filesystem),  # type: ignore[arg-type]
                status=VolumeStatus(node=node, epoch=1),
            )
            await world.sure.create(volume)
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(waits_because(world, "Volume shop.main has xfs, and contexts[main].data asks for ext4"))
        await world.sure.create(make_lifeform("far", "a", "b", data="1Gi"))
        await world.until(waits_because(world, "Volume far.a is on n1, Volume far.b is on n2", "far"))
        assert not await world.contexts()

    play(story, nodes=RACKS)


def test_a_volume_that_vanishes_under_its_lifeform_is_not_made_anew() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(phase_is(world, "shop", "Running"))
        await world.sure.delete(Volume, "shop.main", "default")
        await world.until(waits_because(world, "Volume shop.main, which it ran with, is gone"))
        assert await volume_of(world) is None
        await world.sure.delete(Lifeform, "shop", "default")
        await world.until(gone(world, "shop"))
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(phase_is(world, "shop", "Running"))

    play(story, nodes=RACKS)


def test_a_volume_being_destroyed_is_waited_for() -> None:
    async def story(world: ControlWorld) -> None:
        meta = ObjectMeta(name="shop.main", namespace="default", finalizers=(holder_finalizer("n1"), holder_finalizer("lost")))
        volume = Volume(metadata=meta, spec=VolumeSpec(size="1Gi"), status=VolumeStatus(node="n1", epoch=1))
        await world.sure.create(volume)
        await world.sure.delete(Volume, "shop.main", "default")
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(waits_because(world, "Volume shop.main is being destroyed"))
        held = (holder_finalizer("n1"),)
        await world.until(volume_is(world, lambda each: each.metadata.finalizers == held))  # "lost" is no node of the soup

        def freed(stored: Volume) -> Volume:
            return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(stored.metadata, finalizers=()))

        await world.sure.mutate(Volume, "shop.main", "default", freed)
        await world.until(phase_is(world, "shop", "Running"))

    play(story, nodes=RACKS)


def test_the_end_of_a_volume_does_not_wait_for_a_node_that_leaves() -> None:
    async def story(world: ControlWorld) -> None:
        meta = ObjectMeta(name="shop.main", namespace="default", finalizers=(holder_finalizer("n3"),))
        await world.sure.create(Volume(metadata=meta, spec=VolumeSpec(size="1Gi"), status=VolumeStatus(node="n1", epoch=1)))
        await world.sure.delete(Volume, "shop.main", "default")
        await world.clock.sleep(60)
        assert await volume_of(world) is not None
        await world.sure.delete(Node, "n3")

        async def is_gone() -> bool:
            return await volume_of(world) is None

        await world.until(is_gone)

    play(story, nodes=RACKS)


def test_copies_are_placed_apart_and_the_condition_says_how_it_is() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi", replication=Replication(layout=Layout(mirror=2))))
        await world.until(volume_is(world, lambda volume: len(volume.status.replicas) == 2))
        volume = await the_volume(world)
        assert {volume.status.node, *volume.status.replicas} == {"n1", "n2", "n3"}
        assert _said(volume)[0] == "Degraded" and "0 of 2 copies are good" in _said(volume)[1]
        good = tuple(VolumeCopy(node=name, state="InSync") for name in volume.status.replicas)
        await tell(world, copies=good)
        await world.until(protection_is(world, "Protected"))
        for name in volume.status.replicas:
            assert f"{name} (r{name[1:]})" in _said(await the_volume(world))[1]
        late = msgspec.structs.replace(good[0], state="Behind", lag_seconds=99)
        await tell(world, copies=(late, good[1]))
        await world.until(protection_is(world, "Degraded"))
        assert "is 99 s behind" in _said(await the_volume(world))[1]
        down = msgspec.structs.replace(good[0], state="Failed", message="Its pool is full.")
        await tell(world, copies=(down, good[1]))
        await world.until(volume_is(world, lambda each: "has failed (Its pool is full)" in _said(each)[1]))
        assert (await the_volume(world)).status.replicas == volume.status.replicas, "it heals where it is"
        told = [reason for reason, _ in await world.events() if reason in ("Protected", "Degraded")]
        assert sorted(told) == ["Degraded", "Protected"], "that its first copies are yet to be made is no event"

    play(story, nodes=RACKS)


def test_without_a_second_rack_there_is_no_copy_until_there_is_one() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(protection_is(world, "Unprotected"))
        assert "has not two racks" in _said(await the_volume(world))[1]
        await world.sure.create(make_node("n9", rack="r9", pool="10Gi"))
        await world.until(volume_is(world, lambda volume: volume.status.replicas == ("n9",)))

    play(story, nodes=(make_node("n1", rack="r1", pool="10Gi"), make_node("n2", rack="r1", pool="10Gi")))


def test_asking_for_more_copies_than_racks_says_so_and_asking_for_none_too() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi", replication=Replication(layout=Layout(mirror=5))))
        await world.until(volume_is(world, lambda volume: len(volume.status.replicas) == 2))
        assert "2 of 5 copies have a place: each needs a rack of its own" in _said(await the_volume(world))[1]
        await change_spec(world, "shop", replication=Replication(layout=Layout(mirror=0)))
        await world.until(volume_is(world, lambda volume: volume.status.replicas == ()))
        await world.until(protection_is(world, "Unprotected"))
        assert "layout.mirror is 0" in _said(await the_volume(world))[1]

    play(story, nodes=RACKS)


def test_a_copy_stays_while_its_node_is_away_and_goes_elsewhere_when_that_leaves() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(volume_is(world, lambda volume: len(volume.status.replicas) == 1))
        volume = await the_volume(world)
        (holder,) = volume.status.replicas
        (other,) = {"n1", "n2", "n3"} - {volume.status.node, holder}
        silent = (Condition(type="Ready", status="Unknown"),)
        await change_node(world, holder, conditions=silent, pool=make_node("x").status.pool)
        await world.clock.sleep(3600)
        assert (await the_volume(world)).status.replicas == (holder,)
        await world.sure.delete(Node, holder)
        await world.until(volume_is(world, lambda each: each.status.replicas == (other,)))
        # When the owner itself has left, nobody knows where it lay: what there is of it stays where it is.
        await world.sure.delete(Node, volume.status.node)
        await world.until(volume_is(world, lambda each: each.status.phase == "Unknown"))
        assert (await the_volume(world)).status.replicas == (other,)

    play(story, nodes=RACKS)


async def the_time(world: ControlWorld) -> str:
    return timestamp(world.clock.wall())


async def dies(world: ControlWorld, name: str) -> None:
    said = Condition(type="Ready", status="False", reason=NODE_DEAD, last_transition_time=await the_time(world))
    await change_node(world, name, conditions=(said,))


async def lives(world: ControlWorld, name: str) -> None:
    await change_node(world, name, conditions=(Condition(type="Ready", status="True"),))


def test_a_copy_on_a_node_that_stays_dead_is_made_elsewhere() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(volume_is(world, lambda volume: len(volume.status.replicas) == 1))
        volume = await the_volume(world)
        (holder,) = volume.status.replicas
        (other,) = {"n1", "n2", "n3"} - {volume.status.node, holder}
        await tell(world, copies=(VolumeCopy(node=holder, state="InSync"),))
        await world.until(protection_is(world, "Protected"))
        await dies(world, holder)
        await world.until(protection_is(world, "Degraded"))
        assert "is on a dead node" in _said(await the_volume(world))[1]
        await world.clock.sleep(40)
        assert (await the_volume(world)).status.replicas == (holder,), "it may only have been restarted"
        await lives(world, holder)
        await world.clock.sleep(100)
        assert (await the_volume(world)).status.replicas == (holder,)
        await dies(world, holder)
        await world.until(volume_is(world, lambda each: each.status.replicas == (other,)))
        await dies(world, other)
        await world.clock.sleep(100)
        assert (await the_volume(world)).status.replicas == (other,), "nowhere else is a place, and it may come back"
        await lives(world, holder)
        await world.until(volume_is(world, lambda each: each.status.replicas == (holder,)))

    play(story, nodes=RACKS)


def test_nothing_is_made_elsewhere_while_its_owner_is_dead() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(volume_is(world, lambda volume: len(volume.status.replicas) == 1))
        volume = await the_volume(world)
        for name in (volume.status.node, *volume.status.replicas):
            await dies(world, name)
        await world.clock.sleep(300)
        assert (await the_volume(world)).status.replicas == volume.status.replicas

    play(story, nodes=RACKS)


def test_who_holds_data_of_it_already_is_chosen_first() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(volume_is(world, lambda volume: len(volume.status.replicas) == 1))
        volume = await the_volume(world)
        (holder,) = volume.status.replicas
        (other,) = {"n1", "n2", "n3"} - {volume.status.node, holder}

        def held(stored: Volume) -> Volume:
            return msgspec.structs.replace(
                stored, metadata=msgspec.structs.replace(stored.metadata, finalizers=(holder_finalizer(other),))
            )

        await world.sure.mutate(Volume, "shop.main", "default", held)
        await world.sure.create(make_node("n4", rack="r4", pool="100Gi"))
        await dies(world, holder)
        await world.until(volume_is(world, lambda each: each.status.replicas == (other,)))

    play(story, nodes=RACKS)


def test_the_copies_of_one_lifeform_lie_together() -> None:
    """So that one node holds all that a failover needs; the emptiest pool would be another one for the second."""

    async def story(world: ControlWorld) -> None:
        made = make_lifeform("shop", data="4Gi")
        (main,) = made.spec.contexts
        contexts = (main, msgspec.structs.replace(main, name="side"))
        await world.sure.create(msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, contexts=contexts)))
        for name in ("shop.main", "shop.side"):
            await world.until(volume_is(world, lambda volume: len(volume.status.replicas) == 1, name))
        assert (await the_volume(world, "shop.main")).status.replicas == (await the_volume(world, "shop.side")).status.replicas

    play(story, nodes=RACKS)


def test_many_volumes_spread_though_their_disks_are_still_empty() -> None:
    async def story(world: ControlWorld) -> None:
        for number in range(9):
            await world.sure.create(make_lifeform(f"l{number}", data="1Gi"))
        for number in range(9):
            await world.until(volume_is(world, lambda each: bool(each.status.replicas), f"l{number}.main"))
        held = [name for each in (await world.sure.list(Volume)).items for name in each.status.replicas]
        # Whoever has the data of the last cannot have its copy, so it may be one more here and one less there.
        assert all(2 <= held.count(name) <= 4 for name in ("n1", "n2", "n3")), held

    play(story, nodes=RACKS)


def test_a_volume_of_nobody_gets_a_place_and_a_lifeform_follows_it() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(Volume(metadata=ObjectMeta(name="shop.main", namespace="default"), spec=VolumeSpec(size="1Gi")))
        await world.until(volume_is(world, lambda volume: volume.status.phase == "Available"))
        volume = await the_volume(world)
        await change_node(world, volume.status.node, allocatable=make_node("x", memory="1Gi").status.allocatable)
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(phase_is(world, "shop", "Running"))
        lifeform = await world.lifeform("shop")
        assert lifeform is not None and lifeform.status.node == volume.status.node

    play(story, nodes=RACKS)


def test_snapshots_of_one_volume_follow_the_manifest() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(phase_is(world, "shop", "Running"))
        policy = msgspec.structs.replace(Data(size="1Gi").snapshots, interval="7s", quiesce=True)
        context = make_lifeform("shop", data="3Gi").spec.contexts[0]
        data = Data(size="3Gi", snapshots=policy)
        await change_spec(world, "shop", contexts=(msgspec.structs.replace(context, data=data),))
        await world.until(volume_is(world, lambda volume: volume.spec.snapshots == policy and volume.spec.size == "3Gi"))

    play(story, nodes=RACKS)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("cut_at", range(1, 26))
def test_every_interrupted_prefix_with_data_converges(cut_at: int, after: bool) -> None:
    async def story(world: ControlWorld) -> None:
        world.store.cut_at, world.store.cut_after = cut_at, after

        async def reach(condition: Check) -> None:
            async def check() -> bool:
                if world.died.is_set():
                    await world.kill()
                    await world.start()
                return await condition()

            await world.until(check)

        await world.sure.create(make_lifeform("shop", "redis", "db", data="1Gi"))
        await reach(phase_is(world, "shop", "Running"))
        first = await the_volume(world, "shop.redis")
        await world.sure.delete(Lifeform, "shop", "default")
        await reach(gone(world, "shop"))
        await world.sure.create(make_lifeform("shop", "redis", "db", data="1Gi"))
        await reach(phase_is(world, "shop", "Running"))
        for name in ("shop.redis", "shop.db"):
            await reach(volume_is(world, lambda volume: len(volume.status.replicas) == 1, name))
            volume = await the_volume(world, name)
            assert (volume.status.node, volume.status.epoch, volume.status.phase) == (first.status.node, 2, "Bound")

    play(story, nodes=RACKS)


def test_a_job_that_starts_again_in_a_new_epoch_waits_for_its_room() -> None:
    """Its program had ended and its memory was another's; a restore has it run once more."""

    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi", memory="5Gi", restart_policy="Never"))
        await world.until(phase_is(world, "shop", "Running"))

        def ended(context: Context) -> Context:
            generation = context.metadata.generation
            status = msgspec.structs.replace(context.status, phase="Succeeded", ready=False, observed_generation=generation)
            return msgspec.structs.replace(context, status=status)

        await world.sure.mutate(Context, "shop.main", "default", ended, status=True)
        await world.until(phase_is(world, "shop", "Succeeded"))
        await world.sure.create(make_lifeform("other", memory="5Gi"))
        await world.until(phase_is(world, "other", "Running"))
        await tell(world, epoch=2)
        await world.until(waits_because(world, "The change has to wait: n1 has not enough memory"))
        context = (await world.contexts())["shop.main"]
        assert (context.spec.epoch, (await the_volume(world)).status.epoch) == (1, 3)
        await world.sure.delete(Lifeform, "other", "default")

        async def begun() -> bool:
            return (await world.contexts())["shop.main"].spec.epoch == 3

        await world.until(begun)

    play(story, nodes=RACKS[:1])

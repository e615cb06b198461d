"""Lifeforms that are moved by request: in order, cut off anywhere, taken back, refused, and with a target that dies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from primordia.control.scheduler import Scheduler
from primordia.registry.ownership import Owner, owner_key, read_owner
from primordia.sim.objects import make_lifeform, make_node
from primordia.testing.control import ControlWorld, phase_is, play
from primordia.wire.meta import ANNOTATION_MOVE, Condition
from primordia.wire.resources import Context, Lifeform, Moving, Node, Volume
from primordia.wire.volumes import Layout, Replication

Check = Callable[[], Awaitable[bool]]
RACKS = tuple(make_node(f"n{i}", rack=f"r{i}", pool="10Gi") for i in (1, 2, 3))


async def the_lifeform(world: ControlWorld, name: str = "shop") -> Lifeform:
    found = await world.lifeform(name)
    assert found is not None
    return found


async def the_volume(world: ControlWorld) -> Volume:
    return await world.sure.get(Volume, "shop.main", "default")


async def wish(world: ControlWorld, to: str | None, name: str = "shop") -> None:
    """Ask for a move, or (None) take the wish back."""

    def wished(lifeform: Lifeform) -> Lifeform:
        annotations = {key: value for key, value in lifeform.metadata.annotations.items() if key != ANNOTATION_MOVE}
        if to is not None:
            annotations[ANNOTATION_MOVE] = to
        meta = msgspec.structs.replace(lifeform.metadata, annotations=annotations)
        return msgspec.structs.replace(lifeform, metadata=meta)

    await world.sure.mutate(Lifeform, name, "default", wished)


async def change_node(world: ControlWorld, name: str, *, ready: str = "True", **spec: Any) -> None:
    def changed(node: Node) -> Node:
        conditions = (Condition(type="Ready", status=ready),)
        return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, conditions=conditions))

    await world.sure.mutate(Node, name, "", changed, status=True)
    if spec:
        await world.sure.mutate(
            Node, name, "", lambda node: msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, **spec))
        )


def moving_is(world: ControlWorld, phase: str) -> Check:
    async def check() -> bool:
        moving = (await the_lifeform(world)).status.moving
        return moving is not None and moving.phase == phase

    return check


def settled_on(world: ControlWorld, node: str, name: str = "shop") -> Check:
    """The move is over, and the lifeform runs there."""

    async def check() -> bool:
        lifeform = await world.lifeform(name)
        if lifeform is None or lifeform.status.moving is not None or ANNOTATION_MOVE in lifeform.metadata.annotations:
            return False
        return lifeform.status.node == node and lifeform.status.phase == "Running"

    return check


async def given_up(world: ControlWorld) -> Moving:
    await world.until(moving_is(world, "GivenUp"))
    await world.until(phase_is(world, "shop", "Running"))
    lifeform = await the_lifeform(world)
    assert lifeform.status.moving is not None
    assert ANNOTATION_MOVE not in lifeform.metadata.annotations
    return lifeform.status.moving


async def running_shop(world: ControlWorld, *, data: str = "", **spec: Any) -> Lifeform:
    world.pretend_disks()
    await world.sure.create(make_lifeform("shop", data=data, **spec))
    await world.until(phase_is(world, "shop", "Running"))
    if data:

        async def copied() -> bool:
            return bool((await the_volume(world)).status.copies)

        await world.until(copied)
    return await the_lifeform(world)


async def others(world: ControlWorld) -> tuple[str, str]:
    """Of three nodes, the one that holds the copy and the one that has nothing."""
    volume = await the_volume(world)
    (holder,) = volume.status.replicas
    (bare,) = {"n1", "n2", "n3"} - {holder, volume.status.node}
    return holder, bare


async def is_whole_at(world: ControlWorld, node: str, epoch: int) -> None:
    """Lifeform, contexts, volume and owner all say the same."""
    lifeform, contexts = await the_lifeform(world), await world.contexts()
    assert (lifeform.status.node, lifeform.status.epoch) == (node, epoch)
    spec = contexts["shop.main"].spec
    assert (spec.node, spec.epoch, spec.wanted) == (node, epoch, "Running")
    assert read_owner(await world.memory.get(owner_key(lifeform.metadata.uid))) == Owner(node, epoch)


def test_without_data_it_stops_there_and_starts_here() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world)
        await wish(world, "node/n3" if before.status.node != "n3" else "node/n1")
        to = "n3" if before.status.node != "n3" else "n1"
        await world.until(settled_on(world, to))
        await is_whole_at(world, to, before.status.epoch + 1)
        moved = (await the_lifeform(world)).status.moved
        assert moved is not None and (moved.from_node, moved.to, moved.epoch) == (before.status.node, to, 2)
        assert ("Moved" in dict(await world.events())) and moved.blackout_seconds >= 0
        uid = before.metadata.uid
        assert world.controllers is not None
        ledger = world.controllers.scheduler.ledger
        assert (ledger.node_of(uid), ledger.node_of(f"{uid}/moving")) == (to, ""), "its old place is free"
        assert ledger.used(before.status.node).contexts == 0

    play(story, nodes=RACKS)


def test_data_is_there_before_it_stops_and_all_of_it_before_it_is_handed_over() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi")
        holder, bare = await others(world)
        world.disks.stuck.add(bare)
        await wish(world, f"node/{bare}")
        await world.until(moving_is(world, "Seeding"))
        await world.clock.sleep(60)
        lifeform, contexts = await the_lifeform(world), await world.contexts()
        assert lifeform.status.moving is not None and lifeform.status.moving.phase == "Seeding", "it runs while it is seeded"
        assert bare in lifeform.status.moving.message
        assert contexts["shop.main"].spec.wanted == "Running"
        assert set((await the_volume(world)).status.replicas) == {holder, bare}

        world.disks.stuck.clear()
        world.disks.look()
        await world.until(settled_on(world, bare))
        await is_whole_at(world, bare, 2)
        assert world.disks.deeds.index(("whole", bare)) < world.disks.deeds.index(("handed over", bare))
        volume = await the_volume(world)
        assert (volume.status.node, volume.status.epoch) == (bare, 2)
        assert volume.status.handover is None and volume.status.last_sync is not None
        assert bare not in volume.status.replicas and len(volume.status.replicas) == 1
        assert before.status.node in volume.status.replicas or holder in volume.status.replicas

    play(story, nodes=RACKS)


def test_elsewhere_is_where_a_copy_lies_and_the_old_place_keeps_one() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi")
        holder, _ = await others(world)
        await wish(world, "elsewhere")
        await world.until(settled_on(world, holder))
        volume = await the_volume(world)
        assert volume.status.replicas == (before.status.node,), "its data is there already: nothing is seeded anew"

    play(story, nodes=RACKS)


def test_by_rack_and_segment() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world)
        to = next(node for node in RACKS if node.metadata.name != before.status.node)
        name = to.metadata.name
        await wish(world, f"rack/r{name[1:]}")
        await world.until(settled_on(world, name))
        await wish(world, "segment/west")
        moving = await given_up(world)
        assert "segment=west" in moving.message

    play(story, nodes=RACKS)


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("node/n9", "There is no node n9"),
        ("nowhere", "is no node/NAME"),
        ("node/", "is no node/NAME"),
        ("rack/r9", "rack=r9"),
    ],
)
def test_what_cannot_be_is_refused_by_name(to: str, says: str) -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi")
        await wish(world, to)
        moving = await given_up(world)
        assert says in moving.message
        await is_whole_at(world, before.status.node, before.status.epoch)
        assert any(reason == "MoveGivenUp" and says in message for reason, message in await world.events())

    play(story, nodes=RACKS)


def test_its_own_node_a_cordoned_one_and_one_without_room_are_refused() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, memory="2Gi")
        await wish(world, f"node/{before.status.node}")
        assert "is where it is now" in (await given_up(world)).message
        other = next(node.metadata.name for node in RACKS if node.metadata.name != before.status.node)
        await change_node(world, other, unschedulable=True)
        await wish(world, f"node/{other}")

        async def says_cordoned() -> bool:
            moving = (await the_lifeform(world)).status.moving
            return moving is not None and "is cordoned" in moving.message

        await world.until(says_cordoned)
        await change_node(world, other, unschedulable=False)
        await world.sure.create(make_lifeform("big", memory="7Gi", node_selector={"topology.primordia.dev/node": other}))
        await world.until(phase_is(world, "big", "Running"))
        await wish(world, f"node/{other}")

        async def says_memory() -> bool:
            moving = (await the_lifeform(world)).status.moving
            return moving is not None and "memory" in moving.message

        await world.until(says_memory)
        await is_whole_at(world, before.status.node, before.status.epoch)

    play(story, nodes=RACKS)


def test_the_place_at_the_target_is_nobody_elses_meanwhile() -> None:
    async def story(world: ControlWorld) -> None:
        await running_shop(world, data="1Gi", memory="6Gi")
        _, bare = await others(world)
        world.disks.stuck.add(bare)
        await wish(world, f"node/{bare}")
        await world.until(moving_is(world, "Seeding"))
        await world.sure.create(make_lifeform("late", memory="6Gi", node_selector={"topology.primordia.dev/node": bare}))
        await world.clock.sleep(30)
        late = await the_lifeform(world, "late")
        assert late.status.node == ""
        await world.kill()
        await world.start()
        await world.clock.sleep(30)
        assert (await the_lifeform(world, "late")).status.node == "", "nor after another leader began"
        await wish(world, None)
        await given_up(world)
        await world.until(phase_is(world, "late", "Running"))

    play(story, nodes=RACKS)


@pytest.mark.parametrize("phase", ["Seeding", "HandingOver"])
@pytest.mark.parametrize("how", ["taken back", "target dies"])
def test_until_it_is_handed_over_it_can_go_on_where_it_is(phase: str, how: str) -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi")
        holder, bare = await others(world)
        to = bare if phase == "Seeding" else holder
        if phase == "HandingOver":
            await world.clock.sleep(1)
        world.disks.stuck.add(to)
        if phase == "HandingOver":
            await tell_in_sync(world)
        await wish(world, f"node/{to}")
        await world.until(moving_is(world, phase))
        if phase == "HandingOver":
            contexts = await world.contexts()
            assert [each.status.phase for each in contexts.values()] == ["Stopped"]
            assert (await the_lifeform(world)).status.phase == "Moving"
        if how == "taken back":
            await wish(world, None)
        else:
            await change_node(world, to, ready="Unknown")
        moving = await given_up(world)
        assert ("taken back" if how == "taken back" else f"node {to} is not ready") in moving.message
        await is_whole_at(world, before.status.node, before.status.epoch)
        assert (await the_volume(world)).status.handover is None

        world.disks.stuck.clear()
        world.disks.look()
        await change_node(world, to)
        await wish(world, f"node/{to}")
        await world.until(settled_on(world, to))
        await is_whole_at(world, to, before.status.epoch + 1)

    play(story, nodes=RACKS)


async def tell_in_sync(world: ControlWorld) -> None:
    """The copies are still said to be in sync, though nothing reaches them any more."""
    assert all(copy.state == "InSync" for copy in (await the_volume(world)).status.copies)


def test_a_new_leader_counts_what_has_arrived_and_not_what_the_manifest_has_become(monkeypatch: pytest.MonkeyPatch) -> None:
    recalled: list[int] = []
    recall = Scheduler.recall

    def counted(self: Scheduler) -> None:
        recall(self)
        recalled.append(max(self.ledger.used(name).memory_bytes for name in ("n1", "n2", "n3")))

    async def story(world: ControlWorld) -> None:
        before = (await running_shop(world, data="1Gi", memory="6Gi")).status.node
        _, other = await others(world)
        world.disks.stuck.add(other)
        await wish(world, f"node/{other}")
        await world.until(moving_is(world, "Seeding"))
        await world.clock.sleep(5)
        world.nodes.silent.add(before)
        world.disks.stuck.discard(other)
        world.disks.look()
        await world.until(moving_is(world, "Stopping"))
        world.nodes.silent = {other}
        world.nodes.look()

        async def is_bound() -> bool:
            spec = (await world.contexts())["shop.main"].spec
            return (spec.node, spec.wanted) == (other, "Running")

        await world.until(is_bound)
        await world.kill()
        monkeypatch.setattr(Scheduler, "recall", counted)

        def smaller(lifeform: Lifeform) -> Lifeform:
            (context,) = make_lifeform("shop", data="1Gi", memory="1Gi").spec.contexts
            return msgspec.structs.replace(lifeform, spec=msgspec.structs.replace(lifeform.spec, contexts=(context,)))

        await world.sure.mutate(Lifeform, "shop", "default", smaller)
        await world.start()
        await world.clock.sleep(5)
        assert recalled and recalled[0] > 6 * 2**30
        world.nodes.silent.discard(other)
        world.nodes.look()
        await world.until(settled_on(world, other))

    play(story, nodes=RACKS)


def test_it_does_not_stand_still_for_ever() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi", termination_grace_period_seconds=5)
        holder, _ = await others(world)
        world.disks.stuck.add(holder)
        await wish(world, f"node/{holder}")
        await world.until(moving_is(world, "HandingOver"))
        begun_s = world.clock.boottime()
        moving = await given_up(world)
        assert 60 <= world.clock.boottime() - begun_s <= 70
        assert "has stood still for" in moving.message and "volume shop.main" in moving.message
        await is_whole_at(world, before.status.node, before.status.epoch)

    play(story, nodes=RACKS)


def test_who_has_ended_would_run_again_and_who_is_suspended_stays_so() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, restart_policy="Never")

        def ended(context: Context) -> Context:
            return msgspec.structs.replace(context, status=msgspec.structs.replace(context.status, phase="Succeeded"))

        await world.sure.mutate(Context, "shop.main", "default", ended, status=True)
        await world.until(phase_is(world, "shop", "Succeeded"))
        await wish(world, "elsewhere")
        await world.until(moving_is(world, "GivenUp"))
        said = (await the_lifeform(world)).status.moving
        assert said is not None and "would run again" in said.message

        await world.sure.create(make_lifeform("sleeper", operating_mode="Suspended"))
        await world.until(phase_is(world, "sleeper", "Suspended"))
        node = (await the_lifeform(world, "sleeper")).status.node
        await wish(world, "elsewhere", "sleeper")

        async def moved() -> bool:
            status = (await the_lifeform(world, "sleeper")).status
            return status.moving is None and status.moved is not None and status.node not in (node, "")

        await world.until(moved)
        status = (await the_lifeform(world, "sleeper")).status
        assert (status.phase, status.epoch) == ("Suspended", 2)
        assert status.moved is not None and status.moved.blackout_seconds == 0
        assert (await the_lifeform(world)).status.node == before.status.node

    play(story, nodes=RACKS)


def test_a_move_is_void_once_somebody_else_has_put_it_elsewhere() -> None:
    async def story(world: ControlWorld) -> None:
        await running_shop(world, data="1Gi")
        _, bare = await others(world)
        world.disks.stuck.add(bare)
        await wish(world, f"node/{bare}")
        await world.until(moving_is(world, "Seeding"))

        def raised(volume: Volume) -> Volume:
            return msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, epoch=7))

        await world.sure.mutate(Volume, "shop.main", "default", raised, status=True)  # as a restore does
        moving = await given_up(world)
        assert "in epoch 8 by now" in moving.message

    play(story, nodes=RACKS)


def test_copies_leave_a_node_that_is_evacuated_once_others_are_whole() -> None:
    async def story(world: ControlWorld) -> None:
        await running_shop(world, data="1Gi", replication=Replication(layout=Layout(mirror=1)))
        holder, bare = await others(world)
        world.disks.stuck.add(bare)
        await change_node(world, holder, unschedulable=True, evacuating=True)
        await world.clock.sleep(30)
        assert (await the_volume(world)).status.replicas == (bare, holder), "the old one stays until the new one is whole"
        world.disks.stuck.clear()
        world.disks.look()

        async def gone() -> bool:
            return (await the_volume(world)).status.replicas == (bare,)

        await world.until(gone)
        node = (await the_volume(world)).status.node
        await change_node(world, node, unschedulable=True, evacuating=True)
        await wish(world, "elsewhere")
        await world.until(settled_on(world, bare))
        await world.clock.sleep(30)
        volume = await the_volume(world)
        assert node not in volume.status.replicas, "nothing of it stays on the node that it has left"

    play(story, nodes=RACKS)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("cut_at", range(1, 31))
def test_every_interrupted_prefix_of_a_move_ends_well(cut_at: int, after: bool) -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi")
        _, bare = await others(world)
        world.store.cut_at, world.store.cut_after = world.store.calls + cut_at, after
        await wish(world, f"node/{bare}")
        settled = settled_on(world, bare)

        async def reached() -> bool:
            if world.died.is_set():
                await world.kill()
                await world.start()
            return await settled()

        await world.until(reached)
        await is_whole_at(world, bare, before.status.epoch + 1)
        volume = await the_volume(world)
        assert (volume.status.node, volume.status.epoch) == (bare, before.status.epoch + 1)
        assert world.disks.deeds.count(("handed over", bare)) == 1

    play(story, nodes=RACKS)


def test_whose_manifest_has_to_wait_is_not_moved_and_a_wish_is_no_way_around_a_selector() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi", node_selector={"topology.primordia.dev/segment": "east"})
        await wish(world, "segment/west")
        assert "Its nodeSelector asks for topology.primordia.dev/segment=east" in (await given_up(world)).message

        _, bare = await others(world)
        world.disks.stuck.add(bare)
        await wish(world, f"node/{bare}")
        await world.until(moving_is(world, "Seeding"))
        grown = make_lifeform("shop", memory="64Gi", data="1Gi").spec.contexts

        def larger(lifeform: Lifeform) -> Lifeform:
            return msgspec.structs.replace(lifeform, spec=msgspec.structs.replace(lifeform.spec, contexts=grown))

        await world.sure.mutate(Lifeform, "shop", "default", larger)
        await world.until(moving_is(world, "GivenUp"))
        moving = (await the_lifeform(world)).status.moving
        assert moving is not None and "memory" in moving.message
        await wish(world, "elsewhere")

        async def says_so() -> bool:
            moving = (await the_lifeform(world)).status.moving
            return moving is not None and "has to wait first" in moving.message

        await world.until(says_so)
        assert (await the_lifeform(world)).status.node == before.status.node

    play(story, nodes=RACKS)


def unreadable(lifeform: Lifeform) -> Lifeform:
    """With a quantity that is none, as nothing that is checked lets in any more."""
    contexts = make_lifeform("shop", memory="lots").spec.contexts
    spec = msgspec.structs.replace(lifeform.spec, contexts=contexts, operating_mode="Running")
    return msgspec.structs.replace(lifeform, spec=spec)


def test_whose_manifest_cannot_be_read_is_not_moved_and_says_why() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", operating_mode="Suspended"))
        await world.until(phase_is(world, "shop", "Suspended"))
        await world.sure.mutate(Lifeform, "shop", "default", unreadable)
        await wish(world, "elsewhere")
        await world.until(moving_is(world, "GivenUp"))
        moving = (await the_lifeform(world)).status.moving
        assert moving is not None and "cannot be read: 'lots'" in moving.message

    play(story, nodes=RACKS)


def test_whose_manifest_becomes_unreadable_on_the_way_stays() -> None:
    async def story(world: ControlWorld) -> None:
        before = await running_shop(world, data="1Gi")
        _, bare = await others(world)
        world.disks.stuck.add(bare)
        await wish(world, f"node/{bare}")
        await world.until(moving_is(world, "Seeding"))
        await world.sure.mutate(Lifeform, "shop", "default", unreadable)
        await world.until(moving_is(world, "GivenUp"))
        lifeform = await the_lifeform(world)
        assert lifeform.status.moving is not None and "'lots'" in lifeform.status.moving.message
        assert lifeform.status.node == before.status.node

    play(story, nodes=RACKS)

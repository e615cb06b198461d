"""Nodes die, and their lifeforms go on elsewhere: all that a leader runs, over the memory store, under virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from msgspec.structs import replace

from primordia.control.lifebook import Page
from primordia.control.remains import death_guards
from primordia.daemon.leading import Leading
from primordia.domain.lease import death_key, lease_key, life_key
from primordia.ports.store import Compare, Delete, Put
from primordia.registry import lives
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.keys import key_of_object
from primordia.registry.lives import HOLDINGS, Death
from primordia.registry.ownership import Owner, owner_key, read_owner
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform, make_node
from primordia.sim.store import FaultyStore
from primordia.testing.survival import SurvivalWorld, play_survival
from primordia.wire.conditions import find
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextSpec, ContextTemplate, Lifeform, Node, Recovery, Soup, Volume
from primordia.wire.volumes import holder_finalizer

Dies = Callable[[SurvivalWorld, str], Awaitable[None]]


def test_a_lifeform_goes_on_from_its_copy_in_the_next_epoch_and_says_so() -> None:
    async def story(world: SurvivalWorld) -> None:
        lifeform = await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        before = await world.volume()
        owner, copy = before.status.node, before.status.replicas[0]
        await world.synced("shop.main", 7, copy)
        cut = world.clock.boottime()
        await world.power_off(owner)
        await world.until(world.moved("shop", 2), within_s=20)
        assert world.clock.boottime() - cut < 10, "it ran out: nobody waited longer"
        after, volume = await world.the("shop"), await world.volume()
        assert after.status.node == copy and after.status.rack == f"r{copy[1:]}"
        assert (volume.status.node, volume.status.epoch) == (copy, 2)
        assert volume.status.replicas == (owner,), "who had the data is to have it again"
        began = volume.status.restored_from
        assert began is not None
        assert (began.epoch, began.node, began.number, began.allow_loss) == (2, owner, 7, False)
        assert volume.status.owner_since == 2
        assert volume.status.last_sync is not None and volume.status.last_sync.number == 7
        recovered = after.status.recovered
        assert recovered is not None and (recovered.from_node, recovered.epoch) == (owner, 2)
        assert recovered.volumes[0].restored_from == recovered.volumes[0].synced_number == 7
        assert 0 < recovered.lost_seconds <= 7
        contexts = await world.contexts()
        assert (contexts["shop.main"].spec.node, contexts["shop.main"].spec.epoch) == (copy, 2)
        assert contexts["shop.main"].spec.recovered == recovered
        item = await world.memory.get(owner_key(lifeform.metadata.uid))
        assert read_owner(item) == Owner(copy, 2)
        assert await world.ready(owner) == ("False", "NodeDead")
        said = await world.said("shop")
        assert said is not None and said.status == "True" and "snapshot 7" in said.message
        assert any(reason == "Recovered" and "snapshot 7" in message for reason, message in await world.events())

    play_survival(story)


def test_takeover_is_one_revision_for_lifeform_volume_owner_and_context() -> None:
    async def story(world: SurvivalWorld) -> None:
        lifeform = await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        await world.synced("shop.main", 3, *volume.status.replicas)
        await world.power_off(volume.status.node)
        await world.until(world.moved("shop", 2))
        item = await world.memory.get(owner_key(lifeform.metadata.uid))
        assert item is not None
        seen = (await world.memory.list("/primordia/", revision=item.mod_revision)).items
        changed = {each.key.rsplit("/", 2)[-1] for each in seen if each.mod_revision == item.mod_revision}
        assert changed == {lifeform.metadata.uid, "shop", "shop.main"}
        assert len([each for each in seen if each.mod_revision == item.mod_revision]) == 4

    play_survival(story)


def test_one_without_data_is_placed_anew() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        await world.power_off(owner)
        await world.until(world.moved("shop", 2))
        after = await world.the("shop")
        assert after.status.node != owner
        assert after.status.recovered is not None and after.status.recovered.volumes == ()
        await world.clock.sleep(120)
        assert (await world.the("shop")).status.epoch == 2, "once"

    play_survival(story)


def test_a_proof_is_followed_at_once() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        begun = world.clock.boottime()
        await world.prove_death((await world.the("shop")).status.node)
        await world.until(world.moved("shop", 2))
        assert world.clock.boottime() - begun < 1

    play_survival(story)


def test_a_lease_that_was_ended_early_is_waited_for() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        begun = world.clock.boottime()
        await world.revoke(owner)
        await world.until(world.moved("shop", 2))
        assert world.clock.boottime() - begun >= 4.5, "the node's own deadline and the drift"

    play_survival(story)


def test_a_node_that_comes_back_before_its_death_keeps_everything() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        await world.revoke(owner)
        await world.clock.sleep(2)
        await world.power_on(owner)
        await world.clock.sleep(60)
        assert (await world.the("shop")).status.epoch == 1
        assert await world.death(owner) is None
        assert await world.ready(owner) == ("True", "NodeReady")

    play_survival(story)


def test_less_than_the_last_sync_is_parked_and_said_until_it_is_allowed() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        owner, copy = volume.status.node, volume.status.replicas[0]
        await world.synced("shop.main", 9, copy)
        world.hold(copy, volume, 8)
        await world.power_off(owner)
        await world.until(world.waits("shop", "WaitingForCopies"))
        parked = await world.the("shop")
        assert (parked.status.node, parked.status.epoch, parked.status.phase) == (owner, 1, "Parked")
        said = await world.said("shop")
        assert said is not None and "snapshot 8" in said.message and "9" in said.message and owner in said.message
        await world.clock.sleep(600)
        assert (await world.the("shop")).status.epoch == 1, "G4"
        await world.sure.mutate(Lifeform, "shop", "default", _allowed)
        await world.until(world.moved("shop", 2))
        after, volume = await world.the("shop"), await world.volume()
        assert after.status.node == copy and after.status.recovered is not None
        assert after.status.recovered.volumes[0].restored_from == 8 < after.status.recovered.volumes[0].synced_number
        assert volume.status.last_sync is not None and volume.status.last_sync.number == 8
        assert any(reason == "Parked" for reason, _ in await world.events())

    play_survival(story)


def _allowed(lifeform: Lifeform) -> Lifeform:
    said = {**lifeform.metadata.annotations, "primordia.dev/allow-loss": str(lifeform.status.epoch)}
    return msgspec.structs.replace(lifeform, metadata=msgspec.structs.replace(lifeform.metadata, annotations=said))


def test_a_copy_that_answers_late_ends_the_waiting() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        owner, copy = volume.status.node, volume.status.replicas[0]
        await world.synced("shop.main", 9, copy)
        world.mute.add(copy)
        await world.power_off(owner)
        await world.until(world.waits("shop", "WaitingForCopies"))
        said = await world.said("shop")
        assert said is not None and f"{copy} has not said" in said.message
        world.mute.clear()
        await world.until(world.moved("shop", 2))
        assert (await world.the("shop")).status.node == copy

    play_survival(story)


def test_data_without_a_copy_waits_for_its_node_and_goes_on_there() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        await world.synced("shop.main", 4)
        await world.power_off(owner)
        await world.until(world.waits("shop", "WaitingForCopies"))
        await world.power_on(owner)
        await world.until(world.moved("shop", 1))
        assert await world.said("shop") is None, "nothing is waited for any more"
        assert (await world.death(owner)) is not None, "kept until the next one"

    play_survival(story, (make_node("n1", pool="10Gi"), make_node("n2")))


def test_data_of_which_only_its_node_has_spoken_counts_as_begun() -> None:
    """A node says that it holds a volume before it makes the disk, and how large that is only later."""

    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        held = (holder_finalizer(owner),)
        await world.sure.mutate(
            Volume,
            "shop.main",
            "default",
            lambda volume: replace(volume, metadata=replace(volume.metadata, finalizers=held)),
        )
        await world.power_off(owner)
        await world.until(world.waits("shop", "WaitingForCopies"))

    play_survival(story)


def test_a_death_says_nothing_of_a_later_life() -> None:
    page = Page("n1", 0.0, life=9, death=Death(life=5, by="node"), death_revision=7)
    assert death_guards(page) == (
        Compare(lease_key("n1"), "create", 0),
        Compare(life_key("n1"), "mod", 5),
        Compare(death_key("n1"), "mod", 7),
    )


def test_data_without_a_copy_begins_empty_where_the_manifest_allows_that() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi", recovery=Recovery(allow_loss=True)))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        await world.synced("shop.main", 4)
        await world.power_off(owner)
        await world.until(world.moved("shop", 2))
        volume, after = await world.volume(), await world.the("shop")
        assert volume.status.node == after.status.node != owner
        assert (volume.status.number, volume.status.size_bytes, volume.status.last_sync) == (0, 0, None)
        assert after.status.recovered is not None and after.status.recovered.volumes[0].restored_from == 0
        assert any("empty" in message for reason, message in await world.events() if reason == "Recovered")

    play_survival(story, tuple(make_node(f"n{i}", rack="r1", pool="10Gi") for i in (1, 2)))


def test_a_volume_that_vanished_is_not_made_anew_by_a_failover() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        await world.memory.txn([], [Delete(key_of_object(volume))])
        await world.power_off(volume.status.node)
        await world.until(world.waits("shop", "WaitingForCopies"))
        await world.clock.sleep(60)
        assert (await world.the("shop")).status.epoch == 1

    play_survival(story)


def test_what_a_node_left_behind_that_was_taken_out_of_the_soup_goes_on_elsewhere() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        owner, copy = volume.status.node, volume.status.replicas[0]
        await world.synced("shop.main", 5, copy)
        await world.power_off(owner)
        await world.memory.revoke(world.leases[owner])
        await lives.forget(world.memory, owner)
        await world.sure.delete(Node, owner)
        await world.until(world.moved("shop", 2))
        assert (await world.the("shop")).status.node == copy
        await world.clock.sleep(60)
        assert not [each for each in (await world.memory.list("/primordia/deaths/")).items if each.key.endswith(owner)]
        assert not (await world.memory.list(f"{HOLDINGS}{owner}/")).items, "nothing is kept of it"
        await world.sure.create(make_node(owner, rack=f"r{owner[1:]}", pool="10Gi"))
        await world.power_on(owner)
        await world.clock.sleep(60)
        assert (await world.the("shop")).status.epoch == 2

    play_survival(story)


def test_much_at_once_on_several_racks_is_held_until_a_person_says_so() -> None:
    nodes = tuple(make_node(f"n{i}", rack=f"r{i % 3}", memory="1Gi") for i in range(6))

    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(Soup(metadata=ObjectMeta(name="soup")))
        for number in range(6):
            await world.sure.create(make_lifeform(f"shop{number}", memory="600Mi"))
        for number in range(6):
            await world.until(world.moved(f"shop{number}", 1))
        for name in ("n0", "n1", "n2"):
            await world.power_off(name)
        await world.clock.sleep(120)
        for name in ("n0", "n1", "n2"):
            assert await world.ready(name) == ("Unknown", "FailoverHeld")
            assert await world.death(name) is None
        lost = [each for each in (await world.sure.list(Lifeform)).items if each.status.node in ("n0", "n1", "n2")]
        assert len(lost) == 3
        for each in lost:
            said = find(each.status.conditions, "Recovered")
            assert said is not None and said.reason == "Holding" and "failover --all" in said.message
        await world.sure.mutate(Soup, "soup", "", lambda soup: _lifted(world, soup))
        await world.until(world.waits(lost[0].metadata.name, "Unschedulable"))
        assert await world.ready("n1") == ("False", "NodeDead")

    play_survival(story, nodes)


def _lifted(world: SurvivalWorld, soup: Soup) -> Soup:
    said = {"primordia.dev/failover-all": world.clock.wall().isoformat()}
    return msgspec.structs.replace(soup, metadata=msgspec.structs.replace(soup.metadata, annotations=said))


def test_a_rack_is_no_reason_to_hold_and_priority_goes_first() -> None:
    nodes = (
        make_node("n1", rack="r1", contexts=3),
        make_node("n2", rack="r1", contexts=3),
        make_node("n3", rack="r2", contexts=2),
        make_node("n4", rack="r3", contexts=2, memory="4Gi"),
    )

    async def story(world: SurvivalWorld) -> None:
        for number in range(6):
            spec = make_lifeform(f"shop{number}", recovery=Recovery(priority=number))
            await world.sure.create(msgspec.structs.replace(spec, spec=msgspec.structs.replace(spec.spec, node_selector=_R1)))
        for number in range(6):
            await world.until(world.moved(f"shop{number}", 1))
        for number in range(6):
            await world.sure.mutate(Lifeform, f"shop{number}", "default", _anywhere)
        await world.power_off("n1")
        await world.power_off("n2")
        for number in (5, 4, 3, 2):
            await world.until(world.moved(f"shop{number}", 2))
        for number in (1, 0):
            await world.until(world.waits(f"shop{number}", "Unschedulable"))

    play_survival(story, nodes)


_R1 = {"topology.primordia.dev/rack": "r1"}


def _anywhere(lifeform: Lifeform) -> Lifeform:
    return msgspec.structs.replace(lifeform, spec=msgspec.structs.replace(lifeform.spec, node_selector={}))


def test_a_holder_without_room_parks_it_and_says_so_until_there_is() -> None:
    nodes = tuple(make_node(f"n{i}", rack=f"r{i}", memory="1Gi", pool="10Gi") for i in (1, 2))

    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi", memory="600Mi", recovery=Recovery(seed="local")))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        owner, copy = volume.status.node, volume.status.replicas[0]
        await world.synced("shop.main", 9, copy)
        await world.sure.create(make_lifeform("other", memory="600Mi"))
        await world.until(world.moved("other", 1))
        await world.power_off(owner)
        await world.until(world.waits("shop", "NoRoom"))
        said = await world.said("shop")
        assert said is not None and copy in said.message and "memory" in said.message and "local" in said.message
        await world.sure.delete(Lifeform, "other", "default")
        await world.until(world.moved("shop", 2))
        assert (await world.the("shop")).status.node == copy

    play_survival(story, nodes)


def test_a_holder_without_room_takes_the_data_and_the_lifeform_moves_on_from_there() -> None:
    nodes = tuple(make_node(f"n{i}", rack=f"r{i}", memory="1Gi", pool="10Gi") for i in (1, 2, 3))

    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi", memory="600Mi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        owner, copy = volume.status.node, volume.status.replicas[0]
        (bare,) = {"n1", "n2", "n3"} - {owner, copy}
        await world.synced("shop.main", 9, copy)
        there = {"topology.primordia.dev/node": copy}
        await world.sure.create(make_lifeform("other", memory="600Mi", node_selector=there))
        await world.until(world.moved("other", 1))
        await world.power_off(owner)

        async def seeding() -> bool:
            lifeform = await world.the("shop")
            moving = lifeform.status.moving
            return lifeform.status.node == copy and moving is not None and (moving.phase, moving.to) == ("Seeding", bare)

        await world.until(seeding)
        context = (await world.contexts())["shop.main"]
        assert (context.spec.node, context.spec.wanted, context.spec.epoch) == (copy, "Stopped", 2)
        assert any("making a copy on" in message for reason, message in await world.events() if reason == "Recovered")
        world.pretend_disks()
        await world.until(world.moved("shop", 3))
        after, volume = await world.the("shop"), await world.volume()
        assert (after.status.node, volume.status.node, volume.status.epoch) == (bare, bare, 3)
        recovered = (await world.contexts())["shop.main"].spec.recovered
        assert recovered is not None and (recovered.from_node, recovered.epoch) == (owner, 3), "the guest is still told"
        assert recovered.volumes[0].restored_from == 9

    play_survival(story, nodes)


def test_a_target_that_dies_while_data_is_brought_there_is_replaced_by_another() -> None:
    nodes = tuple(make_node(f"n{i}", rack=f"r{i}", memory="1Gi", pool="10Gi") for i in (1, 2, 3, 4))

    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi", memory="600Mi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        owner, copy = volume.status.node, volume.status.replicas[0]
        await world.synced("shop.main", 9, copy)
        there = {"topology.primordia.dev/node": copy}
        await world.sure.create(make_lifeform("other", memory="600Mi", node_selector=there))
        await world.until(world.moved("other", 1))
        await world.power_off(owner)

        async def seeding() -> bool:
            moving = (await world.the("shop")).status.moving
            return moving is not None and moving.phase == "Seeding"

        await world.until(seeding)
        first = (await world.the("shop")).status.moving
        assert first is not None
        await world.power_off(first.to)

        async def elsewhere() -> bool:
            moving = (await world.the("shop")).status.moving
            return moving is not None and moving.phase == "Seeding" and moving.to not in (first.to, owner, copy)

        await world.until(elsewhere)
        world.pretend_disks()
        await world.until(world.moved("shop", 3))
        assert (await world.the("shop")).status.node not in (first.to, owner, copy)

    play_survival(story, nodes)


def test_boxes_on_a_dead_node_fail_and_go_and_what_was_being_deleted_goes() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        node = (await world.the("shop")).status.node
        spec = ContextSpec(node=node, epoch=1, template=ContextTemplate(name="box", image="busybox"))
        meta = ObjectMeta(name="box", namespace="default", finalizers=("primordia.dev/node",))
        await world.sure.create(Context(metadata=meta, spec=spec))
        world.nodes.hold_finalizers = True
        await world.sure.delete(Lifeform, "shop", "default")
        await world.clock.sleep(2)
        assert set(await world.contexts()) == {"shop.main", "box"}
        await world.power_off(node)

        async def gone() -> bool:
            return await world.contexts() == {} and await world.lifeform("shop") is None

        await world.until(gone)
        assert any(reason == "NodeDead" for reason, _ in await world.events())

    play_survival(story)


def test_a_second_death_in_a_later_life_forgets_what_was_held_of_the_first() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        first = (await world.the("shop")).status.node
        await world.power_off(first)
        await world.until(world.moved("shop", 2))
        await world.power_on(first)
        await world.clock.sleep(5)
        assert await world.ready(first) == ("True", "NodeReady")
        await world.power_off(first)
        await world.clock.sleep(30)
        assert await world.ready(first) == ("False", "NodeDead")
        death = await world.death(first)
        assert death is not None and death.life == world.lives[first]
        for item in (await world.memory.list(f"{HOLDINGS}{first}/")).items:
            assert b"%d" % death.life in item.value

    play_survival(story)


def test_a_volume_remembers_from_where_it_went_on_before() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        first, second = volume.status.node, volume.status.replicas[0]
        await world.synced("shop.main", 7, second)
        await world.power_off(first)
        await world.until(world.moved("shop", 2))
        await world.power_on(first)
        await world.clock.sleep(5)
        await world.synced("shop.main", 9, first)
        await world.power_off(second)
        await world.until(world.moved("shop", 3))
        began = (await world.volume()).status.restored_from
        assert began is not None
        assert (began.epoch, began.node, began.number, began.earlier) == (3, second, 9, ((2, 7),))

    play_survival(story)


def test_a_new_leader_gives_those_it_never_saw_their_grace() -> None:
    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        await world.kill()
        await world.power_off(owner)
        await world.clock.sleep(60)
        await world.start()
        begun = world.clock.boottime()
        await world.until(world.moved("shop", 2))
        assert 29 < world.clock.boottime() - begun < 35

    play_survival(story)


@pytest.mark.parametrize(("dies", "within_s"), [(SurvivalWorld.power_off, 8.0), (SurvivalWorld.prove_death, 1.0)])
def test_the_death_of_the_leaders_own_node_is_not_waited_for_longer(dies: Dies, within_s: float) -> None:
    """Who comes into office has watched that lease run out, and no other; and the office of one whose node has lost its lease
    is not waited for."""

    async def story(world: SurvivalWorld) -> None:
        await world.kill()
        stores = {name: FaultyStore(world.memory) for name in ("n1", "n2", "n3")}
        parts, tasks = {}, {}
        for name, store in stores.items():
            informers = Informers(Registry(store, world.clock))
            events = EventRecorder(world.sure, "controller", name, rng=random.Random(1))
            parts[name] = Leading(store, informers, world.clock, events, name, "x", rng=random.Random(2))
            tasks[name] = [asyncio.create_task(each) for each in (informers.run(), parts[name].run())]
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        first = next(name for name, part in parts.items() if part.leader.leads)
        await world.sure.create(make_lifeform("other", node_selector={"topology.primordia.dev/node": first}))
        await world.until(world.moved("other", 1))
        await world.sure.mutate(Lifeform, "other", "default", _anywhere)
        begun = world.clock.boottime()
        stores[first].away = True
        for task in tasks[first]:
            task.cancel()
        await dies(world, first)
        await world.until(world.moved("other", 2))
        assert world.clock.boottime() - begun < within_s
        for task in (each for some in tasks.values() for each in some):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    play_survival(story)


def test_nobody_who_is_back_is_robbed_by_a_late_controller() -> None:
    """The leader's watches stand still while the node returns: its transactions are refused."""

    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.moved("shop", 1))
        owner = (await world.the("shop")).status.node
        await world.power_off(owner)
        await world.clock.sleep(4.5)
        # The key goes and comes again under the same name within one moment of the watch.
        lease = await world.memory.grant(10**6)
        await world.memory.txn([], [Put(lease_key(owner), b"{}", lease)])
        await world.clock.sleep(60)
        assert (await world.the("shop")).status.epoch == 1
        assert await world.death(owner) is None

    play_survival(story)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("cut_at", range(1, 24))
def test_every_interrupted_prefix_of_a_failover_ends_in_one_takeover(cut_at: int, after: bool) -> None:
    """The leader dies before or after any of its calls, and another begins: nothing is taken over twice, nothing is left."""

    async def story(world: SurvivalWorld) -> None:
        await world.sure.create(make_lifeform("shop", data="1Gi"))
        await world.until(world.moved("shop", 1))
        volume = await world.volume()
        owner, copy = volume.status.node, volume.status.replicas[0]
        await world.synced("shop.main", 6, copy)
        await world.prove_death(owner)
        world.store.cut_at, world.store.cut_after = world.store.calls + cut_at, after
        settled = world.moved("shop", 2)

        async def reached() -> bool:
            if world.died.is_set():
                await world.kill()
                await world.start()
            return await settled()

        await world.until(reached)
        await world.clock.sleep(60)
        lifeform, volume = await world.the("shop"), await world.volume()
        assert (lifeform.status.node, lifeform.status.epoch, lifeform.status.phase) == (copy, 2, "Running")
        assert (volume.status.node, volume.status.epoch) == (copy, 2)
        context = (await world.contexts())["shop.main"]
        assert (context.spec.node, context.spec.epoch, context.spec.wanted) == (copy, 2, "Running")
        assert read_owner(await world.memory.get(owner_key(lifeform.metadata.uid))) == Owner(copy, 2)
        assert world.controllers is not None
        ledger = world.controllers.scheduler.ledger
        assert (ledger.node_of(lifeform.metadata.uid), ledger.used(owner).contexts) == (copy, 0)

    play_survival(story)

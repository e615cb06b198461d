"""The controllers over the memory store: what a user sees, and what remains when they are cut off anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from primordia.kit.errors import NotFoundError
from primordia.sim.objects import make_lifeform, make_node
from primordia.testing.control import ControlWorld, phase_is, play
from primordia.wire.conditions import find
from primordia.wire.resources import Context, LabelSelector, Lifeform, Node


def gone(world: ControlWorld, name: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await world.lifeform(name) is None and not await world.contexts()

    return check


async def change_spec(world: ControlWorld, name: str, **fields: Any) -> None:
    def changed(lifeform: Lifeform) -> Lifeform:
        return msgspec.structs.replace(lifeform, spec=msgspec.structs.replace(lifeform.spec, **fields))

    await world.sure.mutate(Lifeform, name, "default", changed)


def test_a_lifeform_lives_from_create_to_delete() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", "redis", "exporter"))
        await world.until(phase_is(world, "shop", "Running"))
        lifeform = await world.lifeform("shop")
        assert lifeform is not None
        status = lifeform.status
        assert (status.node, status.rack, status.segment, status.epoch) == ("n1", "rack-n1", "east", 1)
        assert [summary.name for summary in status.contexts] == ["redis", "exporter"]
        assert {condition.type: condition.status for condition in status.conditions} == {"Scheduled": "True", "Ready": "True"}
        contexts = await world.contexts()
        assert set(contexts) == {"shop.redis", "shop.exporter"}
        redis = contexts["shop.redis"]
        assert redis.metadata.owner_references[0].uid == lifeform.metadata.uid
        assert (redis.spec.node, redis.spec.epoch, redis.spec.wanted) == ("n1", 1, "Running")
        await world.sure.delete(Lifeform, "shop", "default")
        await world.until(gone(world, "shop"))
        assert world.controllers is not None
        assert world.controllers.scheduler.ledger.used("n1").contexts == 0
        assert "Scheduled" in [reason for reason, _ in await world.events()]

    play(story)


def test_a_start_is_few_writes_and_one_that_lasts_shows_how_far_it_has_come() -> None:
    """Each write is heard by every node: the place and the contexts are one each, and what is passing is not written."""

    async def story(world: ControlWorld) -> None:
        world.nodes.silent.add("n1")
        made = await world.sure.create(make_lifeform("shop", "redis", "exporter"))

        async def placed() -> bool:
            return len(await world.contexts()) == 2

        await world.until(placed)
        lifeform = await world.sure.get(Lifeform, "shop", "default")
        assert int(lifeform.metadata.resource_version) == int(made.metadata.resource_version) + 1
        assert lifeform.metadata.finalizers and lifeform.status.phase == "Starting"
        assert [(each.name, each.phase) for each in lifeform.status.contexts] == [("redis", "Pending"), ("exporter", "Pending")]
        assert {each.type: each.status for each in lifeform.status.conditions} == {"Scheduled": "True", "Ready": "False"}

        async def says(name: str, **told: Any) -> None:
            context = (await world.contexts())[f"shop.{name}"]
            status = msgspec.structs.replace(context.status, **told)
            await world.sure.update_status(msgspec.structs.replace(context, status=status))

        await says("redis", phase="Preparing", ip="10.128.0.1")
        await world.clock.sleep(0.3)
        assert await world.sure.get(Lifeform, "shop", "default") == lifeform
        await says("exporter", phase="Booting", ip="10.128.0.2")
        await world.clock.sleep(0.3)
        lasting = await world.sure.get(Lifeform, "shop", "default")
        assert [each.phase for each in lasting.status.contexts] == ["Preparing", "Booting"]
        await says("redis", phase="BackOff", message="It failed.")
        await world.clock.sleep(0.01)
        failing = await world.sure.get(Lifeform, "shop", "default")
        assert failing.status.contexts[0].message == "It failed."
        for name in ("redis", "exporter"):
            await says(name, phase="Running", ready=True, message="")
        await world.clock.sleep(0.01)
        assert (await world.sure.get(Lifeform, "shop", "default")).status.phase == "Running"

    play(story)


def test_what_does_not_fit_waits_says_why_and_comes_when_there_is_room() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("first", memory="5Gi"))
        await world.until(phase_is(world, "first", "Running"))
        await world.sure.create(make_lifeform("second", memory="6Gi"))
        await world.until(phase_is(world, "second", "Pending"))

        async def explained() -> bool:
            second = await world.lifeform("second")
            scheduled = find(second.status.conditions, "Scheduled") if second else None
            return scheduled is not None and "not enough memory (wants 6.0Gi" in scheduled.message.replace(
                "wants 6Gi", "wants 6.0Gi"
            )

        await world.until(explained)
        assert set(await world.contexts()) == {"first.main"}
        await world.sure.delete(Lifeform, "first", "default")
        await world.until(phase_is(world, "second", "Running"))
        assert any(reason == "Unschedulable" for reason, _ in await world.events())

    play(story)


def test_a_new_node_takes_what_waited_for_it() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", node_selector={"disk": "fast"}))
        await world.until(phase_is(world, "shop", "Pending"))
        await world.sure.create(make_node("n2", disk="fast"))
        await world.until(phase_is(world, "shop", "Running"))
        lifeform = await world.lifeform("shop")
        assert lifeform is not None and lifeform.status.node == "n2"

    play(story)


def test_colocation_follows_the_named_lifeform() -> None:
    async def story(world: ControlWorld) -> None:
        billing = make_lifeform("billing", node_selector={"disk": "fast"})
        billing = msgspec.structs.replace(
            billing, metadata=msgspec.structs.replace(billing.metadata, labels={"app": "billing"})
        )
        await world.sure.create(make_lifeform("shop", colocate_with=LabelSelector(match_labels={"app": "billing"})))
        await world.until(phase_is(world, "shop", "Pending"))
        await world.sure.create(billing)
        await world.until(phase_is(world, "billing", "Running"))
        await world.sure.mutate(
            Node,
            "n1",
            "",
            lambda node: msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, unschedulable=True)),
        )
        await world.until(phase_is(world, "shop", "Running"))
        lifeform = await world.lifeform("shop")
        assert lifeform is not None and lifeform.status.node == "n2"

    play(story, nodes=(make_node("n1"), make_node("n2", disk="fast", memory="4Gi")))


def test_suspending_frees_the_room_and_resuming_asks_for_it() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("a", memory="5Gi"))
        await world.until(phase_is(world, "a", "Running"))
        await change_spec(world, "a", operating_mode="Suspended")
        await world.until(phase_is(world, "a", "Suspended"))
        await world.sure.create(make_lifeform("b", memory="6Gi"))
        await world.until(phase_is(world, "b", "Running"))
        await change_spec(world, "a", operating_mode="Running")

        async def explained() -> bool:
            lifeform = await world.lifeform("a")
            scheduled = find(lifeform.status.conditions, "Scheduled") if lifeform else None
            return scheduled is not None and scheduled.reason == "InsufficientCapacity"

        await world.until(explained)
        assert (await world.contexts())["a.main"].spec.wanted == "Stopped"
        await world.sure.delete(Lifeform, "b", "default")
        await world.until(phase_is(world, "a", "Running"))
        assert (await world.contexts())["a.main"].spec.epoch == 1

    play(story)


@pytest.mark.parametrize("ends", ["suspended", "deleted"])
def test_what_a_node_may_yet_start_keeps_its_share_until_the_node_has_said_that_it_does_not(ends: str) -> None:
    """Its news may be late: it would start the first beside the second."""

    async def story(world: ControlWorld) -> None:
        world.nodes.silent.add("n1")
        await world.sure.create(make_lifeform("first", memory="5Gi"))

        async def is_made() -> bool:
            return "first.main" in await world.contexts()

        await world.until(is_made)
        if ends == "suspended":
            await change_spec(world, "first", operating_mode="Suspended")
        else:
            await world.sure.delete(Lifeform, "first", "default")

        async def is_to_end() -> bool:
            context = (await world.contexts())["first.main"]
            return context.spec.wanted == "Stopped" or context.metadata.deletion_timestamp is not None

        await world.until(is_to_end)
        await world.sure.create(make_lifeform("second", memory="6Gi"))

        async def waits() -> bool:
            lifeform = await world.lifeform("second")
            scheduled = find(lifeform.status.conditions, "Scheduled") if lifeform is not None else None
            return scheduled is not None and scheduled.reason == "Unschedulable"

        await world.until(waits)
        world.nodes.silent.discard("n1")
        world.nodes.look()
        await world.until(phase_is(world, "second", "Running"))
        if ends == "suspended":
            await world.until(phase_is(world, "first", "Suspended"))

    play(story)


def test_a_change_reaches_the_contexts_it_concerns_and_no_other() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop", "redis", "exporter"))
        await world.until(phase_is(world, "shop", "Running"))
        before = await world.contexts()
        lifeform = await world.lifeform("shop")
        assert lifeform is not None
        redis, exporter = lifeform.spec.contexts
        await change_spec(world, "shop", contexts=(msgspec.structs.replace(redis, image="other"), exporter))

        async def changed() -> bool:
            return (await world.contexts())["shop.redis"].spec.template.image == "other"

        await world.until(changed)
        after = await world.contexts()
        assert after["shop.redis"].metadata.uid == before["shop.redis"].metadata.uid
        assert after["shop.redis"].metadata.generation == 2
        assert after["shop.exporter"].metadata.generation == 1
        await change_spec(world, "shop", contexts=(exporter,))

        async def dropped() -> bool:
            return set(await world.contexts()) == {"shop.exporter"}

        await world.until(dropped)

    play(story)


def test_a_context_deleted_by_hand_comes_back_and_an_orphan_goes() -> None:
    async def story(world: ControlWorld) -> None:
        lifeform = await world.sure.create(make_lifeform("shop"))
        await world.until(phase_is(world, "shop", "Running"))
        first = (await world.contexts())["shop.main"]
        await world.sure.delete(Context, "shop.main", "default")

        async def new_one() -> bool:
            found = (await world.contexts()).get("shop.main")
            return found is not None and found.metadata.uid != first.metadata.uid

        await world.until(new_one)
        orphan = msgspec.structs.replace(
            first,
            metadata=msgspec.structs.replace(first.metadata, name="ghost.main", uid="", resource_version=""),
            spec=msgspec.structs.replace(first.spec, lifeform="ghost", lifeform_uid=lifeform.metadata.uid[::-1]),
        )
        await world.sure.create(orphan)

        async def orphan_gone() -> bool:
            return set(await world.contexts()) == {"shop.main"}

        await world.until(orphan_gone)

    play(story)


def test_a_lifeform_made_anew_under_its_old_name_waits_for_its_predecessor() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(phase_is(world, "shop", "Running"))
        await world.kill()

        # Somebody takes the finalizer away by force: the old contexts outlive their lifeform.
        def forced(lifeform: Lifeform) -> Lifeform:
            return msgspec.structs.replace(lifeform, metadata=msgspec.structs.replace(lifeform.metadata, finalizers=()))

        await world.sure.mutate(Lifeform, "shop", "default", forced)
        await world.sure.delete(Lifeform, "shop", "default")
        second = await world.sure.create(make_lifeform("shop"))
        await world.start()

        async def mine() -> bool:
            found = (await world.contexts()).get("shop.main")
            return found is not None and found.spec.lifeform_uid == second.metadata.uid

        await world.until(mine)
        await world.until(phase_is(world, "shop", "Running"))

    play(story)


def test_an_unreadable_manifest_is_explained_and_harms_nobody() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("bad", memory="lots"))
        await world.sure.create(make_lifeform("good"))
        await world.until(phase_is(world, "good", "Running"))
        bad = await world.lifeform("bad")
        scheduled = find(bad.status.conditions, "Scheduled") if bad else None
        assert scheduled is not None and scheduled.reason == "InvalidSpec" and "'lots'" in scheduled.message

    play(story)


def test_finished_programs_give_their_room_back() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("job", memory="6Gi", restart_policy="Never"))
        await world.until(phase_is(world, "job", "Running"))

        def ended(context: Context) -> Context:
            generation = context.metadata.generation
            status = msgspec.structs.replace(context.status, phase="Succeeded", ready=False, observed_generation=generation)
            return msgspec.structs.replace(context, status=status)

        await world.sure.mutate(Context, "job.main", "default", ended, status=True)
        await world.until(phase_is(world, "job", "Succeeded"))
        await world.sure.create(make_lifeform("next", memory="6Gi"))
        await world.until(phase_is(world, "next", "Running"))

    play(story)


def test_the_store_goes_away_and_comes_back() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        world.store.away = True
        await world.clock.sleep(60)
        world.store.away = False
        await world.until(phase_is(world, "shop", "Running"))

    play(story)


@pytest.mark.parametrize("seed", range(5))
def test_lost_answers_never_make_two(seed: int) -> None:
    async def story(world: ControlWorld) -> None:
        world.store.lose = lambda: world.rng.random() < 0.3
        for number in range(6):
            await world.sure.create(make_lifeform(f"l{number}", "a", "b", cpu="100m"))
        for number in range(6):
            await world.until(phase_is(world, f"l{number}", "Running"), within_s=600)
        lifeforms = [await world.lifeform(f"l{number}") for number in range(6)]
        assert [lifeform.status.epoch for lifeform in lifeforms if lifeform] == [1] * 6
        for number in range(6):
            await world.sure.delete(Lifeform, f"l{number}", "default")
        for number in range(6):
            await world.until(gone(world, f"l{number}"), within_s=600)

    play(story, seed=seed)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("cut_at", range(1, 26))
def test_every_interrupted_prefix_converges(cut_at: int, after: bool) -> None:
    """The process dies before or after its n-th call to the store, in the middle of a whole life; the next one goes on."""

    async def story(world: ControlWorld) -> None:
        world.store.cut_at, world.store.cut_after = cut_at, after

        async def revive() -> None:
            if world.died.is_set():
                await world.kill()
                await world.start()

        async def reach(condition: Callable[[], Awaitable[bool]]) -> None:
            async def check() -> bool:
                await revive()
                return await condition()

            await world.until(check)

        await world.sure.create(make_lifeform("shop", "redis", "exporter"))
        await reach(phase_is(world, "shop", "Running"))
        lifeform = await world.lifeform("shop")
        assert lifeform is not None and lifeform.status.epoch == 1
        await change_spec(world, "shop", operating_mode="Suspended")
        await reach(phase_is(world, "shop", "Suspended"))
        with contextlib.suppress(NotFoundError):
            await world.sure.delete(Lifeform, "shop", "default")
        await reach(gone(world, "shop"))
        assert world.controllers is not None
        assert world.controllers.scheduler.ledger.used("n1").contexts == 0

    play(story)

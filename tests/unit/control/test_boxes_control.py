"""Boxes and forks beside lifeforms: they are counted, end with their parent, and are Unknown where their node is silent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from primordia.control.boxes import step_for
from primordia.kit.errors import NotFoundError
from primordia.sim.objects import make_lifeform, make_node
from primordia.testing.control import ControlWorld, phase_is, play
from primordia.wire.meta import Condition, ObjectMeta
from primordia.wire.resources import Context, ContextSpec, ContextStatus, ContextTemplate, Node, Resources


def box(name: str = "b", parent: Context | None = None, memory: str = "128Mi", **spec: Any) -> Context:
    if parent is not None:
        spec |= {"parent": parent.metadata.name, "parent_uid": parent.metadata.uid, "depth": 1}
    template = ContextTemplate(name="main", image="x", resources=Resources(memory=memory))
    meta = ObjectMeta(name=name, namespace="default")
    return Context(
        metadata=meta,
        spec=ContextSpec(node="n1", epoch=1, template=template, **{"from_template": "py", **spec}),
        status=ContextStatus(phase="Running"),
    )


def silent(node: Node) -> Node:
    conditions = (Condition(type="Ready", status="Unknown"),)
    return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, conditions=conditions))


def marked(context: Context, **meta: Any) -> Context:
    return msgspec.structs.replace(context, metadata=msgspec.structs.replace(context.metadata, **meta))


PARENT = marked(box("p"), uid="u")


@pytest.mark.parametrize(
    ("context", "parent", "node", "step"),
    [
        (box(), None, make_node("n1"), "leave"),
        (box(), None, silent(make_node("n1")), "unknown"),
        (box(), None, None, "unknown"),
        (msgspec.structs.replace(box(), status=ContextStatus(phase="Unknown")), None, None, "leave"),
        (msgspec.structs.replace(box(), status=ContextStatus(phase="Failed")), None, None, "leave"),
        (marked(box(), deletion_timestamp="now"), None, None, "leave"),
        (box(parent=PARENT), PARENT, make_node("n1"), "leave"),
        (box(parent=PARENT), None, make_node("n1"), "delete"),
        (box(parent=PARENT), marked(PARENT, uid="other"), make_node("n1"), "delete"),
        (box(parent=PARENT), marked(PARENT, deletion_timestamp="now"), None, "delete"),
        (box(parent=PARENT, lifetime="keep"), None, make_node("n1"), "leave"),
    ],
)
def test_what_is_done(context: Context, parent: Context | None, node: Node | None, step: str) -> None:
    assert step_for(context, parent, node) == step


def names_are(world: ControlWorld, *names: str) -> Any:
    async def check() -> bool:
        return set(await world.contexts()) == set(names)

    return check


def test_children_end_with_their_parent_and_grandchildren_with_them() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(phase_is(world, "shop", "Running"))
        parent = (await world.contexts())["shop.main"]
        child = await world.sure.create(box("child", parent))
        await world.sure.create(box("grandchild", child))
        await world.sure.create(box("kept", parent, lifetime="keep"))
        await world.sure.create(box("alone"))
        await world.clock.sleep(30)
        assert set(await world.contexts()) == {"shop.main", "child", "grandchild", "kept", "alone"}
        await world.sure.delete(type(make_lifeform("shop")), "shop", "default")
        await world.until(names_are(world, "kept", "alone"))

    play(story)


def test_a_leader_that_begins_ends_what_was_orphaned_meanwhile() -> None:
    async def story(world: ControlWorld) -> None:
        parent = await world.sure.create(box("parent"))
        await world.sure.create(box("child", parent))
        await world.kill()
        await world.sure.delete(Context, "parent", "default")
        await world.clock.sleep(5)
        assert set(await world.contexts()) == {"child"}
        await world.start()
        await world.until(names_are(world))

    play(story)


def test_what_a_box_has_nobody_else_gets() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(box("big", memory="5Gi"))
        await world.clock.sleep(1)
        assert world.controllers is not None
        assert world.controllers.scheduler.ledger.used("n1").contexts == 1
        await world.sure.create(make_lifeform("shop", memory="6Gi"))
        await world.clock.sleep(30)
        assert await phase_is(world, "shop", "Pending")()
        # A new leader counts it again.
        await world.kill()
        await world.start()
        await world.clock.sleep(30)
        assert await phase_is(world, "shop", "Pending")()
        await world.sure.delete(Context, "big", "default")
        await world.until(phase_is(world, "shop", "Running"))

    play(story)


def test_a_silent_nodes_boxes_are_unknown_until_it_speaks() -> None:
    async def story(world: ControlWorld) -> None:
        await world.sure.create(box("mine"))
        world.nodes.silent.add("n1")
        await world.sure.mutate(Node, "n1", "", silent, status=True)

        def phase(name: str) -> Any:
            async def check() -> bool:
                return (await world.sure.get(Context, "mine", "default")).status.phase == name

            return check

        await world.until(phase("Unknown"))
        assert "n1" in (await world.sure.get(Context, "mine", "default")).status.message
        world.nodes.silent.clear()
        good = make_node("n1").status
        await world.sure.mutate(Node, "n1", "", lambda node: msgspec.structs.replace(node, status=good), status=True)
        await world.sure.mutate(Context, "mine", "default", lambda each: marked(each, labels={"a": "b"}))
        await world.until(phase("Running"))
        await world.sure.delete(Context, "mine", "default")
        with pytest.raises(NotFoundError):
            await world.sure.get(Context, "mine", "default")

    play(story)

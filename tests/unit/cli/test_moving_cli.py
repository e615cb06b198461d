"""What drains see, in which order they go, and how moves are told."""

from __future__ import annotations

import msgspec
import pytest

from primordia.cli.describe_moves import move_lines, schedulable_words
from primordia.cli.moving import Row, boxes_on, copies_on, lifeforms_on, rows_text, step_words
from primordia.cli.tree import parse
from primordia.client.moves import Outcome, ended
from primordia.sim.objects import make_lifeform, make_node
from primordia.wire.meta import ANNOTATION_MOVE, Condition, ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextSpec,
    ContextStatus,
    ContextTemplate,
    Lifeform,
    LifeformStatus,
    Maintenance,
    Moved,
    Moving,
    Recovery,
    Volume,
)
from primordia.wire.volumes import VolumeSpec, VolumeStatus, holder_finalizer


def on(node: str, name: str, **spec: object) -> Lifeform:
    made = make_lifeform(name, **spec)  # type: ignore[arg-type]
    return msgspec.structs.replace(made, status=msgspec.structs.replace(made.status, node=node))


def test_who_is_recovered_first_is_moved_first() -> None:
    found = lifeforms_on("n1", [on("n1", "b"), on("n2", "x"), on("n1", "a"), on("n1", "z", recovery=Recovery(priority=5))])
    assert [each.metadata.name for each in found] == ["z", "a", "b"]
    going = msgspec.structs.replace(on("n1", "c"), metadata=ObjectMeta(name="c", deletion_timestamp="now"))
    assert lifeforms_on("n1", [going]) == []


def test_boxes_that_run_are_told() -> None:
    def box(name: str, phase: str, lifeform: str = "", node: str = "n1") -> Context:
        spec = ContextSpec(lifeform=lifeform, node=node, epoch=1, template=ContextTemplate(name="m", image="x"))
        return Context(metadata=ObjectMeta(name=name), spec=spec, status=ContextStatus(phase=phase))

    boxes = [box("a", "Running"), box("b", "Failed"), box("c", "Running", "shop"), box("d", "Running", node="n2")]
    assert [each.metadata.name for each in boxes_on("n1", boxes)] == ["a"]


@pytest.mark.parametrize(
    ("status", "lifeform", "holder", "says"),
    [
        (VolumeStatus(node="n1"), "", "", "of no lifeform"),
        (VolumeStatus(node="n1"), "shop", "", "has not left"),
        (VolumeStatus(node="n2", replicas=("n1",)), "shop", "", "copy has not left"),
        (VolumeStatus(node="n2"), "shop", "n1", "copy has not left"),
        (VolumeStatus(node="n2", replicas=("n3",)), "shop", "n3", ""),
    ],
)
def test_what_is_left_of_volumes_is_told(status: VolumeStatus, lifeform: str, holder: str, says: str) -> None:
    said = (Condition(type="Protected", status="False", message="no other rack has room."),)
    meta = ObjectMeta(name="v", namespace="default", finalizers=(holder_finalizer(holder),) if holder else ())
    spec = VolumeSpec(size="1Gi", lifeform=lifeform)
    rows = copies_on("n1", [Volume(metadata=meta, spec=spec, status=msgspec.structs.replace(status, conditions=said))])
    assert [says in row.words for row in rows] == ([True] if says else [])
    assert all("default/v" in row.what and not row.moved for row in rows)


def test_a_move_has_ended_when_its_wish_is_gone_and_nothing_goes_on() -> None:
    plain = on("n1", "shop")

    def with_(wish: str, moving: Moving | None) -> Lifeform:
        meta = msgspec.structs.replace(plain.metadata, annotations={ANNOTATION_MOVE: wish} if wish else {})
        return msgspec.structs.replace(plain, metadata=meta, status=msgspec.structs.replace(plain.status, moving=moving))

    assert ended(None) and ended(plain)
    assert not ended(with_("elsewhere", None))
    assert not ended(with_("", Moving(phase="Starting", to="n2")))
    assert ended(with_("", Moving(phase="GivenUp", message="It stays.")))
    assert not ended(with_("elsewhere", Moving(phase="GivenUp"))), "of an earlier one"


def test_words() -> None:
    assert step_words("db", Moving(phase="Seeding", to="n2", message="42%")) == "db is brought to n2 (42%)"
    text = rows_text([Row("n1", "default/db", True, "moved", 1.25), Row("n1", "default/box", False, "cannot move")])
    assert "1.25s" in text and "left" in text and "stays" in text
    assert Outcome("n2", Moved(from_node="n1", to="n2", at="", epoch=2), "").moved is not None


def test_the_commands_are_there() -> None:
    assert parse(["migrate", "db", "--rack", "r2"]).command == "moving:migrate"
    assert parse(["node", "evacuate", "n1"]).command == "moving:evacuate"
    assert parse(["rack", "drain", "r1", "--copies"]).copies
    assert parse(["node", "maintenance", "n1", "on", "--for", "30m"]).length == 1800
    with pytest.raises(SystemExit):
        parse(["migrate", "db"])
    with pytest.raises(SystemExit):
        parse(["migrate", "db", "--rack", "r2", "--node", "n1"])


def test_describe_tells_of_moves_and_of_maintenance() -> None:
    status = LifeformStatus(
        moving=Moving(phase="Seeding", from_node="n1", to="n2", message="42%"),
        moved=Moved(from_node="n3", to="n1", at="then", epoch=4, blackout_seconds=1.5),
    )
    assert move_lines(status) == [
        ("Moving", "from n1 to n2, Seeding: 42%"),
        ("Moved", "from n3 to n1 at then, epoch 4: 1.50 s of blackout"),
    ]
    given_up = LifeformStatus(moving=Moving(phase="GivenUp", message="It stays where it is: no room."))
    assert move_lines(given_up) == [("Not moved", "It stays where it is: no room.")]
    node = make_node("n1")
    spec = msgspec.structs.replace(node.spec, unschedulable=True, evacuating=True, maintenance=Maintenance(until="noon"))
    assert schedulable_words(node) == "yes"
    said = schedulable_words(msgspec.structs.replace(node, spec=spec))
    assert "cordoned" in said and "elsewhere" in said and "until noon" in said

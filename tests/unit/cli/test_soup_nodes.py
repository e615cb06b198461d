"""Nodes and racks as people see them: their order, their bars, and the words for a rack that is half well."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

from primordia.cli.describe import text_of
from primordia.cli.nodes import bar, in_order, nodes_text, racks_of, racks_text
from primordia.cli.soup import unwell
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT, Condition, ObjectMeta
from primordia.wire.resources import (
    ContextTemplate,
    Event,
    LabelSelector,
    Lifeform,
    LifeformSpec,
    LifeformStatus,
    Node,
    NodeCapacity,
    NodeSpec,
    NodeStatus,
    ObjectReference,
)

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def node(name: str, rack: str, segment: str, *, ready: str = "True", cordoned: bool = False, memory: str = "0") -> Node:
    labels = {LABEL_RACK: rack, LABEL_SEGMENT: segment}
    return Node(
        metadata=ObjectMeta(name=name, labels=labels, creation_timestamp="2025-12-31T23:00:00Z"),
        spec=NodeSpec(unschedulable=cordoned),
        status=NodeStatus(
            allocated=NodeCapacity(cpu="500m", memory=memory, contexts=1),
            allocatable=NodeCapacity(cpu="8", memory="4Gi", contexts=100),
            conditions=(Condition(type="Ready", status=ready),),
            accelerator="tcg",
        ),
    )


def lifeform(name: str, where: str = "", **spec: object) -> Lifeform:
    template = ContextTemplate(name="main", image="busybox")
    return Lifeform(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}"),
        spec=LifeformSpec(contexts=(template,), **spec),  # type: ignore[arg-type]
        status=LifeformStatus(node=where),
    )


NODES = [
    node("n10", "r1", "s1"),
    node("n2", "r1", "s1", cordoned=True),
    node("n3", "r3", "s2", ready="Unknown"),
    node("n1", "r2", "s1", memory="1Gi"),
]


def test_nodes_stand_by_segment_rack_and_number() -> None:
    assert [each.metadata.name for each in in_order(NODES)] == ["n2", "n10", "n1", "n3"]


@pytest.mark.parametrize(
    ("used", "most", "plain", "blocks"),
    [
        (0, 10, "[..........]", "░░░░░░░░░░"),
        (0.01, 10, "[#.........]", "█░░░░░░░░░"),
        (9.99, 10, "[#########.]", "█████████░"),
        (10, 10, "[##########]", "██████████"),
        (30, 10, "[##########]", "██████████"),
        (0, 0, "[..........]", "░░░░░░░░░░"),
    ],
)
def test_bars(used: float, most: float, plain: str, blocks: str) -> None:
    amounts = Decimal(str(used)), Decimal(str(most))
    assert bar(*amounts, blocks=False) == plain
    assert bar(*amounts, blocks=True) == blocks


def test_a_piped_list_is_plain_ascii() -> None:
    text = nodes_text(in_order(NODES), NOW, colour=False)
    assert text.isascii()
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["SEGMENT", "RACK", "NAME", "STATUS"]
    assert "Ready,SchedulingDisabled" in lines[1]
    assert "[##........] 1.0 GiB/4.0 GiB" in lines[3] or "[##........] 1 GiB/4 GiB" in lines[3]
    assert "Unknown" in lines[4]
    assert not nodes_text(NODES, NOW, colour=True).isascii()
    assert "ENDPOINT" in nodes_text(NODES, NOW, wide=True, colour=False)


def test_racks_sum_their_nodes_up_and_know_who_lives_there() -> None:
    racks = racks_of(NODES, [lifeform("shop", "n10"), lifeform("web", "n2"), lifeform("lost", "n99"), lifeform("new")])
    assert [(rack.segment, rack.name, rack.contexts) for rack in racks] == [("s1", "r1", 2), ("s1", "r2", 1), ("s2", "r3", 1)]
    assert racks[0].lifeforms == ("default/shop", "default/web")
    assert racks[0].plain()["cpu"] == {"allocated": "1", "allocatable": "16"}
    text = racks_text(racks, wide=True, colour=False)
    assert "1 Ready, 1 Ready,SchedulingDisabled" in text
    assert "default/shop,default/web" in text


def test_placement_is_explained() -> None:
    def event(message: str, when: str) -> Event:
        about = ObjectReference(uid="uid-shop")
        return Event(
            metadata=ObjectMeta(name=when), involved_object=about, reason="Scheduled", message=message, last_timestamp=when
        )

    events = [
        event("Placed on n2, epoch 2: it has the most room.", "2026-01-01T00:00:02Z"),
        event("Placed on n1, epoch 1: it was empty.", "2026-01-01T00:00:01Z"),
    ]
    text = text_of(lifeform("shop", "n2", colocate_with=LabelSelector(match_labels={"app": "db"})), events, NOW)
    assert "Why there:  it has the most room." in text.replace("   ", "  ")
    assert "any node, beside lifeforms with app=db" in text
    refused = Condition(type="Scheduled", status="False", reason="Unschedulable", message="0/3 nodes fit: 3 are cordoned.")
    waiting = Lifeform(metadata=ObjectMeta(name="w"), spec=lifeform("w").spec, status=LifeformStatus(conditions=(refused,)))
    assert "Why nowhere:" in text_of(waiting, [], NOW)


def test_status_says_whose_leases_have_ended() -> None:
    ended = Condition(type="Ready", status="Unknown", reason="NodeLeaseExpired", message="Its lease has ended.")
    silent = Node(metadata=ObjectMeta(name="n7"), status=NodeStatus(conditions=(ended,)))
    assert list(unwell([node("n1", "r1", "s1"), silent])) == ["node/n7: Its lease has ended."]

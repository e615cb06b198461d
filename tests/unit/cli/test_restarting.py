"""When a node whose daemon is restarted counts as back."""

from __future__ import annotations

import msgspec
import pytest

from primordia.cli.restarting import chosen, unfinished
from primordia.kit.errors import NotFoundError
from primordia.sim.objects import make_node
from primordia.wire.meta import Condition
from primordia.wire.operations import DaemonStatus
from primordia.wire.resources import Node

NODE = make_node("n1")
BEFORE = DaemonStatus(node="n1", daemon="a", version="1", settled=True, machines={"default/db.main": 7, "default/web.main": 8})
AFTER = msgspec.structs.replace(BEFORE, daemon="b", version="2")


def silent(node: Node) -> Node:
    said = (Condition(type="Ready", status="Unknown", message="Its lease has ended."),)
    return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, conditions=said))


def test_it_is_back_with_every_microvm_that_it_had() -> None:
    assert unfinished(BEFORE, AFTER, NODE) == ""
    more = msgspec.structs.replace(AFTER, machines={**AFTER.machines, "default/new.main": 9})
    assert unfinished(BEFORE, more, NODE) == ""


@pytest.mark.parametrize(
    ("after", "node", "says"),
    [
        (BEFORE, NODE, "old daemon"),
        (msgspec.structs.replace(AFTER, settled=False), NODE, "records"),
        (msgspec.structs.replace(AFTER, settled=False, waits=("default/db.main",)), NODE, "default/db.main"),
        (msgspec.structs.replace(AFTER, machines={"default/db.main": 7}), NODE, "default/web.main"),
        (msgspec.structs.replace(AFTER, machines={"default/db.main": 7, "default/web.main": 9}), NODE, "pid 9 after 8"),
        (AFTER, silent(NODE), "lease has ended"),
    ],
)
def test_what_is_missing_is_said(after: DaemonStatus, node: Node, says: str) -> None:
    assert says in unfinished(BEFORE, after, node)


def test_nodes_by_name() -> None:
    nodes = [make_node("n1"), make_node("n2")]
    assert chosen(nodes, []) == nodes
    assert chosen(nodes, ["n2"]) == nodes[1:]
    with pytest.raises(NotFoundError):
        chosen(nodes, ["n9"])

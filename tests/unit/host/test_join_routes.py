"""Routes to the contexts of other machines: pure."""

from __future__ import annotations

from primordia.daemon.peer_routes import route_commands, wanted_routes
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Node, NodeSpec, NodeStatus

SOUP = "10.128.0.0/9"


def node(name: str, share: str, address: str) -> Node:
    return Node(metadata=ObjectMeta(name=name), spec=NodeSpec(pod_cidr=share), status=NodeStatus(address=address))


def test_every_other_node_is_the_way_to_its_contexts() -> None:
    nodes = [node(f"n{i}", f"10.128.{32 * (i - 1)}.0/19", f"10.9.0.{i}") for i in (1, 2, 3)]
    assert wanted_routes(nodes, "n1", SOUP) == {"10.128.32.0/19": "10.9.0.2", "10.128.64.0/19": "10.9.0.3"}


def test_a_node_that_says_nothing_or_claims_too_much_gets_no_route() -> None:
    nodes = [node("a", "", ""), node("b", "10.128.0.0/19", ""), node("c", "0.0.0.0/0", "10.9.0.2"), node("d", SOUP, "10.9.0.2")]
    assert wanted_routes(nodes, "n1", SOUP) == {}


def test_only_differences_are_carried_out() -> None:
    listed = [
        {"type": "unreachable", "dst": SOUP},
        {"dst": "10.128.0.1", "dev": "t0123456789"},
        {"dst": "10.128.32.0/19", "gateway": "10.9.0.2"},
        {"dst": "10.128.64.0/19", "gateway": "10.9.0.3"},
        {"dst": "10.128.96.0/19", "gateway": "10.9.0.9"},
    ]
    wanted = {"10.128.32.0/19": "10.9.0.2", "10.128.64.0/19": "10.9.0.4", "10.128.128.0/19": "10.9.0.5"}
    assert route_commands(wanted, listed) == [
        ["ip", "route", "delete", "10.128.96.0/19", "via", "10.9.0.9"],
        ["ip", "route", "replace", "10.128.64.0/19", "via", "10.9.0.4"],
        ["ip", "route", "replace", "10.128.128.0/19", "via", "10.9.0.5"],
    ]
    assert route_commands({}, listed[:2]) == []

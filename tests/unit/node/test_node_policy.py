"""Who may talk to whom, as decided from resources alone."""

from __future__ import annotations

from typing import Any

from primordia.node.policy import NAMESPACE_NAME_LABEL, decide
from primordia.ports.network import Endpoint, Flow, Publication
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextSpec,
    ContextStatus,
    ContextTemplate,
    LabelSelector,
    LifeformNetwork,
    Peer,
    Port,
)

OWN = LifeformNetwork(allow_from=(Peer(),))


def context(lifeform: str, number: int, *, namespace: str = "default", node: str = "n1", **more: Any) -> Context:
    """Context `number` of the lifeform, whose address ends in its number."""
    return Context(
        metadata=ObjectMeta(
            name=f"{lifeform}.c{number}", namespace=namespace, uid=f"u{number}", creation_timestamp=more.get("created", "")
        ),
        spec=ContextSpec(
            lifeform=lifeform,
            lifeform_uid=f"{namespace}/{lifeform}",
            node=node,
            epoch=1,
            template=ContextTemplate(name=f"c{number}", image="i", ports=more.get("ports", ())),
            wanted=more.get("wanted", "Running"),
            network=more.get("network", LifeformNetwork()),
            lifeform_labels=more.get("labels", {"app": lifeform}),
        ),
        status=ContextStatus(ip=at(number)),
    )


def at(number: int) -> str:
    return f"10.128.0.{number}"


def flows(*contexts: Context, namespaces: dict[str, dict[str, str]] | None = None, node: str = "n1") -> dict[str, set[str]]:
    addresses = {one.metadata.uid: one.status.ip for one in contexts if one.spec.node == node}
    decided = decide(node, contexts, addresses, namespaces)
    return {flow.destination: set(flow.sources) for flow in decided.state.flows}


def allow(namespace: dict[str, str] | None, pod: dict[str, str] | None) -> LifeformNetwork:
    return LifeformNetwork(
        allow_from=(
            Peer(
                namespace_selector=None if namespace is None else LabelSelector(match_labels=namespace),
                pod_selector=None if pod is None else LabelSelector(match_labels=pod),
            ),
        )
    )


def test_endpoints_are_this_nodes_with_group_and_egress() -> None:
    mine = context("shop", 1, network=LifeformNetwork(egress=True))
    other, elsewhere = context("db", 2), context("db", 3, node="n2")
    decided = decide("n1", (mine, other, elsewhere), {"u1": at(1), "u2": at(2)})
    assert set(decided.state.endpoints) == {
        Endpoint("u1", at(1), "default/shop", egress=True),
        Endpoint("u2", at(2), "default/db"),
    }
    assert decided.state.flows == ()


def test_the_nodes_own_word_about_addresses_goes_before_the_status() -> None:
    decided = decide("n1", (context("shop", 1), context("db", 2)), {"u1": "10.128.0.99"})
    assert [one.address for one in decided.state.endpoints] == ["10.128.0.99"]


def test_a_peer_without_namespace_selector_means_the_own_namespace() -> None:
    found = flows(
        context("db", 1, network=allow(None, {"app": "shop"})), context("shop", 2), context("shop", 3, namespace="other")
    )
    assert found == {at(1): {at(2)}}


def test_an_empty_namespace_selector_means_every_namespace() -> None:
    found = flows(
        context("db", 1, network=allow({}, {"app": "shop"})), context("shop", 2), context("shop", 3, namespace="other")
    )
    assert found == {at(1): {at(2), at(3)}}


def test_namespaces_are_chosen_by_name_and_by_labels() -> None:
    others = (context("shop", 2), context("shop", 3, namespace="other"), context("shop", 4, namespace="third"))
    by_name = allow({NAMESPACE_NAME_LABEL: "other"}, None)
    assert flows(context("db", 1, network=by_name), *others) == {at(1): {at(3)}}
    by_label = allow({"team": "red"}, None)
    labels = {"third": {"team": "red"}, "other": {"team": "blue"}}
    assert flows(context("db", 1, network=by_label), *others, namespaces=labels) == {at(1): {at(4)}}
    # A namespace cannot be given another's name by a label.
    forged = {"third": {NAMESPACE_NAME_LABEL: "other"}}
    assert flows(context("db", 1, network=by_name), *others, namespaces=forged) == {at(1): {at(3)}}


def test_all_labels_of_a_selector_must_match() -> None:
    wanted = allow(None, {"app": "shop", "tier": "web"})
    found = flows(
        context("db", 1, network=wanted),
        context("shop", 2, labels={"app": "shop", "tier": "web", "more": "x"}),
        context("shop", 3, labels={"app": "shop"}),
    )
    assert found == {at(1): {at(2)}}


def test_peers_add_up() -> None:
    both = LifeformNetwork(
        allow_from=(
            Peer(pod_selector=LabelSelector(match_labels={"app": "a"})),
            Peer(pod_selector=LabelSelector(match_labels={"app": "b"})),
        )
    )
    assert flows(context("db", 1, network=both), context("a", 2), context("b", 3), context("c", 4)) == {at(1): {at(2), at(3)}}


def test_both_ends_nodes_know_a_flow_between_them() -> None:
    remote, local = context("db", 1, node="n2", network=allow(None, {"app": "shop"})), context("shop", 2)
    bystander = context("shop", 3, node="n3")
    assert flows(remote, local, bystander) == {at(1): {at(2)}}
    assert flows(remote, local, bystander, node="n2") == {at(1): {at(2), at(3)}}
    assert flows(context("db", 1, node="n2", network=allow(None, {"app": "x"})), local) == {}


def test_an_address_that_two_contexts_claim_opens_nothing() -> None:
    owner, claimant = context("shop", 2, node="n2"), context("evil", 2, node="n3")
    twin = Context(metadata=ObjectMeta(name="x", namespace="default", uid="u9"), spec=claimant.spec, status=claimant.status)
    database = context("db", 1, network=allow(None, {"app": "shop"}))
    assert flows(database, owner) == {at(1): {at(2)}}
    assert flows(database, owner, twin) == {}


def test_equal_rules_share_one_tuple_of_sources() -> None:
    decided = decide("n1", tuple(context("a", n, network=OWN) for n in range(1, 6)), {f"u{n}": at(n) for n in range(1, 6)})
    assert len({id(flow.sources) for flow in decided.state.flows}) == 1
    assert decided.state.flows[0] == Flow(at(1), tuple(at(n) for n in range(1, 6)))


def test_every_node_publishes_every_port_of_running_contexts() -> None:
    contexts = (
        context("shop", 1, ports=(Port(container_port=80, publish=8080), Port(container_port=81))),
        context("db", 2, node="n2", ports=(Port(container_port=6379, publish=6379),)),
        context("old", 3, wanted="Stopped", ports=(Port(container_port=80, publish=9090),)),
    )
    decided = decide("n1", contexts, {"u1": at(1), "u3": at(3)})
    assert decided.state.publications == (Publication(6379, at(2), 6379, "u2"), Publication(8080, at(1), 80, "u1"))
    assert decided.faults == ()


def test_of_two_that_want_a_port_the_older_has_it_and_the_other_is_told() -> None:
    port = (Port(container_port=80, publish=8080),)
    young = context("a", 1, ports=port, created="2026-01-02T00:00:00Z")
    old = context("b", 2, ports=port, created="2026-01-01T00:00:00Z")
    for order in ((young, old), (old, young)):
        decided = decide("n1", order, {"u1": at(1), "u2": at(2)})
        assert [one.uid for one in decided.state.publications] == ["u2"]
        (fault,) = decided.faults
        assert fault.publication.uid == "u1"
        assert "default/b.c2" in fault.message


def test_only_tcp_is_published() -> None:
    decided = decide("n1", (context("a", 1, ports=(Port(container_port=53, publish=53, protocol="UDP"),)),), {"u1": at(1)})
    assert decided.state.publications == ()
    assert "only TCP" in decided.faults[0].message

"""Selectors: Kubernetes' own syntax, matched against stored bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextTemplate,
    Event,
    Lifeform,
    LifeformSpec,
    LifeformStatus,
    Node,
    NodeSpec,
    ObjectReference,
)
from primordia.wire.selectors import SelectorError, parse_fields, parse_labels, selection

LABELS = {"app": "shop", "tier": "db", "example.org/role": "x"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("app=shop", True),
        ("app==shop , tier!=web", True),
        ("app=other", False),
        ("app in (shop, cart),tier notin (web)", True),
        ("app in (cart)", False),
        ("missing notin (a)", True),
        ("missing!=a", True),
        ("missing in (a)", False),
        ("app,!missing,example.org/role", True),
        ("!app", False),
        ("app=", False),
        ("missing=", False),
    ],
)
def test_labels(text: str, holds: bool) -> None:
    assert all(term.holds(LABELS) for term in parse_labels(text)) is holds


@pytest.mark.parametrize("text", [",", "a,", "=x", "a in (", "a in x", "a=b c", "a=b=c", "a b", "/=x", "a=-", "a" * 5000, "!"])
def test_what_is_no_label_selector(text: str) -> None:
    with pytest.raises(SelectorError):
        parse_labels(text)


@pytest.mark.parametrize(
    "text", ["spec.image=x", "metadata.name in (a,b)", "metadata.name", "!metadata.name", "status.phase>1"]
)
def test_what_is_no_field_selector(text: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse_fields(text, Lifeform)
    assert "fieldSelector" in str(caught.value)


def test_fields_of_a_lifeform() -> None:
    meta = ObjectMeta(name="shop", namespace="default", labels=LABELS)
    spec = LifeformSpec(contexts=(ContextTemplate(name="a", image="x"),))
    stored = msgspec.json.encode(Lifeform(metadata=meta, spec=spec, status=LifeformStatus(phase="Running", node="n1")))
    for text, holds in [
        ("metadata.name=shop,metadata.namespace=default", True),
        ("metadata.name!=shop", False),
        ("status.phase=Running,status.node=n1", True),
        ("status.phase!=Pending", True),
        ("status.node=", False),
    ]:
        assert selection(Lifeform, "app=shop", text).matches(stored) is holds
    assert not selection(Lifeform, "app=cart").matches(stored)
    assert selection(Lifeform, "", "metadata.name=shop").name() == "shop"
    assert selection(Lifeform, "", "metadata.name!=shop").name() == ""


def test_fields_of_other_kinds() -> None:
    node = msgspec.json.encode(Node(metadata=ObjectMeta(name="n"), spec=NodeSpec(unschedulable=True)))
    assert selection(Node, "", "spec.unschedulable=true").matches(node)
    about = ObjectReference(kind="Lifeform", name="shop", uid="u")
    event = msgspec.json.encode(Event(metadata=ObjectMeta(name="e", namespace="d"), involved_object=about, type="Warning"))
    assert selection(Event, "", "involvedObject.kind=Lifeform,involvedObject.uid=u,type=Warning").matches(event)
    assert not selection(Event, "", "involvedObject.name=other").matches(event)
    with pytest.raises(SelectorError, match=r"spec\.node"):
        parse_fields("x=y", Context)


def test_what_cannot_be_read_is_not_selected() -> None:
    assert not selection(Lifeform, "app=shop").matches(b"{")
    assert not selection(Lifeform, "app=shop").matches(b'{"metadata":{"labels":5}}')


@given(st.text("ab=!,() in\n", max_size=30))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_labels(text)
    except SelectorError:
        return

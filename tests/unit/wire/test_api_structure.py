"""Types: what msgspec accepts is accepted, and what it refuses is explained, all of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primordia.wire.problems import InvalidResourceError
from primordia.wire.resources import Lifeform, Secret
from primordia.wire.structure import convert, decode


def _lifeform(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "primordia.dev/v1alpha1",
        "kind": "Lifeform",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"contexts": [{"name": "a", "image": "redis"}], **spec},
    }


def _problems(document: Any) -> dict[str, str]:
    with pytest.raises(InvalidResourceError) as caught:
        decode(Lifeform, json.dumps(document).encode())
    return {each.field: each.message for each in caught.value.problems}


def test_every_misfit_is_named() -> None:
    context = {"name": 5, "imgae": "x", "ports": {}, "args": ["a", 1, None], "tty": "yes", "resources": {"memory": None}}
    found = _problems(_lifeform(contexts=[context], operatingMode="Run", network={"egress": 1}, replcas=3))
    assert found == {
        "spec.contexts[0].name": "5 is a number and not text: put it in quotes",
        "spec.contexts[0].image": "is missing",
        "spec.contexts[0].imgae": 'is not a field of ContextTemplate; did you mean "image"?',
        "spec.contexts[0].ports": "{} is an object and not a list",
        "spec.contexts[0].args[1]": "1 is a number and not text: put it in quotes",
        "spec.contexts[0].args[2]": "null is null and not text",
        "spec.contexts[0].tty": '"yes" is text and not true or false',
        "spec.operatingMode": '"Run" is not one of Running, Suspended',
        "spec.network.egress": "1 is a number and not true or false",
        "spec.replcas": "is not a field of LifeformSpec",
    }


def test_wrong_case_is_guessed() -> None:
    context = {"name": "a", "image": "x", "WORKINGDIR": "/"}
    assert 'did you mean "workingDir"?' in _problems(_lifeform(contexts=[context]))["spec.contexts[0].WORKINGDIR"]


@pytest.mark.parametrize("document", [[], "x", None, 5, {}, {"kind": "Node"}, {"kind": 5, "metadata": [], "spec": None}])
def test_documents_of_another_shape(document: Any) -> None:
    assert _problems(document)


def test_null_counts_as_absent() -> None:
    document = _lifeform(nodeSelector=None, network=None)
    document["metadata"] |= {"creationTimestamp": None, "labels": None}
    document["status"] = None
    obj, unknown = decode(Lifeform, json.dumps(document).encode())
    assert (obj.spec.node_selector, obj.metadata.labels, unknown) == ({}, {}, ())


def test_unknown_fields_can_be_left_out() -> None:
    obj, unknown = decode(Lifeform, json.dumps(_lifeform(replcas=3)).encode(), strict=False)
    assert obj.metadata.name == "shop"
    assert [each.field for each in unknown] == ["spec.replcas"]


_WORDS = st.sampled_from(
    ["kind", "metadata", "spec", "contexts", "name", "image", "ports", "containerPort", "data", "type", "x"]
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
_TREES = st.recursive(
    _LEAVES | st.sampled_from(["Lifeform", "Secret"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=5),
    max_leaves=15,
)


@given(_TREES, st.sampled_from([Lifeform, Secret]))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_whatever_msgspec_accepts_is_accepted_alike(value: Any, kind: Any) -> None:
    try:
        expected = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        try:
            obj, _ = convert(kind, value)
        except InvalidResourceError as error:
            assert error.problems
        else:  # only nulls, and numbers that JSON writes otherwise, make the difference
            assert msgspec.convert(msgspec.to_builtins(obj), kind) == obj
    else:
        assert convert(kind, value)[0] == expected

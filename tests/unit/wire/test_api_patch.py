"""Patches: the examples of RFC 7386 and RFC 6902, and what `apply` makes of three states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primordia.wire.patch import PatchError, json_patch, merge_patch, three_way


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_rfc_7386(target: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert merge_patch(target, patch) == result
    assert target == before


@pytest.mark.parametrize(
    ("target", "operations", "result"),
    [
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
        ({"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
        ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["abc"]}], {"foo": ["bar", ["abc"]]}),
        ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
        ({"foo": ["bar", "qux"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar"]}),
        ({"a": [1, 2]}, [{"op": "replace", "path": "/a/1", "value": 3}], {"a": [1, 3]}),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a/b", "path": "/c"}], {"a": {}, "c": 1}),
        ({"a": {"b": 1}}, [{"op": "copy", "from": "/a", "path": "/c"}], {"a": {"b": 1}, "c": {"b": 1}}),
        ({"a/b": 1, "m~n": 2}, [{"op": "test", "path": "/a~1b", "value": 1}, {"op": "remove", "path": "/m~0n"}], {"a/b": 1}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
    ],
)
def test_rfc_6902(target: Any, operations: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert json_patch(target, operations) == result
    assert target == before


@pytest.mark.parametrize(
    "operations",
    [
        {},
        [1],
        [{"op": "grow", "path": "/a"}],
        [{"op": "add", "path": "a", "value": 1}],
        [{"op": "add", "path": "/a"}],
        [{"op": "add", "path": "/x/y", "value": 1}],
        [{"op": "add", "path": "/l/5", "value": 1}],
        [{"op": "add", "path": "/l/01x", "value": 1}],
        [{"op": "remove", "path": ""}],
        [{"op": "remove", "path": "/nope"}],
        [{"op": "test", "path": "/a", "value": 2}],
        [{"op": "move", "from": "/o", "path": "/o/x"}],
        [{"op": "copy", "from": "/o", "path": f"/o/{i}"} for i in range(60)],
        [{"op": "test", "path": "/a", "value": 1}] * 101,
    ],
)
def test_json_patches_that_do_not_fit(operations: Any) -> None:
    target = {"a": 1, "l": [1], "o": {"x": "y"}}
    with pytest.raises(PatchError):
        json_patch(target, operations)
    assert target == {"a": 1, "l": [1], "o": {"x": "y"}}


def test_three_way_removes_what_the_user_no_longer_gives() -> None:
    last = {"spec": {"a": 1, "b": {"c": 1, "d": 1}, "l": [1]}}
    wanted = {"spec": {"b": {"c": 2}, "l": [1, 2]}}
    live = {"spec": {"a": 1, "b": {"c": 1, "d": 1, "theirs": 1}, "l": [1]}, "status": {"phase": "x"}}
    patch = three_way(last, wanted, live)
    assert patch == {"spec": {"a": None, "b": {"c": 2, "d": None}, "l": [1, 2]}}
    assert merge_patch(live, patch) == {"spec": {"b": {"c": 2, "theirs": 1}, "l": [1, 2]}, "status": {"phase": "x"}}


_OBJECTS = st.recursive(
    st.integers(0, 3) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


def _has(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return bool(value == wanted)
    return isinstance(value, dict) and all(key in value and _has(value[key], each) for key, each in wanted.items())


@given(_OBJECTS, _OBJECTS, _OBJECTS)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_after_apply_everything_wanted_is_there(last: Any, wanted: Any, live: Any) -> None:
    result = merge_patch(live, three_way(last, wanted, live))
    assert _has(result, wanted)
    assert three_way(wanted, wanted, result) == {}
    assert not [key for key in last if key not in wanted and key in result]

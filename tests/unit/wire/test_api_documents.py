"""Text from anybody, to plain values: what is read, and what is refused before it costs anything."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primordia.wire.documents import MAX_DEPTH, MAX_NODES, DocumentError, parse_json, parse_yaml

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef.-", min_size=1, max_size=5), inner, max_size=4),
    max_leaves=20,
)


def test_plain_scalars_follow_yaml_1_2() -> None:
    text = "[1, -2, 2.5, 1e3, true, False, null, ~, yes, 12:30, 0123, 1_000, .inf, 1e999, '5', !!str 5, \"\"]"
    assert parse_yaml(text) == [
        [1, -2, 2.5, 1000.0, True, False, None, None, "yes", "12:30", "0123", "1_000", ".inf", "1e999", "5", "5", ""]
    ]


def test_documents_aliases_and_merges() -> None:
    text = "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n---\n- &y z\n- *y\n---\n"
    assert parse_yaml(text) == [{"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}, ["z", "z"], None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "twice (line 2"),
        ("? [a]\n: b", "must be text"),
        ("a: *b", "means nothing"),
        ("a: &x {b: *x}", "means nothing"),
        ("a: &x b\n---\nc: *x", "means nothing"),
        ("!!python/object/apply:os.system [x]", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("<<: 5\na: 1", "takes a mapping"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "deeper"),
        ("- " * 5000 + "x", "deeper"),
        ("a: '", "not YAML"),
        ("\x00", "not YAML"),
        (b"\xff\xfe\xfa", "not YAML"),
    ],
)
def test_what_yaml_is_refused(text: str, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text)
    assert words in str(caught.value)


def test_aliases_of_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(DocumentError, match=f"more than {MAX_NODES}"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize(
    "text", [b"", b"{", b'"\\ud800"', b"\xff", b"[" * 100_000, b"[" * 100 + b"]" * 100, b"9" * 5000, b'{"a":1} x', b"NaN"]
)
def test_what_json_is_refused(text: bytes) -> None:
    with pytest.raises(DocumentError):
        parse_json(text)


@given(_VALUES)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_json_is_read_alike_by_both(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert parse_json(text.encode()) == value
    assert parse_yaml(text) == [value]


@given(st.binary(max_size=200) | st.text(max_size=200))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_read_or_refused(text: bytes | str) -> None:
    with contextlib.suppress(DocumentError):
        parse_yaml(text)
    with contextlib.suppress(DocumentError):
        parse_json(text.encode() if isinstance(text, str) else text)

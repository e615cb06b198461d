"""JSON and YAML text to plain values, safe against whoever sent it.

Depth and number of nodes are bounded, so that neither deep nesting nor aliases of aliases cost more than their bytes.
YAML is read by YAML 1.2's core rules, where `yes` and `12:30` are text; keys are text and must not repeat; nothing but
plain values can be built. The result shares aliased parts: do not change it in place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from primordia.kit.errors import PermanentError

MAX_DEPTH = 64
MAX_NODES = 200_000

_NULL = re.compile(r"(~|null|Null|NULL)?")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]{0,30})(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_TAG = "tag:yaml.org,2002:"
_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}


class DocumentError(PermanentError):
    """The text is no JSON or YAML, or one that is not accepted."""

    reason = "BadRequest"


def parse_json(content: bytes) -> Any:
    """One JSON value. Raises DocumentError."""
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError, ValueError) as error:
        raise DocumentError(f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise DocumentError(_too_deep()) from error
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise DocumentError when a plain value is nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise DocumentError(_too_deep())


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, dict | list)]
    if isinstance(value, list):
        return [child for child in value if isinstance(child, dict | list)]
    return []


def _too_deep() -> str:
    return f"The document is nested deeper than {MAX_DEPTH} levels."


# ---------------------------------------------------------------- YAML


@dataclass
class _Open:
    """A mapping or list that is being read."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    nodes: int = 1
    key: str | None = None
    merged: list[Any] = field(default_factory=list)


class _Builder:
    """Plain values from YAML events, without recursion."""

    def __init__(self) -> None:
        self.documents: list[Any] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0

    def scalar(self, event: Any) -> None:
        """A scalar is a key where a mapping waits for one, else a value."""
        self._check_tag(event)
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            if event.value in top.value:
                raise DocumentError(f"The key {_short(event.value)} is there twice{_place(event)}.")
            top.key = event.value
            return
        plain = event.implicit[0]
        value = _resolve(event.value) if plain or event.tag not in (None, f"{_TAG}str") else event.value
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        self._add(value, 1, event)

    def start(self, event: Any, value: dict[str, Any] | list[Any]) -> None:
        """A mapping or list begins."""
        self._check_tag(event)
        if len(self._open) >= MAX_DEPTH:
            raise DocumentError(_too_deep())
        if self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None:
            raise DocumentError(f"A key must be text{_place(event)}.")
        self._open.append(_Open(value, event.anchor))

    def end(self, event: Any) -> None:
        """The innermost mapping or list is whole."""
        done = self._open.pop()
        if isinstance(done.value, dict):
            for source in done.merged:
                for each in source if isinstance(source, list) else [source]:
                    if not isinstance(each, dict):
                        raise DocumentError(f"`<<` takes a mapping{_place(event)}.")
                    done.value = {**each, **done.value}
        if done.anchor:
            self._anchors[done.anchor] = (done.value, done.nodes)
        self._add(done.value, done.nodes, event)

    def alias(self, event: Any) -> None:
        """A repetition of something anchored before; it counts with all it holds."""
        if event.anchor not in self._anchors:
            raise DocumentError(f"The alias *{_short(event.anchor)} means nothing here{_place(event)}.")
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            raise DocumentError(f"A key must be text{_place(event)}.")
        value, nodes = self._anchors[event.anchor]
        self._add(value, nodes, event)

    def begin_document(self) -> None:
        """Anchors do not reach across documents."""
        self._anchors.clear()

    def _add(self, value: Any, nodes: int, event: Any) -> None:
        if not self._open:
            check_depth(value)
            self.documents.append(value)
            return
        top = self._open[-1]
        top.nodes += nodes
        if top.nodes > MAX_NODES:
            raise DocumentError(f"The document has more than {MAX_NODES} nodes.")
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key == "<<":
            top.merged.append(value)
            top.key = None
        elif top.key is not None:
            top.value[top.key] = value
            top.key = None
        else:
            raise DocumentError(f"A key must be text{_place(event)}.")

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag not in _TAGS and event.tag != "!":
            raise DocumentError(f"The tag {_short(event.tag)} is not accepted{_place(event)}.")


def parse_yaml(content: bytes | str) -> list[Any]:
    """Every document of a YAML text; empty ones are None. JSON is YAML too. Raises DocumentError, with the line."""
    import yaml  # 50 ms of start-up for those who never read YAML

    builder = _Builder()
    try:
        for event in yaml.parse(content, Loader=getattr(yaml, "CLoader", yaml.Loader)):
            match event:
                case yaml.ScalarEvent():
                    builder.scalar(event)
                case yaml.MappingStartEvent():
                    builder.start(event, {})
                case yaml.SequenceStartEvent():
                    builder.start(event, [])
                case yaml.CollectionEndEvent():
                    builder.end(event)
                case yaml.AliasEvent():
                    builder.alias(event)
                case yaml.DocumentStartEvent():
                    builder.begin_document()
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise DocumentError(f"The text is not YAML: {' '.join(str(error).split())[:300]}.") from error
    return builder.documents


def _resolve(text: str) -> Any:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return text if number in (float("inf"), float("-inf")) else number
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _place(event: Any) -> str:
    mark = event.start_mark
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""

"""Patches on plain JSON values: RFC 7386 merge patch, RFC 6902 JSON patch, and the three-way patch of `apply`.

Nothing here changes its arguments: values are copied on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec

from primordia.kit.errors import PermanentError

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_LARGEST_PATCH = 100
_LARGEST_COPY_BYTES = 64 * 1024


class PatchError(PermanentError):
    """The patch is malformed, or does not fit the object."""

    reason = "BadRequest"


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: objects are merged, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def three_way(last: Any, wanted: Any, live: Any) -> dict[str, Any]:
    """The merge patch that makes `live` what the user wants, leaving alone what others wrote.

    A field is removed when the user gave it before (`last`) and no longer does; lists are replaced whole. This is what
    kubectl does for kinds without a strategic merge.
    """
    last, live = _object(last), _object(live)
    patch: dict[str, Any] = {key: None for key in last if key not in wanted and key in live}
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(live.get(key), dict):
            below = three_way(last.get(key), value, live[key])
            if below:
                patch[key] = below
        elif key not in live or live[key] != value:
            patch[key] = copy.deepcopy(value)
    return patch


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- RFC 6902


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902: all operations in order, or PatchError and nothing."""
    if not isinstance(operations, list) or not all(isinstance(each, dict) for each in operations):
        raise PatchError("A JSON patch is a list of operations, as [{'op': 'replace', 'path': '/spec/x', 'value': 1}].")
    if len(operations) > _LARGEST_PATCH:
        raise PatchError(f"A JSON patch may have at most {_LARGEST_PATCH} operations.")
    value = copy.deepcopy(target)
    for index, operation in enumerate(operations):
        apply = _OPERATIONS.get(str(operation.get("op")))
        if apply is None:
            raise PatchError(f"[{index}].op: {operation.get('op')!r} is not one of {', '.join(_OPERATIONS)}.")
        try:
            value = apply(value, operation)
        except PatchError as error:
            raise PatchError(f"[{index}] {operation.get('op')}: {error.message}") from None
    return value


def _pointer(operation: dict[str, Any], field: str = "path") -> list[str]:
    text = operation.get(field)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise PatchError(f"{field!r} must be a JSON pointer such as /spec/operatingMode.")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _value(operation: dict[str, Any]) -> Any:
    if "value" not in operation:
        raise PatchError("'value' is missing.")
    return copy.deepcopy(operation["value"])


def _index(items: list[Any], part: str, *, end: bool) -> int:
    if part == "-" and end:
        return len(items)
    last = len(items) if end else len(items) - 1
    if not (part.isascii() and part.isdigit() and len(part) <= 9 and int(part) <= last):
        raise PatchError(f"there is no item {part!r} in the list.")
    return int(part)


def _step(value: Any, part: str) -> Any:
    if isinstance(value, dict) and part in value:
        return value[part]
    if isinstance(value, list):
        return value[_index(value, part, end=False)]
    raise PatchError(f"there is nothing at {part!r}.")


def _walk(value: Any, parts: list[str]) -> Any:
    for part in parts:
        value = _step(value, part)
    return value


def _add(root: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return value
    parent = _walk(root, parts[:-1])
    if isinstance(parent, dict):
        parent[parts[-1]] = value
    elif isinstance(parent, list):
        parent.insert(_index(parent, parts[-1], end=True), value)
    else:
        raise PatchError(f"nothing can be added at {parts[-1]!r}.")
    return root


def _remove(root: Any, parts: list[str]) -> Any:
    if not parts:
        raise PatchError("the whole object cannot be removed by a patch.")
    parent = _walk(root, parts[:-1])
    _step(parent, parts[-1])
    if isinstance(parent, dict):
        del parent[parts[-1]]
    else:
        del parent[_index(parent, parts[-1], end=False)]
    return root


def _replace(root: Any, operation: dict[str, Any]) -> Any:
    parts = _pointer(operation)
    if not parts:
        return _value(operation)
    return _add(_remove(root, parts), parts, _value(operation))


def _move(root: Any, operation: dict[str, Any]) -> Any:
    source, target = _pointer(operation, "from"), _pointer(operation)
    if target[: len(source)] == source and len(target) > len(source):
        raise PatchError("a value cannot be moved into itself.")
    value = _walk(root, source)
    return _add(_remove(root, source), target, value)


def _copy(root: Any, operation: dict[str, Any]) -> Any:
    value = _walk(root, _pointer(operation, "from"))
    if len(msgspec.json.encode(value)) > _LARGEST_COPY_BYTES:  # copies of copies would double at each step
        raise PatchError(f"a value larger than {_LARGEST_COPY_BYTES} bytes is not copied.")
    return _add(root, _pointer(operation), copy.deepcopy(value))


def _test(root: Any, operation: dict[str, Any]) -> Any:
    if _walk(root, _pointer(operation)) != _value(operation):
        raise PatchError(f"the value at {operation.get('path')!r} is another one.")
    return root


_OPERATIONS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "add": lambda root, operation: _add(root, _pointer(operation), _value(operation)),
    "remove": lambda root, operation: _remove(root, _pointer(operation)),
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}

"""From plain JSON values to typed objects, saying everything that does not fit, and where.

msgspec decodes fast and stops at the first misfit. Only when it stops do we look again, slowly, for all of them; what it
accepts is accepted, and what it refuses stays refused.
"""

from __future__ import annotations

import difflib
import functools
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from primordia.wire.documents import MAX_DEPTH, parse_json
from primordia.wire.problems import InvalidResourceError, Problem, Problems, show
from primordia.wire.resources import Resource

R = TypeVar("R", bound=Resource)


def decode(kind: type[R], body: bytes, *, strict: bool = True) -> tuple[R, tuple[Problem, ...]]:
    """The typed object in a JSON text. Unknown fields are refused (`strict`), or left out and given as problems.

    Raises DocumentError when the text is no JSON, InvalidResourceError when it is not such an object.
    """
    try:
        return _decoder(kind).decode(body), ()
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return convert(kind, parse_json(body), strict=strict)


def convert(kind: type[R], plain: Any, *, strict: bool = True) -> tuple[R, tuple[Problem, ...]]:
    """The same from plain values, which `documents` has bounded in depth."""
    walk = _Walk()
    fitted = walk.value(plain, _type_of(kind), "")
    problems = walk.problems.found + (walk.unknown if strict else [])
    if problems:
        raise InvalidResourceError(kind.KIND, _name_of(plain), problems)
    try:
        return msgspec.convert(fitted, kind), tuple(walk.unknown)
    except msgspec.ValidationError as error:
        raise InvalidResourceError(kind.KIND, _name_of(plain), [Problem("", str(error))]) from error


@functools.cache
def _decoder(kind: type[R]) -> msgspec.json.Decoder[R]:
    return msgspec.json.Decoder(kind)


@functools.cache
def _type_of(kind: type[Resource]) -> inspect.Type:
    return inspect.type_info(kind)


def _name_of(plain: Any) -> str:
    meta = plain.get("metadata") if isinstance(plain, dict) else None
    name = meta.get("name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else ""


class _Walk:
    """Looks over a value beside its type. Null in a field that takes none counts as absent, as in Kubernetes."""

    def __init__(self) -> None:
        self.problems = Problems()
        self.unknown: list[Problem] = []

    def value(self, value: Any, wanted: inspect.Type, path: str) -> Any:
        match wanted:
            case inspect.StructType():
                return self._struct(value, wanted, path)
            case inspect.DictType():
                return self._dict(value, wanted, path)
            case inspect.VarTupleType():
                return self._list(value, wanted, path)
            case inspect.UnionType():
                if value is None:
                    return None
                return self.value(value, next(each for each in wanted.types if not isinstance(each, inspect.NoneType)), path)
            case inspect.AnyType():
                return value
            case inspect.LiteralType():
                if value not in wanted.values or isinstance(value, bool):
                    options = ", ".join(str(each) for each in wanted.values)
                    self.problems.found.append(
                        Problem(path, f"{show(value)} is not one of {options}", "FieldValueNotSupported")
                    )
                return value
        return self._scalar(value, wanted, path)

    def _scalar(self, value: Any, wanted: inspect.Type, path: str) -> Any:
        fits, what = _SCALARS[type(wanted)]
        if not fits(value):
            self._misfit(path, value, what)
        return value

    def _struct(self, value: Any, wanted: inspect.StructType, path: str) -> Any:
        if not isinstance(value, dict):
            self._misfit(path, value, "an object")
            return value
        fields = {field.encode_name: field for field in wanted.fields}
        known = {*fields, *([wanted.tag_field] if wanted.tag_field else [])}
        fitted = {}
        for key, item in value.items():
            below = f"{path}.{key[:MAX_DEPTH]}" if path else key[:MAX_DEPTH]
            if key == wanted.tag_field:
                fitted[key] = item
                if item != wanted.tag:
                    self.problems.invalid(below, f"{show(item)} should be {show(wanted.tag)} here")
            elif key not in fields:
                self.unknown.append(_unknown(below, key, known, wanted.cls.__name__))
            elif item is not None or _takes_null(fields[key].type):
                fitted[key] = self.value(item, fields[key].type, below)
        if wanted.tag_field and wanted.tag_field not in value:
            self.problems.required(wanted.tag_field)
        for name, field in fields.items():
            if field.required and name not in fitted and value.get(name) is None:
                self.problems.required(f"{path}.{name}" if path else name)
        return fitted

    def _dict(self, value: Any, wanted: inspect.DictType, path: str) -> Any:
        if not isinstance(value, dict):
            self._misfit(path, value, "an object")
            return value
        return {key: self.value(item, wanted.value_type, f"{path}[{show(key)}]") for key, item in value.items()}

    def _list(self, value: Any, wanted: inspect.VarTupleType, path: str) -> Any:
        if not isinstance(value, list):
            self._misfit(path, value, "a list")
            return value
        return [self.value(item, wanted.item_type, f"{path}[{index}]") for index, item in enumerate(value)]

    def _misfit(self, path: str, value: Any, what: str) -> None:
        hint = ""
        if what == "text" and isinstance(value, int | float):
            hint = ": put it in quotes"
        self.problems.found.append(
            Problem(path or "(document)", f"{show(value)} is {_name(value)} and not {what}{hint}", "FieldValueTypeInvalid")
        )


def _takes_null(wanted: inspect.Type) -> bool:
    if isinstance(wanted, inspect.UnionType):
        return any(isinstance(each, inspect.NoneType) for each in wanted.types)
    return isinstance(wanted, inspect.AnyType | inspect.NoneType)


def _unknown(path: str, key: str, known: set[str], owner: str) -> Problem:
    near = difflib.get_close_matches(key[:MAX_DEPTH], known, n=1, cutoff=0.7)
    by_case = [each for each in known if each.lower() == key.lower()]
    hint = (by_case or near)[:1]
    tail = f"; did you mean {show(hint[0])}?" if hint else ""
    return Problem(path, f"is not a field of {owner}{tail}", "FieldValueForbidden")


def _name(value: Any) -> str:
    for kind, name in ((bool, "a boolean"), (int, "a number"), (float, "a number"), (str, "text"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "an object"


_SCALARS: dict[type, Any] = {
    inspect.StrType: (lambda value: isinstance(value, str), "text"),
    inspect.BoolType: (lambda value: isinstance(value, bool), "true or false"),
    inspect.IntType: (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    inspect.FloatType: (lambda value: isinstance(value, int | float) and not isinstance(value, bool), "a number"),
    inspect.NoneType: (lambda value: value is None, "null"),
}

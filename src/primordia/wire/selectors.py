"""Label and field selectors: text to a predicate, as Kubernetes writes them.

Labels: `app=shop,tier!=db,role in (web, api),!old,!x`. Fields: `metadata.name=shop,status.phase!=Running`, for those fields
only that a list can be asked by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from primordia.kit.errors import PermanentError
from primordia.wire.checks import check_key, check_label_value
from primordia.wire.problems import Problems, show
from primordia.wire.resources import Context, Event, Image, Lifeform, Node, Resource, Template

_LONGEST = 4096
_MOST_TERMS = 100

_SET = re.compile(r"\s*(?P<key>[^\s!=(),]+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)\s*")
_PAIR = re.compile(r"\s*(?P<key>[^\s!=(),]+)\s*(?P<op>==|!=|=)\s*(?P<values>[^\s!=(),]*)\s*")
_BARE = re.compile(r"\s*(?P<op>!?)\s*(?P<key>[^\s!=(),]+)\s*")


class SelectorError(PermanentError):
    """A selector that is none."""

    reason = "BadRequest"


@dataclass(frozen=True, slots=True)
class Term:
    """One requirement: the key's value is (`in`), or is not (`notin`), among the values; or the key is there, or not."""

    key: str
    operator: Literal["in", "notin", "exists", "absent"]
    values: frozenset[str] = frozenset()

    def holds(self, values: Mapping[str, str]) -> bool:
        """Whether a mapping meets it. A missing key is not among any values."""
        if self.operator == "exists":
            return self.key in values
        if self.operator == "absent":
            return self.key not in values
        return (values.get(self.key) in self.values) == (self.operator == "in")


def parse_labels(text: str) -> tuple[Term, ...]:
    """The terms of a label selector; all must hold. Raises SelectorError."""
    terms = _parse(text, "labelSelector")
    out = Problems()
    for term in terms:
        check_key(out, "labelSelector", term.key)
        for value in term.values:
            check_label_value(out, "labelSelector", value)
    if out.found:
        raise SelectorError(f"{out.found[0]}.")
    return terms


def parse_fields(text: str, kind: type[Resource]) -> tuple[Term, ...]:
    """The terms of a field selector. Raises SelectorError, with the fields that this kind can be asked by."""
    terms = _parse(text, "fieldSelector")
    known = fields_of(kind)
    for term in terms:
        if term.key not in known:
            raise SelectorError(
                f"fieldSelector: {kind.PLURAL} cannot be selected by {show(term.key)}.", remedy=f"Use {', '.join(known)}."
            )
        if term.operator not in ("in", "notin") or len(term.values) != 1:
            raise SelectorError(f"fieldSelector: {show(term.key)} must be compared by = or !=.")
    return terms


def fields_of(kind: type[Resource]) -> tuple[str, ...]:
    """The fields that lists of this kind can be selected by."""
    return ("metadata.name", *(["metadata.namespace"] if kind.NAMESPACED else []), *_FIELDS.get(kind, ()))


def _parse(text: str, what: str) -> tuple[Term, ...]:
    if len(text) > _LONGEST:
        raise SelectorError(f"{what}: is longer than {_LONGEST}.")
    terms: list[Term] = []
    place = 0
    while text.strip():
        match = _SET.match(text, place) or _PAIR.match(text, place) or _BARE.match(text, place)
        if match is None or match.end() == place:
            raise SelectorError(f"{what}: {show(text[place:])} is no requirement.", remedy="Write it as app=shop,tier!=db.")
        terms.append(_term(match.groupdict()))
        place = match.end()
        if place == len(text):
            break
        if text[place] != "," or len(terms) >= _MOST_TERMS:
            raise SelectorError(f"{what}: {show(text[place:])} should not be there.", remedy="Write it as app=shop,tier!=db.")
        place += 1
    return tuple(terms)


def _term(found: dict[str, str]) -> Term:
    key, operator, values = found["key"], found["op"], found.get("values")
    if values is None:
        return Term(key, "absent" if operator else "exists")
    if operator in ("in", "notin"):
        return Term(key, "in" if operator == "in" else "notin", frozenset(value.strip() for value in values.split(",")))
    return Term(key, "notin" if operator == "!=" else "in", frozenset([values]))


# ---------------------------------------------------------------- matching stored bytes

_OBJECT = tuple(f"involvedObject.{name}" for name in ("kind", "namespace", "name", "uid", "fieldPath", "resourceVersion"))
_FIELDS: dict[type[Resource], tuple[str, ...]] = {
    Lifeform: ("status.phase", "status.node"),
    Context: ("spec.node", "spec.lifeform", "spec.parent", "spec.fromTemplate", "status.phase"),
    Image: ("status.phase",),
    Template: ("status.phase", "spec.image"),
    Node: ("spec.unschedulable",),
    Event: (*_OBJECT, "involvedObject.apiVersion", "reason", "type", "source", "reportingComponent"),
}


class _Part(msgspec.Struct, rename="camel", frozen=True):
    """The few fields of a `spec`, `status` or `involvedObject` that selectors read; all else is skipped undecoded."""

    phase: str = ""
    node: str = ""
    lifeform: str = ""
    parent: str = ""
    from_template: str = ""
    image: str = ""
    unschedulable: bool = False
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    field_path: str = ""
    resource_version: str = ""
    api_version: str = msgspec.field(name="apiVersion", default="")


class _Meta(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] = {}


class _Source(msgspec.Struct, frozen=True):
    component: str = ""


class _Light(msgspec.Struct, rename="camel", frozen=True):
    metadata: _Meta
    spec: _Part = _Part()
    status: _Part = _Part()
    involved_object: _Part = _Part()
    reason: str = ""
    type: str = ""
    source: _Source = _Source()
    reporting_component: str = ""


_decoder = msgspec.json.Decoder(_Light)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list or watch is narrowed to."""

    labels: tuple[Term, ...] = ()
    fields: tuple[Term, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, stored: bytes) -> bool:
        """Whether an object, as the JSON it is stored in, is selected. What cannot be read is not."""
        try:
            light = _decoder.decode(stored)
        except (msgspec.DecodeError, UnicodeError):
            return False
        return all(term.holds(light.metadata.labels) for term in self.labels) and all(
            (_field(light, term.key) in term.values) == (term.operator == "in") for term in self.fields
        )

    def name(self) -> str:
        """The one name that can match, or empty text."""
        for term in self.fields:
            if term.key == "metadata.name" and term.operator == "in":
                return next(iter(term.values))
        return ""


def _field(light: _Light, path: str) -> str:
    value: Any = light
    if path == "source":
        return light.source.component
    for part in path.split("."):
        value = getattr(value, _snake(part))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: "_" + found.group().lower(), name)


def selection(kind: type[Resource], labels: str = "", fields: str = "") -> Selection:
    """Both selectors of a request. Raises SelectorError."""
    return Selection(parse_labels(labels), parse_fields(fields, kind))

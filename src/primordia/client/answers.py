"""What the client's methods give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from primordia.client.errors import BrokenAnswerError
from primordia.wire.meta import ListMeta
from primordia.wire.resources import Resource

R = TypeVar("R", bound=Resource)
T = TypeVar("T")
Until = Callable[[Any], bool]


def decode(kind: type[T], content: bytes | msgspec.Raw) -> T:
    """An answer's JSON as the type it should be. Raises BrokenAnswerError."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BrokenAnswerError(
            f"The server's answer is not one that this version understands ({error}).",
            remedy="Compare `primordia version` of both ends.",
        ) from error


@dataclass(frozen=True)
class ObjectList(Generic[R]):
    """Objects in order of namespace and name, as of `resource_version`, from which a watch goes on."""

    items: tuple[R, ...]
    resource_version: str


@dataclass(frozen=True)
class WatchEvent(Generic[R]):
    """One change; `object` is what it is now, or was at last."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: R


@dataclass(frozen=True)
class Applied:
    """The object as it is now, and what `apply` did."""

    object: Resource
    outcome: Literal["created", "configured", "unchanged"]


class TableColumn(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A column. Those with a priority above 0 are for `-o wide`."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0


class TableRow(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Cells in the columns' order; `object` is the object's metadata."""

    cells: tuple[Any, ...]
    object: dict[str, Any] = {}


class Table(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A list as the server lays it out for people."""

    kind: Literal["Table"] = "Table"
    api_version: str = msgspec.field(name="apiVersion", default="meta.k8s.io/v1")
    metadata: ListMeta = ListMeta()
    column_definitions: tuple[TableColumn, ...] = ()
    rows: tuple[TableRow, ...] = ()


@dataclass(frozen=True)
class TableEvent:
    """One change in a watched table. Columns come with the first event only."""

    type: str
    table: Table


# ---------------------------------------------------------------- what `wait` waits for


def ready(obj: Any) -> bool:
    """Its condition Ready is True, for the spec as it now is."""
    return condition("Ready")(obj)


def condition(kind: str, status: str = "True") -> Until:
    """Its condition of that type has that status, and is not of an older spec."""

    def holds(obj: Any) -> bool:
        found = next((each for each in getattr(getattr(obj, "status", None), "conditions", ()) if each.type == kind), None)
        if found is None or found.status.lower() != status.lower():
            return False
        return not found.observed_generation or found.observed_generation >= obj.metadata.generation

    return holds


def phase(*names: str) -> Until:
    """Its phase is one of these."""
    return lambda obj: obj is not None and getattr(obj.status, "phase", "") in names


def deleted(obj: Any) -> bool:
    """It is gone."""
    return obj is None

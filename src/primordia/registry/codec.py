"""Between stored bytes and typed objects, and what a list and a watch give.

The resource version is the key's revision and never stored, so that it cannot be wrong.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from primordia.wire.resources import Resource

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """Objects in order of key, as of `revision`.

    With `more`, the next page is listed with `after=page.after, revision=page.revision`; `remaining` objects are left.
    `undecodable` names (as `NAMESPACE/NAME`) the stored objects that this version cannot read.
    """

    items: tuple[R, ...]
    revision: int
    more: bool = False
    after: str = ""
    remaining: int = 0
    undecodable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change(Generic[R]):
    """One object before (`old`, None if it is new) and after (`new`, None if it is gone) the store's `revision`.

    Both None is a bookmark: everything up to `revision` has been told.
    """

    old: R | None
    new: R | None
    revision: int = 0


def encode(obj: Resource) -> bytes:
    """The object as it is stored."""
    return msgspec.json.encode(with_revision(obj, ""))


def decode(kind: type[R], value: bytes, revision: int) -> R:
    """A stored object, with its revision. Raises msgspec.DecodeError when this version cannot read it."""
    obj: R = _decoder(kind).decode(value)
    return with_revision(obj, str(revision))


def with_revision(obj: R, revision: str) -> R:
    """The same object at another resource version."""
    return obj if obj.metadata.resource_version == revision else with_metadata(obj, resource_version=revision)


def with_metadata(obj: R, **changes: object) -> R:
    """The same object with some fields of its metadata changed."""
    changed: R = msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, **changes))
    return changed


@functools.cache
def _decoder(kind: type[R]) -> msgspec.json.Decoder[R]:
    return msgspec.json.Decoder(kind)

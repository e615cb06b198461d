"""Where an object lies in the store: `/primordia/<plural>/[<namespace>/]<name>`.

A name is never trusted to be one path segment: one that is not would reach into another namespace.
"""

from __future__ import annotations

from primordia.kit.errors import InvalidError
from primordia.wire.resources import Resource

ROOT = "/primordia/"


def prefix_of(kind: type[Resource], namespace: str = "") -> str:
    """The prefix of every key of a kind, or of one namespace of it. Raises InvalidError."""
    if namespace and kind.NAMESPACED:
        return f"{ROOT}{kind.PLURAL}/{_segment('metadata.namespace', namespace)}/"
    return f"{ROOT}{kind.PLURAL}/"


def key_of(kind: type[Resource], name: str, namespace: str = "") -> str:
    """The key of one object. Raises InvalidError when a name is missing or is no single segment."""
    if kind.NAMESPACED:
        _segment("metadata.namespace", namespace)
    return prefix_of(kind, namespace) + _segment("metadata.name", name)


def key_of_object(obj: Resource) -> str:
    """The key of this object."""
    return key_of(type(obj), obj.metadata.name, obj.metadata.namespace)


def path_of(kind: type[Resource], key: str) -> str:
    """The part of a key that names the object within its kind: `NAMESPACE/NAME` or `NAME`."""
    return key.removeprefix(prefix_of(kind))


def path(kind: type[Resource], name: str, namespace: str = "") -> str:
    """`NAMESPACE/NAME`, or `NAME` for kinds without namespaces."""
    return f"{namespace}/{name}" if kind.NAMESPACED else name


def describe(kind: type[Resource], name: str, namespace: str = "") -> str:
    """How a sentence names an object: `Lifeform default/shop`."""
    return f"{kind.KIND} {path(kind, name, namespace)}"


def _segment(field: str, value: str) -> str:
    if not value:
        raise InvalidError(field, "must not be empty")
    if "/" in value or "\0" in value:
        raise InvalidError(field, f"{value[:80]!r} must not have a slash in it")
    return value

"""What a request's path and query mean: pure parsing, so that every odd one is a test case and none a surprise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from primordia.api.errors import RequestError
from primordia.wire import data
from primordia.wire.boxes import BOXES, CLAIM, FORK, INTERNAL_CLAIMS, PROMOTE
from primordia.wire.checks import is_label
from primordia.wire.data import INTERNAL_VOLUMES
from primordia.wire.kinds import root_of
from primordia.wire.resources import BY_PLURAL, Context, Lifeform, Node, Resource, Volume
from primordia.wire.streams import INTERNAL

STREAMS: dict[str, tuple[str, ...]] = {
    "log": ("GET",),
    "exec": ("GET", "POST"),
    "files": ("GET", "PUT"),
    "portforward": ("GET", "POST"),
    **data.STREAMS,
}
ACTIONS: dict[str, tuple[str, ...]] = {**dict.fromkeys((FORK, PROMOTE, BOXES, CLAIM), ("POST",)), **data.ACTIONS}
_INTERNAL_DEPTH = INTERNAL.count("/")
ACTIONS[data.ORPHANS] = ("GET",)
_OF_VOLUMES = (*data.STREAMS, *data.ACTIONS)
_MOST_LIMIT = 10_000
_TRUE = ("true", "1", "")


@dataclass(frozen=True, slots=True)
class Target:
    """The object, list or subresource that a path names. No namespace in a list of a namespaced kind: all of them.

    `uid` is of a context of this very node, whose streams another node asks for; it has no name or namespace then. `here`
    is for a volume that another node takes to be this node's, or for all that this node keeps.
    Boxes are no kind: a claim is an action on the contexts of a namespace, or (for another node) of this node.
    """

    kind: type[Resource]
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    uid: str = ""
    here: bool = False

    @property
    def between_nodes(self) -> bool:
        """Whether this path is for other nodes alone."""
        return bool(self.uid) or self.here or self.subresource == CLAIM

    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that can be used with it."""
        if self.subresource == "status":
            return ("GET", "PUT", "PATCH")
        if self.subresource:
            return STREAMS.get(self.subresource) or ACTIONS[self.subresource]
        if self.name:
            return ("GET", "PUT", "PATCH", "DELETE")
        if self.kind.NAMESPACED and not self.namespace:
            return ("GET",)
        return ("GET", "POST", "DELETE")


def parse(raw_path: str) -> Target | None:
    """The target of a path (still percent-encoded), None when it names nothing of ours. Raises RequestError."""
    parts = [unquote(part) for part in raw_path.split("/")[1:]]
    if raw_path == INTERNAL_CLAIMS:
        return Target(Context, subresource=CLAIM)
    if raw_path.startswith(INTERNAL + "/"):
        return _internal(parts[_INTERNAL_DEPTH:])
    if raw_path == data.INTERNAL_ORPHANS:
        return Target(Node, subresource=data.ORPHANS, here=True)
    if raw_path.startswith(INTERNAL_VOLUMES + "/"):
        return _internal_volume(parts[_INTERNAL_DEPTH:])
    for depth in (2, 3):
        root, rest = "/" + "/".join(parts[:depth]), parts[depth:]
        if root in _ROOTS and rest:
            return _target(root, rest)
    return None


def _internal(parts: list[str]) -> Target | None:
    if len(parts) == 2 and _is_name(parts[0]) and parts[1] in (*STREAMS, FORK, PROMOTE) and parts[1] not in _OF_VOLUMES:
        return Target(Context, subresource=parts[1], uid=parts[0])
    return None


def _internal_volume(parts: list[str]) -> Target | None:
    if len(parts) == 3 and is_label(parts[0]) and _is_name(parts[1]) and parts[2] in _OF_VOLUMES:
        return Target(Volume, parts[0], parts[1], parts[2], here=True)
    return None


def _target(root: str, parts: list[str]) -> Target | None:
    namespace = ""
    if parts[0] == "namespaces" and len(parts) >= 3:
        namespace, parts = parts[1], parts[2:]
        if not is_label(namespace):
            raise RequestError(404, f"{namespace[:80]!r} cannot be a namespace: its name is not a lower-case label.")
    if namespace and parts == [BOXES] and root_of(Context) == root:
        return Target(Context, namespace, subresource=BOXES)
    kind = BY_PLURAL.get(parts[0])
    if kind is None or root_of(kind) != root or (namespace and not kind.NAMESPACED) or len(parts) > 3:
        return None
    name = parts[1] if len(parts) > 1 else ""
    subresource = parts[2] if len(parts) > 2 else ""
    if len(parts) > 1 and not _is_name(name):
        return None
    if name and kind.NAMESPACED and not namespace:
        return None
    if len(parts) > 2 and not _has_subresource(kind, subresource):
        return None
    return Target(kind, namespace, name, subresource)


def _is_name(name: str) -> bool:
    return bool(name) and len(name) <= 253 and "/" not in name and name.isprintable()


def _has_subresource(kind: type[Resource], subresource: str) -> bool:
    if subresource == "status":
        return "status" in kind.__struct_fields__
    if subresource == data.ORPHANS:
        return kind is Node
    if subresource in _OF_VOLUMES:
        return kind is Volume
    if subresource == PROMOTE:
        return kind is Context
    return subresource in (*STREAMS, FORK) and kind in (Lifeform, Context)


_ROOTS = frozenset(root_of(kind) for kind in BY_PLURAL.values())


# ---------------------------------------------------------------- query


@dataclass(frozen=True, slots=True)
class ListQuery:
    """How a list or watch was asked for. `revision` 0 is none; `limit` 0 is all."""

    labels: str = ""
    fields: str = ""
    limit: int = 0
    token: str = ""
    revision: int = 0
    exact: bool = False
    watch: bool = False
    bookmarks: bool = False
    initial_events: bool = False
    timeout_s: float = 0


def list_query(query: Mapping[str, str]) -> ListQuery:
    """The query of a list or watch. Raises RequestError, naming the parameter."""
    limit = number(query, "limit", most=2**31)
    return ListQuery(
        labels=query.get("labelSelector", ""),
        fields=query.get("fieldSelector", ""),
        limit=min(limit, _MOST_LIMIT),
        token=query.get("continue", ""),
        revision=number(query, "resourceVersion", most=2**63 - 1),
        exact=choice(query, "resourceVersionMatch", ("", "Exact", "NotOlderThan")) == "Exact",
        watch=flag(query, "watch"),
        bookmarks=flag(query, "allowWatchBookmarks"),
        initial_events=flag(query, "sendInitialEvents"),
        timeout_s=number(query, "timeoutSeconds", most=2**31),
    )


def number(query: Mapping[str, str], name: str, *, most: int) -> int:
    """A whole number from 0 on; 0 when the parameter is not there."""
    text = query.get(name, "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise RequestError(400, f"{name}: {text[:40]!r} is not a whole number from 0 to {most}.")
    return int(text)


def flag(query: Mapping[str, str], name: str) -> bool:
    """A yes or no; there without a value is yes."""
    return choice(query, name, ("true", "1", "", "false", "0"), absent="false") in _TRUE


def choice(query: Mapping[str, str], name: str, options: tuple[str, ...], *, absent: str = "") -> str:
    """One of some words."""
    text = query.get(name, absent)
    if text not in options:
        raise RequestError(400, f"{name}: {text[:40]!r} is not one of {', '.join(filter(None, options))}.")
    return text


def field_validation(query: Mapping[str, str]) -> str:
    """What becomes of unknown fields: Strict unless asked otherwise."""
    return choice(query, "fieldValidation", ("Strict", "Warn", "Ignore", ""), absent="Strict") or "Strict"


def dry_run(query: Mapping[str, str]) -> bool:
    """Whether nothing is to be stored."""
    return choice(query, "dryRun", ("All", "")) == "All"

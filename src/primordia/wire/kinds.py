"""Kinds by the words people use, and where each lives under the API. The server parses what `path_of` builds."""

from __future__ import annotations

import difflib
from urllib.parse import quote

from primordia.kit.errors import NotFoundError
from primordia.wire.resources import BY_KIND, KINDS, Resource

_BY_WORD: dict[str, type[Resource]] = {word: kind for kind in KINDS for word in (kind.PLURAL, kind.KIND.lower(), *kind.SHORT)}


def find_kind(word: str) -> type[Resource]:
    """The kind meant by `lifeforms`, `Lifeform`, `lf`, or any of these behind `.primordia.dev`.

    Raises NotFoundError, with the nearest words as its remedy.
    """
    kind = _BY_WORD.get(word.lower().partition(".")[0])
    if kind is None:
        near = difflib.get_close_matches(word.lower(), _BY_WORD, n=1)
        known = ", ".join(sorted(each.PLURAL for each in KINDS))
        raise NotFoundError(
            f"There is no kind {word!r}.", remedy=f"Did you mean {near[0]!r}?" if near else f"The kinds are {known}."
        )
    return kind


def kind_of_manifest(manifest: object) -> type[Resource]:
    """The kind that a manifest says it is. Raises NotFoundError in a sentence for people."""
    name = manifest.get("kind") if isinstance(manifest, dict) else None
    if not isinstance(name, str) or not name:
        raise NotFoundError("The manifest has no `kind`.", remedy="Begin it with `apiVersion` and `kind`.")
    kind = BY_KIND.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, BY_KIND, n=1)
        raise NotFoundError(
            f"There is no kind {name!r}.",
            remedy=f"Did you mean {near[0]!r}?" if near else f"The kinds are {', '.join(sorted(BY_KIND))}.",
        )
    return kind


def group_of(kind: type[Resource]) -> str:
    """`primordia.dev`, or empty text for the core group."""
    return kind.API_VERSION.rpartition("/")[0]


def root_of(kind: type[Resource]) -> str:
    """`/apis/GROUP/VERSION`, or `/api/v1` for the core group."""
    return f"/apis/{kind.API_VERSION}" if group_of(kind) else f"/api/{kind.API_VERSION}"


def path_of(kind: type[Resource], namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The URL path of an object, of its subresource, or (without a name) of a list.

    An empty namespace means all of them, and is ignored with kinds that have none.
    """
    parts = [root_of(kind)]
    if kind.NAMESPACED and namespace:
        parts += ["namespaces", quote(namespace, safe="")]
    parts += [kind.PLURAL] + [quote(part, safe="") for part in (name, subresource) if part]
    return "/".join(parts)

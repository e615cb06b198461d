"""Namespaces exist as soon as something is in them, and `default` always; they are found by skipping through the keys."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from primordia.api.answers import document_answer
from primordia.api.errors import RequestError
from primordia.api.negotiate import wants_table
from primordia.ports.store import Store
from primordia.registry import keys
from primordia.wire.checks import is_label
from primordia.wire.resources import Context, Lifeform, Secret

PATH = "/api/v1/namespaces"
_AFTER_SLASH = "0"  # the character behind "/": every key of a namespace is before it
_MOST = 10_000


async def names(store: Store) -> list[str]:
    """Every namespace that has a lifeform, a context or a secret in it: one small read for each."""
    found = {"default"}
    for kind in (Lifeform, Context, Secret):
        prefix = keys.prefix_of(kind)
        after = ""
        while len(found) < _MOST:
            listing = await store.list(prefix, limit=1, after=after)
            if not listing.items:
                break
            namespace = keys.path_of(kind, listing.items[0].key).partition("/")[0]
            found.add(namespace)
            after = f"{prefix}{namespace}{_AFTER_SLASH}"
    return sorted(found)


async def answer(request: web.BaseRequest, name: str, store: Store) -> web.Response:
    """One namespace, or all of them."""
    if request.method != "GET":
        raise RequestError(405, "Namespaces are not made or deleted: one exists as soon as something is in it.")
    if name and not is_label(name):
        raise RequestError(404, f"{name[:80]!r} cannot be a namespace: its name is not a lower-case label.")
    found = [name] if name else await names(store)
    if wants_table(request.headers.get("Accept", "")):
        return document_answer(_table(found))
    if name:
        return document_answer(_namespace(name))
    return document_answer(
        {"kind": "NamespaceList", "apiVersion": "v1", "metadata": {}, "items": [_namespace(n) for n in found]}
    )


def _namespace(name: str) -> dict[str, Any]:
    labels = {"kubernetes.io/metadata.name": name}
    meta = {"name": name, "uid": f"namespace-{name}", "labels": labels}
    return {"kind": "Namespace", "apiVersion": "v1", "metadata": meta, "spec": {}, "status": {"phase": "Active"}}


def _table(found: list[str]) -> dict[str, Any]:
    columns = [
        {"name": n, "type": "string", "format": f, "description": "", "priority": 0}
        for n, f in (("Name", "name"), ("Status", ""))
    ]
    rows = [{"cells": [name, "Active"], "object": _namespace(name)} for name in found]
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows}

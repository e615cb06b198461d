"""What clients ask first: which groups, versions and kinds there are. Plain documents, made once."""

from __future__ import annotations

import functools
import platform
from typing import Any

from primordia import __version__
from primordia.wire import openapi
from primordia.wire.kinds import root_of
from primordia.wire.meta import GROUP, VERSION
from primordia.wire.resources import KINDS, Context, Lifeform, Resource

_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_STATUS_VERBS = ("get", "patch", "update")
_STREAMS = {
    "log": ("get",),
    "exec": ("create", "get"),
    "files": ("get", "update"),
    "portforward": ("create", "get"),
    "fork": ("create",),
}
_CATEGORIES = ("Lifeform", "Context")


@functools.cache
def document(path: str) -> dict[str, Any] | None:
    """The discovery, version or OpenAPI document at a path, None where there is none."""
    found = _documents().get(path)
    if found is None and path.startswith("/openapi/v3/"):
        return openapi.v3(path.removeprefix("/openapi/v3/"))
    return found


@functools.cache
def _documents() -> dict[str, dict[str, Any]]:
    roots = sorted({root_of(kind) for kind in KINDS})
    version = {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}
    group = {"name": GROUP, "versions": [version], "preferredVersion": version}
    resource_lists = {root: _resource_list(root) for root in roots}
    paths = ["/api", "/apis", f"/apis/{GROUP}", *roots, "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3"]
    return {
        "/": {"paths": sorted([*paths, "/readyz", "/version"])},
        "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]},
        f"/apis/{GROUP}": {"kind": "APIGroup", "apiVersion": "v1", **group},
        "/openapi/v2": openapi.v2(),
        "/openapi/v3": openapi.v3_index(),
        "/version": _version(),
        **resource_lists,
    }


def _version() -> dict[str, str]:
    """The version, in the words of Kubernetes: kubectl compares `major` and `minor` with its own."""
    return {
        "major": "1",
        "minor": "32",
        "gitVersion": f"v1.32.0+primordia-{__version__}",
        "platform": f"linux/{platform.machine()}",
        "pythonVersion": platform.python_version(),
        "primordiaVersion": __version__,
    }


def _resource_list(root: str) -> dict[str, Any]:
    entries = [entry for kind in KINDS if root_of(kind) == root for entry in _entries(kind)]
    if root == "/api/v1":
        entries.append(_entry("namespaces", "namespace", "Namespace", False, ("get", "list"), short=("ns",)))
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": root.removeprefix("/apis/").removeprefix("/api/"),
        "resources": entries,
    }


def _entries(kind: type[Resource]) -> list[dict[str, Any]]:
    entry = _entry(kind.PLURAL, kind.KIND.lower(), kind.KIND, kind.NAMESPACED, _VERBS, short=kind.SHORT)
    if kind.KIND in _CATEGORIES:
        entry["categories"] = ["all"]
    below: dict[str, tuple[str, ...]] = {"status": _STATUS_VERBS} if "status" in kind.__struct_fields__ else {}
    if kind in (Lifeform, Context):
        below |= _STREAMS
    return [
        entry,
        *(_entry(f"{kind.PLURAL}/{name}", "", kind.KIND, kind.NAMESPACED, verbs) for name, verbs in below.items()),
    ]


def _entry(
    name: str, singular: str, kind: str, namespaced: bool, verbs: tuple[str, ...], *, short: tuple[str, ...] = ()
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "singularName": singular,
        "namespaced": namespaced,
        "kind": kind,
        "verbs": list(verbs),
    }
    if short:
        entry["shortNames"] = list(short)
    return entry

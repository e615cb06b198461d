"""OpenAPI documents of our kinds, generated from their types: what `kubectl explain` and its validation read.

msgspec gives JSON Schema; Kubernetes' clients read OpenAPI 3.0 (and 2.0), which have no `null` type and no siblings of
`$ref`. Paths carry just what clients look for: the kind of each verb and whether it takes `fieldValidation` and `dryRun`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from primordia.wire import data
from primordia.wire.boxes import (
    BOXES,
    FORK,
    PROMOTE,
    BoxAnswer,
    BoxRequest,
    ForkReport,
    ForkRequest,
    Promoted,
    PromoteRequest,
)
from primordia.wire.kinds import group_of, root_of
from primordia.wire.resources import KINDS, Context, Lifeform, Resource, Volume

_V3 = "#/components/schemas/"
_V2 = "#/definitions/"
_OF_VOLUMES: dict[str, tuple[str, type, type, str]] = {
    data.SNAPSHOTS: ("cut a volume", data.SnapshotRequest, data.SnapshotTaken, "201"),
    data.RESTORE: ("give a volume an old snapshot's content", data.RestoreRequest, data.Restored, "200"),
    data.CLONE: ("make a volume with the content of another", data.CloneRequest, data.Cloned, "201"),
    data.SYNC: ("wait until a volume is on other racks", data.SyncRequest, data.SyncResult, "200"),
}
_BODIES = (
    *(BoxRequest, BoxAnswer, ForkRequest, ForkReport, PromoteRequest, Promoted),
    *(body for _, asked, answered, _ in _OF_VOLUMES.values() for body in (asked, answered)),
)
_QUERY = ("dryRun", "fieldManager", "fieldValidation")


def group_versions() -> dict[str, tuple[type[Resource], ...]]:
    """The kinds of each group version, by the path it is served under, without the first slash."""
    found: dict[str, list[type[Resource]]] = {}
    for kind in KINDS:
        found.setdefault(root_of(kind).lstrip("/"), []).append(kind)
    return {path: tuple(kinds) for path, kinds in found.items()}


@functools.cache
def v3_index() -> dict[str, Any]:
    """What `/openapi/v3` answers."""
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in group_versions()}}


@functools.cache
def v3(path: str) -> dict[str, Any] | None:
    """The OpenAPI 3.0 document of one group version, None if there is none at this path."""
    kinds = group_versions().get(path)
    if kinds is None:
        return None
    return {
        "openapi": "3.0.0",
        "info": _info(),
        "paths": _paths(kinds, _V3, v3_bodies=True) | _actions(kinds, _V3, v3_bodies=True),
        "components": {"schemas": _schemas(kinds, _V3)},
    }


@functools.cache
def v2() -> dict[str, Any]:
    """The OpenAPI 2.0 document of everything."""
    return {
        "swagger": "2.0",
        "info": _info(),
        "paths": _paths(KINDS, _V2, v3_bodies=False) | _actions(KINDS, _V2, v3_bodies=False),
        "definitions": _schemas(KINDS, _V2),
    }


def _info() -> dict[str, str]:
    return {"title": "Primordia", "version": "v1alpha1"}


def _model(name: str) -> str:
    return f"dev.primordia.v1alpha1.{name}"


def _gvk(kind: type[Resource], suffix: str = "") -> dict[str, str]:
    return {"group": group_of(kind), "version": kind.API_VERSION.rpartition("/")[2], "kind": kind.KIND + suffix}


# ---------------------------------------------------------------- schemas


def _schemas(kinds: tuple[type[Resource], ...], root: str) -> dict[str, Any]:
    types = (*kinds, *_BODIES) if Context in kinds else kinds
    _, components = msgspec.json.schema_components(types, ref_template=root + _model("{name}"))
    told = {root + _model(name): schema.get("description", "") for name, schema in components.items()}
    schemas = {_model(name): _described(_clean(schema, root), told) for name, schema in components.items()}
    for kind in kinds:
        schema = schemas[_model(kind.KIND)]
        schema["properties"]["kind"] = {"type": "string", "description": f"Always {kind.KIND}."}
        schema["properties"]["apiVersion"]["description"] = f"Always {kind.API_VERSION}."
        schema["x-kubernetes-group-version-kind"] = [_gvk(kind)]
        schemas[_model(f"{kind.KIND}List")] = _list_schema(kind, root)
    return schemas


def _described(schema: dict[str, Any], told: dict[str, str]) -> dict[str, Any]:
    """The schema with a description for each field: what the docstring of its owner, or of its own type, says of it."""
    sentences = re.split(r"(?<=[.;])\s+", " ".join(schema.get("description", "").split()))
    for name, below in schema.get("properties", {}).items():
        snake = re.sub(r"[A-Z]+", lambda found: "_" + found.group().lower(), name)
        said = " ".join(each for each in sentences if f"`{name}`" in each or f"`{snake}`" in each)
        said = said or told.get(_reference(below), "")
        if said:
            below.setdefault("description", said)
            if "$ref" in below:
                below["allOf"] = [{"$ref": below.pop("$ref")}]
    return schema


def _reference(schema: dict[str, Any]) -> str:
    """What a field, or each item of its list, refers to."""
    inner = schema.get("items", schema)
    return str(inner.get("$ref") or next((each["$ref"] for each in inner.get("allOf", ())), ""))


def _list_schema(kind: type[Resource], root: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"A list of {kind.PLURAL}.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "items": {"type": "array", "items": {"$ref": root + _model(kind.KIND)}},
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": [_gvk(kind, "List")],
    }


def _clean(schema: Any, root: str) -> Any:
    """JSON Schema made into what OpenAPI 3.0 and 2.0 both understand."""
    if isinstance(schema, list):
        return [_clean(each, root) for each in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned = {key: _clean(value, root) for key, value in schema.items() if key not in ("title", "default")}
    cleaned.pop("additionalProperties", None) if cleaned.get("additionalProperties") is False else None
    if "anyOf" in cleaned:
        (variant,) = [each for each in cleaned.pop("anyOf") if each != {"type": "null"}]
        cleaned = {**variant, **cleaned}
        if root == _V3:
            cleaned["nullable"] = True
    if "enum" in cleaned and "type" not in cleaned:
        cleaned["type"] = "string"
    if "$ref" in cleaned and len(cleaned) > 1:
        cleaned["allOf"] = [{"$ref": cleaned.pop("$ref")}]
    return cleaned


# ---------------------------------------------------------------- paths


def _paths(kinds: tuple[type[Resource], ...], root: str, *, v3_bodies: bool) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for kind in kinds:
        base = root_of(kind)
        place = f"{base}/namespaces/{{namespace}}/{kind.PLURAL}" if kind.NAMESPACED else f"{base}/{kind.PLURAL}"
        one, many = root + _model(kind.KIND), root + _model(f"{kind.KIND}List")
        if kind.NAMESPACED:
            paths[f"{base}/{kind.PLURAL}"] = {"get": _operation(kind, "list", many, v3_bodies)}
        paths[place] = {
            "get": _operation(kind, "list", many, v3_bodies),
            "post": _operation(kind, "post", one, v3_bodies),
            "delete": _operation(kind, "deletecollection", many, v3_bodies),
        }
        paths[f"{place}/{{name}}"] = {
            "get": _operation(kind, "get", one, v3_bodies),
            "put": _operation(kind, "put", one, v3_bodies),
            "patch": _operation(kind, "patch", one, v3_bodies),
            "delete": _operation(kind, "delete", one, v3_bodies),
        }
    return paths


def _actions(kinds: tuple[type[Resource], ...], root: str, *, v3_bodies: bool) -> dict[str, Any]:
    """What is asked of contexts and volumes and is no kind's verb: claims of boxes, forks, snapshots."""
    if Context not in kinds:
        return {}
    place = f"{root_of(Context)}/namespaces/{{namespace}}"
    fork = _action("fork a running context", root, (ForkRequest, ForkReport, "200"), v3_bodies)
    promote = _action("make a fork a lifeform", root, (PromoteRequest, Promoted, "201"), v3_bodies)
    return {
        f"{place}/{Context.PLURAL}/{{name}}/{PROMOTE}": {"post": promote},
        f"{place}/{BOXES}": {"post": _action("claim a box", root, (BoxRequest, BoxAnswer, "201"), v3_bodies)},
        f"{place}/{Context.PLURAL}/{{name}}/{FORK}": {"post": fork},
        f"{place}/{Lifeform.PLURAL}/{{name}}/{FORK}": {"post": fork},
        **{
            f"{place}/{Volume.PLURAL}/{{name}}/{name}": {"post": _action(what, root, (asked, answered, code), v3_bodies)}
            for name, (what, asked, answered, code) in _OF_VOLUMES.items()
        },
    }


def _action(what: str, root: str, shape: tuple[type, type, str], v3_bodies: bool) -> dict[str, Any]:
    asked, answered, code = shape
    body, answer = ({"schema": {"$ref": root + _model(each.__name__)}} for each in (asked, answered))
    if not v3_bodies:
        parameters = [{"name": "body", "in": "body", **body}]
        return {"description": what, "parameters": parameters, "responses": {code: {"description": "OK", **answer}}}
    return {
        "description": what,
        "requestBody": {"content": {"application/json": body}},
        "responses": {code: {"description": "OK", "content": {"application/json": answer}}},
    }


def _operation(kind: type[Resource], action: str, answer: str, v3_bodies: bool) -> dict[str, Any]:
    schema = {"schema": {"$ref": answer}}
    writes = action in ("post", "put", "patch")
    parameters = [_parameter(name, v3_bodies) for name in _QUERY if writes or name == "dryRun"]
    return {
        "description": f"{action} {kind.PLURAL}",
        "parameters": parameters if action not in ("get", "list") else [],
        "responses": {"200": {"description": "OK", **({"content": {"application/json": schema}} if v3_bodies else schema)}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(kind),
    }


def _parameter(name: str, v3_bodies: bool) -> dict[str, Any]:
    shape = {"schema": {"type": "string"}} if v3_bodies else {"type": "string"}
    return {"name": name, "in": "query", **shape}

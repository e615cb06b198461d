"""`apply`: make what is there into what the manifest says, by a three-way merge as kubectl does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from primordia.client.answers import Applied
from primordia.kit.errors import AlreadyExistsError, InvalidError, NotFoundError
from primordia.wire.kinds import kind_of_manifest
from primordia.wire.patch import LAST_APPLIED, three_way
from primordia.wire.resources import Resource

if TYPE_CHECKING:
    from primordia.client.aio import AsyncClient


async def apply(client: AsyncClient, manifest: Mapping[str, Any] | Resource, namespace: str, dry_run: bool) -> Applied:
    """See AsyncClient.apply."""
    wanted = _plain(manifest)
    kind = kind_of_manifest(wanted)
    name = name_of(wanted)
    if kind.NAMESPACED:
        wanted = _placed(wanted, namespace or client.namespace)
    where = namespace_of(wanted)
    wanted = remembered(wanted)
    try:
        live = await client.get(kind, name, namespace=where)
    except NotFoundError:
        try:
            return Applied(await client.create_manifest(wanted, dry_run=dry_run), "created")
        except AlreadyExistsError:  # someone was faster
            live = await client.get(kind, name, namespace=where)
    patch = change_of(wanted, live)
    if not patch:
        return Applied(live, "unchanged")
    changed = await client.patch(kind, name, patch, namespace=where, dry_run=dry_run)
    same = changed.metadata.resource_version == live.metadata.resource_version and not dry_run
    return Applied(changed, "unchanged" if same else "configured")


def remembered(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with itself in its own annotation."""
    meta = dict(manifest["metadata"])
    notes = {key: value for key, value in (meta.get("annotations") or {}).items() if key != LAST_APPLIED}
    bare = {**manifest, "metadata": {**meta, "annotations": notes}}
    text = msgspec.json.encode(bare, order="sorted").decode() + "\n"
    return {**manifest, "metadata": {**meta, "annotations": {**notes, LAST_APPLIED: text}}}


def change_of(wanted: Mapping[str, Any], live: Resource) -> dict[str, Any]:
    """The merge patch from what is there to what is wanted."""
    try:
        last = msgspec.json.decode(live.metadata.annotations.get(LAST_APPLIED, "{}"))
    except msgspec.DecodeError:  # not ours, and not readable: nothing is known of the past
        last = {}
    return three_way(last, wanted, msgspec.to_builtins(live))


def name_of(manifest: Mapping[str, Any]) -> str:
    """The name a manifest gives. Raises InvalidError."""
    meta = manifest.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidError("metadata.name", "is missing", remedy="`apply` finds what it changes by its name.")
    return name


def namespace_of(manifest: Mapping[str, Any]) -> str:
    """The namespace a manifest gives, or empty text."""
    meta = manifest.get("metadata")
    namespace = meta.get("namespace") if isinstance(meta, dict) else None
    return namespace if isinstance(namespace, str) else ""


def state_of(obj: Any) -> str:
    """In what state an object is, for a sentence."""
    status = getattr(obj, "status", None)
    phase = getattr(status, "phase", "")
    words = [f"its phase is {phase}"] if phase else []
    words += [
        f"{each.type} is {each.status}"
        + (f" ({each.message.rstrip('.') or each.reason})" if each.message or each.reason else "")
        for each in getattr(status, "conditions", ())
        if each.status != "True"
    ]
    return ", ".join(words) or "it exists"


def _plain(manifest: Mapping[str, Any] | Resource) -> dict[str, Any]:
    plain: Any = msgspec.to_builtins(manifest)
    if not isinstance(plain, dict):
        raise InvalidError("manifest", "is not a mapping", remedy="Begin it with `apiVersion` and `kind`.")
    return {key: value for key, value in plain.items() if key != "status"}


def _placed(manifest: dict[str, Any], namespace: str) -> dict[str, Any]:
    meta = manifest["metadata"]
    return {**manifest, "metadata": {**meta, "namespace": meta.get("namespace") or namespace}}

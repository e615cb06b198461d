"""Create, read, update and delete one object, and delete many.

Every write goes through the same gates in the same order: types, the server's own fields, rules of the kind, what this
user may change; then one guarded transaction of the registry, which knows the rules between objects.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from primordia.api import bodies, listing, objects, volume_guards
from primordia.api.answers import document_answer, json_answer, object_answer
from primordia.api.auth import User, guard_change, guard_removal
from primordia.api.errors import RequestError
from primordia.api.negotiate import patch_is_merge, wants_table
from primordia.api.paths import Target, dry_run, field_validation, list_query
from primordia.api.services import Services
from primordia.kit.errors import AlreadyExistsError, ConflictError, NotFoundError
from primordia.kit.ids import new_uid, suffix
from primordia.registry import keys, rules
from primordia.registry.codec import with_metadata
from primordia.wire import structure, validation
from primordia.wire.documents import parse_json
from primordia.wire.kinds import group_of
from primordia.wire.meta import Status, StatusDetails
from primordia.wire.patch import json_patch, merge_patch
from primordia.wire.resources import Context, Resource, Secret, Volume


async def get(request: web.BaseRequest, target: Target, services: Services) -> web.StreamResponse:
    """One object, from the store, without decoding it where it is answered as it is."""
    if wants_table(request.headers.get("Accept", "")):
        obj = await services.registry.get(target.kind, target.name, target.namespace)
        return object_answer(obj, services, request)
    item = await services.registry.store.get(keys.key_of(target.kind, target.name, target.namespace))
    body = objects.with_version(target.kind, item.value, item.mod_revision) if item is not None else None
    if body is None:
        raise NotFoundError(f"{keys.describe(target.kind, target.name, target.namespace)} does not exist.")
    return json_answer(body)


async def create(request: web.BaseRequest, target: Target, services: Services, user: User) -> web.StreamResponse:
    """A new object."""
    obj, headers = await bodies.read_object(request, target.kind, services.limits)
    fresh = _prepared(obj, target)
    validation.check(fresh)
    if dry_run(request.query):
        return object_answer(await _pretended(fresh, services), services, request, code=201, headers=headers)
    stored = await services.registry.create(fresh)
    return object_answer(stored, services, request, code=201, headers=headers)


async def replace(request: web.BaseRequest, target: Target, services: Services, user: User) -> web.StreamResponse:
    """An object as the body has it (PUT). With a resourceVersion in it, only if that is still the current one."""
    wanted, headers = await bodies.read_object(request, target.kind, services.limits)
    wanted = _placed(wanted, target)
    version, uid = wanted.metadata.resource_version, wanted.metadata.uid

    def change(current: Resource) -> Resource:
        _check_identity(current, version, uid)
        return _accepted(current, wanted, target, services, user)

    return await _write(request, target, services, change, headers)


async def patch(request: web.BaseRequest, target: Target, services: Services, user: User) -> web.StreamResponse:
    """An object with a merge patch or a JSON patch laid over it."""
    apply = merge_patch if patch_is_merge(request.content_type) else json_patch
    document = parse_json(await bodies.read(request, services.limits.body_bytes))
    if apply is merge_patch and not isinstance(document, dict):
        raise RequestError(400, "The body is no merge patch: it must be an object.")
    handling = field_validation(request.query)
    headers: dict[str, str] = {}

    def change(current: Resource) -> Resource:
        plain = apply(parse_json(msgspec.json.encode(current)), document)
        wanted, unknown = structure.convert(target.kind, plain, strict=handling == "Strict")
        headers.update(bodies.warnings(unknown) if handling == "Warn" else {})
        wanted = _placed(wanted, target)
        _check_identity(current, wanted.metadata.resource_version, wanted.metadata.uid)
        return _accepted(current, wanted, target, services, user)

    return await _write(request, target, services, change, headers)


async def delete(request: web.BaseRequest, target: Target, services: Services, user: User) -> web.StreamResponse:
    """The end of an object: at once, or (answered as the object) when its finalizers are done."""
    options = await bodies.read_delete_options(request, services.limits)
    conditions = options.preconditions or bodies.Preconditions()
    uid, version = conditions.uid or "", conditions.resource_version or ""
    if target.kind is Context:  # what is judged here is what is removed: its uid says so
        judged = await services.registry.get(Context, target.name, target.namespace)
        guard_removal(user, judged)
        uid = uid or judged.metadata.uid
    if dry_run(request.query) or options.dry_run:
        obj = await services.registry.get(target.kind, target.name, target.namespace)
        if isinstance(obj, Volume):
            await volume_guards.judge(services.registry, obj, uid)
        _check_identity(obj, version, uid)
        return object_answer(obj, services, request)
    remove: Any = partial(volume_guards.destroy, services.registry) if target.kind is Volume else None
    remove = remove or partial(services.registry.delete, target.kind)
    obj = await remove(target.name, target.namespace, uid=uid, resource_version=version)
    if not rules.finished(obj):
        return object_answer(obj, services, request)
    details = StatusDetails(name=target.name, group=group_of(target.kind), kind=target.kind.PLURAL, uid=obj.metadata.uid)
    return document_answer(Status(status="Success", code=200, details=details))


async def delete_many(request: web.BaseRequest, target: Target, services: Services, user: User) -> web.StreamResponse:
    """The end of every selected object of a namespace, or of a kind without namespaces. Answers how many."""
    options = await bodies.read_delete_options(request, services.limits)
    found = await listing.find(services.registry.store, target, list_query(request.query))
    count = 0
    for item in found.items if target.kind is Context else ():  # all are judged before the first is removed
        if (judged := objects.typed(Context, item.value, item.mod_revision)) is not None:
            guard_removal(user, judged)
    if target.kind is Volume:
        raise volume_guards.refuse_many()
    for item in found.items:
        namespace, _, name = keys.path_of(target.kind, item.key).rpartition("/")
        if not (dry_run(request.query) or options.dry_run):
            try:
                await services.registry.delete(target.kind, name, namespace)
            except NotFoundError:
                continue
        count += 1
    message = f"{count} {target.kind.PLURAL} deleted."
    details = StatusDetails(group=group_of(target.kind), kind=target.kind.PLURAL)
    return document_answer(Status(status="Success", code=200, message=message, details=details))


# ---------------------------------------------------------------- gates


async def _write(
    request: web.BaseRequest, target: Target, services: Services, change: Any, headers: dict[str, str]
) -> web.StreamResponse:
    status = target.subresource == "status"
    registry = services.registry
    if dry_run(request.query):
        current = await registry.get(target.kind, target.name, target.namespace)
        wanted = change(current)
        await registry.check_claims(current, wanted)
        pretended = rules.with_status(current, wanted) if status else rules.updated(current, wanted)
        return object_answer(pretended, services, request, headers=headers)
    stored = await registry.mutate(target.kind, target.name, target.namespace, change, status=status)
    return object_answer(stored, services, request, headers=headers)


def _accepted(current: Resource, wanted: Resource, target: Target, services: Services, user: User) -> Resource:
    """The successor of `current`, once every gate is passed."""
    if target.subresource == "status":
        return wanted
    if isinstance(wanted, Secret):
        wanted = validation.fold_string_data(wanted)
    if wanted == current:
        return current
    validation.check(wanted, current)
    guard_change(user, current, wanted)
    return wanted


def _prepared(obj: Resource, target: Target) -> Resource:
    """A new object without what is the server's to give."""
    if obj.metadata.resource_version:
        raise RequestError(400, "metadata.resourceVersion: must not be set on an object that is created.")
    obj = _placed(obj, target)
    if isinstance(obj, Secret):
        obj = validation.fold_string_data(obj)
    if rules.has(obj, "status"):
        obj = msgspec.structs.replace(obj, status=_field_type(obj, "status")())
    return with_metadata(obj, uid="", generation=0, creation_timestamp=None, deletion_timestamp=None)


def _placed(obj: Resource, target: Target) -> Resource:
    """The object in the namespace (and of the name) that the path says. Raises RequestError where they differ."""
    meta = obj.metadata
    if target.name and meta.name and meta.name != target.name:
        raise RequestError(400, f"metadata.name: {meta.name[:80]!r} is not the name in the path, {target.name!r}.")
    if target.namespace and meta.namespace and meta.namespace != target.namespace:
        raise RequestError(
            400, f"metadata.namespace: {meta.namespace[:80]!r} is not the namespace in the path, {target.namespace!r}."
        )
    changes: dict[str, Any] = {"managed_fields": None, "self_link": ""}
    if target.name:
        changes["name"] = target.name
    if target.namespace:
        changes["namespace"] = target.namespace
    return with_metadata(obj, **changes)


def _check_identity(current: Resource, version: str, uid: str) -> None:
    """The object that was read is the one that is written. Raises ConflictError."""
    meta = current.metadata
    words = keys.describe(type(current), meta.name, meta.namespace)
    if version and version != meta.resource_version:
        raise ConflictError(
            f"{words} was not changed: it is at version {meta.resource_version} and not {version}.",
            remedy="Read it again and repeat the change.",
        )
    if uid and uid != meta.uid:
        raise ConflictError(f"{words} was not changed: its uid is {meta.uid}, it is another object of that name.")


async def _pretended(fresh: Resource, services: Services) -> Resource:
    """What a create would answer. Raises AlreadyExistsError."""
    meta = fresh.metadata
    name = meta.name or meta.generate_name + suffix()
    try:
        await services.registry.get(type(fresh), name, meta.namespace)
    except NotFoundError:
        await services.registry.check_claims(None, fresh)
        now = rules.timestamp(services.clock.wall())
        return rules.born(fresh, name=name, uid=new_uid(), now=now)
    raise AlreadyExistsError(f"{keys.describe(type(fresh), name, meta.namespace)} exists already.")


def _field_type(obj: Resource, field: str) -> Any:
    return type(getattr(obj, field))

"""Reading request bodies: bounded, JSON or YAML, to bytes or plain values or typed objects."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from primordia.api.errors import RequestError
from primordia.api.negotiate import body_is_yaml
from primordia.api.paths import field_validation
from primordia.api.services import Limits
from primordia.kit.units import human_bytes
from primordia.wire import documents, structure
from primordia.wire.problems import Problem
from primordia.wire.structure import R

_MOST_WARNINGS = 10
_LONGEST_WARNING = 200


async def read(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """The whole body. Raises RequestError 413 as soon as it is too long."""
    if (request.content_length or 0) > limit_bytes:
        raise _too_long(limit_bytes)
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit_bytes:
            raise _too_long(limit_bytes)
    return bytes(body)


def _too_long(limit_bytes: int) -> RequestError:
    return RequestError(413, f"The body is longer than {human_bytes(limit_bytes)}.", remedy="Send less, or as JSON.")


async def read_plain(request: web.BaseRequest, limits: Limits) -> Any:
    """The body as plain values."""
    if body_is_yaml(request.content_type):
        found = documents.parse_yaml(await read(request, limits.yaml_bytes))
        if len(found) != 1:
            raise RequestError(400, f"The body has {len(found)} YAML documents.", remedy="Send one object in each request.")
        return found[0]
    return documents.parse_json(await read(request, limits.body_bytes))


async def read_object(request: web.BaseRequest, kind: type[R], limits: Limits) -> tuple[R, dict[str, str]]:
    """The body as an object of a kind, and the headers that warn of fields that were left out."""
    handling = field_validation(request.query)
    strict = handling == "Strict"
    if body_is_yaml(request.content_type):
        obj, unknown = structure.convert(kind, await read_plain(request, limits), strict=strict)
    else:
        obj, unknown = structure.decode(kind, await read(request, limits.body_bytes), strict=strict)
    return obj, warnings(unknown) if handling == "Warn" else {}


def warnings(problems: tuple[Problem, ...]) -> dict[str, str]:
    """The Warning header (RFC 7234) that kubectl prints."""
    texts = [
        ascii(str(each))[1:-1].replace('"', "'").replace("\\", "/")[:_LONGEST_WARNING] for each in problems[:_MOST_WARNINGS]
    ]
    return {"Warning": ", ".join(f'299 - "{text}"' for text in texts)} if texts else {}


class Preconditions(msgspec.Struct, frozen=True, rename="camel"):
    """What must hold for a delete."""

    uid: str | None = None
    resource_version: str | None = None


class DeleteOptions(msgspec.Struct, frozen=True, rename="camel"):
    """How to delete. How dependents go is the owner's business here: `propagationPolicy` is taken and means nothing."""

    preconditions: Preconditions | None = None
    dry_run: tuple[str, ...] | None = None


async def read_delete_options(request: web.BaseRequest, limits: Limits) -> DeleteOptions:
    """The body of a delete, which may be missing."""
    if not request.body_exists:
        return DeleteOptions()
    body = await read(request, limits.body_bytes) if not body_is_yaml(request.content_type) else None
    if body is not None and not body.strip():
        return DeleteOptions()
    plain = documents.parse_json(body) if body is not None else await read_plain(request, limits)
    try:
        return msgspec.convert(plain, DeleteOptions)
    except msgspec.ValidationError as error:
        raise RequestError(400, f"The body is no DeleteOptions: {error}.") from error

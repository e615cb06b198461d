"""Answers: JSON bytes, Status, Table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from primordia.api.negotiate import JSON, wants_table
from primordia.api.paths import choice
from primordia.api.services import Services
from primordia.wire.meta import Status, StatusCause, StatusDetails
from primordia.wire.resources import Resource
from primordia.wire.streams import STATUS_HEADER
from primordia.wire.tables import table

_LONGEST_HEADER = 1000


def json_answer(body: bytes, *, code: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Encoded JSON."""
    return web.Response(body=body, status=code, headers=headers, content_type=JSON)


def document_answer(document: Any, *, code: int = 200) -> web.Response:
    """Plain values as JSON."""
    return json_answer(msgspec.json.encode(document), code=code)


def status_answer(status: Status, *, upgrade: bool = False) -> web.Response:
    """A Status, with its own code.

    Where a WebSocket was asked for (`upgrade`), it is in a header too: WebSocket clients do not show the body of a refusal.
    """
    after = status.details.retry_after_seconds if status.details else 0
    headers = {"Retry-After": str(after)} if after else {}
    if upgrade:
        words = tuple(StatusCause(reason=each.reason) for each in (status.details.causes if status.details else ())[:1])
        details = StatusDetails(causes=words) if words else None
        short = msgspec.structs.replace(status, message=status.message[:_LONGEST_HEADER], details=details)
        headers[STATUS_HEADER] = quote(msgspec.json.encode(short))
    return json_answer(msgspec.json.encode(status), code=status.code, headers=headers)


def object_answer(
    obj: Resource, services: Services, request: web.BaseRequest, *, code: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """One object, as itself or as a Table of one row."""
    if wants_table(request.headers.get("Accept", "")):
        meta = {"resourceVersion": obj.metadata.resource_version}
        return table_answer(type(obj), [obj], services, request, meta, code=code, headers=headers)
    return json_answer(msgspec.json.encode(obj), code=code, headers=headers)


def table_answer(
    kind: type[Resource],
    objs: Sequence[Resource],
    services: Services,
    request: web.BaseRequest,
    meta: Mapping[str, str],
    *,
    code: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Objects as a Table, which is answered as such only to those who asked for one."""
    document = table(kind, objs, services.clock.wall(), include=included(request)) | {"metadata": meta}
    return json_answer(msgspec.json.encode(document), code=code, headers=headers)


def included(request: web.BaseRequest) -> str:
    """How much of each object a Table's rows carry."""
    return choice(request.query, "includeObject", ("None", "Metadata", "Object"), absent="Metadata")

"""Watches: one JSON document a line, told without gap or repeat across closed connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Literal

import msgspec

from primordia.client.answers import R, WatchEvent, decode
from primordia.client.errors import BrokenAnswerError, ExpiredError, from_status
from primordia.client.transport import JSON, Transport
from primordia.kit.errors import TemporaryError
from primordia.wire.meta import Status

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"

_LONGEST_LINE = 8 * 1024 * 1024
_RETRY_S = 0.5
_AWAY_S = 60.0
_QUIET_S = 20.0


class Line(msgspec.Struct, frozen=True):
    """One line of a watch; what `object` is depends on what was asked for."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _Versioned(msgspec.Struct, frozen=True):
    class Meta(msgspec.Struct, frozen=True, rename="camel"):
        resource_version: str = ""

    metadata: Meta = Meta()


def query(*, labels: str = "", fields: str = "", limit: int = 0, **others: str) -> dict[str, str]:
    """The query of a list or watch."""
    params = {"labelSelector": labels, "fieldSelector": fields, "limit": str(limit) if limit else "", **others}
    return {key: value for key, value in params.items() if value}


async def watch_objects(
    transport: Transport, kind: type[R], path: str, params: Mapping[str, str], version: str
) -> AsyncGenerator[WatchEvent[R], None]:
    """The changes after `version`, again and again from the last one seen.

    Raises ExpiredError, and what is the matter when no server can tell more for a minute, or nothing from the start.
    """
    away_s = time.monotonic()
    while True:
        begun_s = time.monotonic()
        asked = {**params, "watch": "true", "allowWatchBookmarks": "true"}
        if version:
            asked["resourceVersion"] = version
        try:
            async for line in watch_lines(transport, path, asked, JSON):
                away_s = time.monotonic()
                seen = decode(_Versioned, line.object).metadata.resource_version
                if line.type in ("ADDED", "MODIFIED", "DELETED"):
                    yield WatchEvent(line.type, decode(kind, line.object))
                # Without a version to go on from, what is there is still being told, and would be told again.
                version = seen if version or line.type == "BOOKMARK" else version
        except ExpiredError:
            raise
        except TemporaryError:
            now_s = time.monotonic()
            if now_s - begun_s > _QUIET_S:  # the watch was there and had nothing to tell
                away_s = now_s
            if not version or now_s - away_s > _AWAY_S:
                raise
        else:
            away_s = time.monotonic()
        await asyncio.sleep(_RETRY_S)


async def watch_lines(transport: Transport, path: str, params: Mapping[str, str], accept: str) -> AsyncGenerator[Line, None]:
    """The lines of one watch, until the server ends it."""
    async with transport.stream("GET", path, params=params, accept=accept) as content:
        buffer = bytearray()
        async for chunk in content.iter_any():
            buffer += chunk
            if len(buffer) > _LONGEST_LINE:
                raise BrokenAnswerError("The server sent a line without end.")
            *lines, rest = buffer.split(b"\n")
            buffer = rest
            for text in lines:
                if text:
                    yield _checked(decode(Line, bytes(text)))


def _checked(line: Line) -> Line:
    if line.type == "ERROR":
        raise from_status(decode(Status, line.object))
    return line

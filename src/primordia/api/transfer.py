"""Logs and files of a context: byte streams over plain HTTP, with the back-pressure of the sockets on both sides.

What goes wrong before the first byte is answered with a Status. Afterwards the connection is cut, so that half a stream
never looks like a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from primordia.api.answers import document_answer
from primordia.api.errors import RequestError
from primordia.api.paths import Target, flag, number
from primordia.api.services import Services
from primordia.api.targets import place_of
from primordia.kit.errors import PrimordiaError
from primordia.ports.contexts import LogLine
from primordia.wire.checks import check_path
from primordia.wire.meta import Status
from primordia.wire.problems import Problems

_CHUNK = 64 * 1024
_FOLLOWED_S = 0.25
_FIRST_S = 30.0
"""A node that asks for another waits a little longer for headers."""


async def log(request: web.BaseRequest, target: Target, services: Services) -> web.StreamResponse:
    """The program's output: `follow`, `tailLines`, `previous`, `timestamps`."""
    query = request.query
    tail = number(query, "tailLines", most=2**31) if query.get("tailLines") else None
    follow, previous, stamped = flag(query, "follow"), flag(query, "previous"), flag(query, "timestamps")
    place = await place_of(request, target, services)
    lines = place.contexts.logs(place.uid, follow=follow, tail=tail, previous=previous)
    return await send(request, _encoded(lines, stamped), "text/plain", first_s=_FOLLOWED_S if follow else _FIRST_S)


async def _encoded(lines: AsyncIterator[LogLine], stamped: bool) -> AsyncIterator[bytes]:
    async for line in lines:
        yield (line.time.encode() + b" " if stamped else b"") + line.text + b"\n"


async def read_files(request: web.BaseRequest, target: Target, services: Services) -> web.StreamResponse:
    """A tar stream of `path`."""
    path = _path(request)
    place = await place_of(request, target, services)
    return await send(request, place.contexts.read_tar(place.uid, path), "application/x-tar")


async def write_files(request: web.BaseRequest, target: Target, services: Services) -> web.StreamResponse:
    """Unpack the body, a tar stream, into the folder `path`."""
    path = _path(request)
    place = await place_of(request, target, services)
    await place.contexts.write_tar(place.uid, path, request.content.iter_chunked(_CHUNK))
    return document_answer(Status(status="Success", code=200))


def _path(request: web.BaseRequest) -> str:
    path = request.query.get("path", "")
    out = Problems()
    check_path(out, "path", path)
    if out.found:
        raise RequestError(400, f"{out.found[0]}.")
    return path


async def send(
    request: web.BaseRequest, chunks: AsyncIterator[bytes], content_type: str, *, first_s: float = _FIRST_S
) -> web.StreamResponse:
    """Send a stream; its first piece decides between an answer and an error.

    A stream may be silent for long (a log that is followed), and clients want their headers: after `first_s` seconds they
    get them, and an error after that cuts the connection.
    """
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
    first = asyncio.ensure_future(anext(chunks, None))
    try:
        await asyncio.wait([first], timeout=first_s)
        if first.done():
            first.result()
        await response.prepare(request)
        piece = await first
        while piece is not None:
            await response.write(piece)
            piece = await anext(chunks, None)
    except PrimordiaError:
        if not response.prepared:
            raise
        if request.transport is not None:
            request.transport.abort()
        return response
    finally:
        await _finish(first, chunks)
    await response.write_eof()
    return response


async def _finish(first: asyncio.Future[bytes | None], chunks: AsyncIterator[bytes]) -> None:
    """Nothing of the stream goes on behind our back."""
    if not first.done():
        first.cancel()
        await asyncio.wait([first])
    close = getattr(chunks, "aclose", None)
    if close is not None:
        with contextlib.suppress(PrimordiaError):
            await close()

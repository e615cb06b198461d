"""Copies of volumes, between nodes: `/node/v1/volumes/UID`. Only with a node's certificate; who may what, the node decides.

The certificate's name is the node that asks. A delta is answered when it is durable here; a whole content is sent as it is
read, and a stream that breaks in its middle is cut, so that it is never taken for whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from primordia.api import bodies
from primordia.api.answers import document_answer
from primordia.api.auth import user_of
from primordia.api.errors import RequestError
from primordia.api.paths import flag, number
from primordia.domain.snapshots import check_volume
from primordia.kit.errors import PrimordiaError
from primordia.ports.copies import CopyHolder
from primordia.wire import copies as wire
from primordia.wire.deltas import CONTENT_TYPE, LARGEST_DISK

T = TypeVar("T")

_LARGEST_BYTES = 64 * 1024
_LONGEST_WAIT_MS = 10_000


class CopiesApi:
    """Answers every path below `/node/v1/volumes/`."""

    streams = True

    def __init__(self, holder: CopyHolder) -> None:
        self._holder = holder

    async def answer(self, request: web.BaseRequest, peer: Mapping[str, Any] | None) -> web.StreamResponse:
        """The answer to one request. Raises PrimordiaError."""
        user = user_of(peer)
        if not user.is_node:
            raise RequestError(403, "This path is for the soup's nodes alone.")
        uid, _, part = request.path.removeprefix(wire.PREFIX).partition("/")
        check_volume(uid)
        match request.method, part:
            case "GET", "":
                wait_s = number(request.query, "waitMs", most=_LONGEST_WAIT_MS) / 1000
                return document_answer(await self._holder.holding(user.name, uid, wait_s=wait_s))
            case "POST", wire.DELTAS:
                aside = flag(request.query, "aside")
                taken = await self._holder.deliver(user.name, uid, request.content.iter_any(), aside=aside)
                return document_answer(taken)
            case "GET", wire.DELTAS:
                begin = number(request.query, "from", most=LARGEST_DISK) if request.query.get("from") else 0
                chunks = self._holder.fetch(user.name, uid, request.query.get("to", ""), begin)
                return await _send(request, chunks)
            case "POST", wire.SEED:
                await self._holder.seed(user.name, uid, await _body(request, wire.Seed))
                return document_answer({})
            case "POST", wire.CURRENT:
                await self._holder.current(user.name, uid, await _body(request, wire.Current))
                return document_answer({})
            case "POST", wire.SCRUB:
                return document_answer(await self._holder.scrub(user.name, uid))
        raise RequestError(404, f"There is nothing to {request.method} at {request.path[:200]!r}.")


async def _body(request: web.BaseRequest, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await bodies.read(request, _LARGEST_BYTES), type=kind)
    except msgspec.MsgspecError as error:
        raise RequestError(400, f"The body is not as it should be: {error}.") from error


async def _send(request: web.BaseRequest, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
    """Send a stream; its first chunk decides between an answer and an error."""
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
    try:
        async for chunk in chunks:
            if not response.prepared:
                await response.prepare(request)
            await response.write(chunk)
    except PrimordiaError:
        if not response.prepared:
            raise
        if request.transport is not None:
            request.transport.abort()
        return response
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
    await response.write_eof()
    return response

"""The copies of volumes on another node: its own body of the copies port, over its API's paths for nodes.

Connections are kept: a delta of a few blocks must not wait for a handshake. A node that takes nothing for a while, in the
middle of a stream, counts as gone: the stream is cut off, and goes on later from where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import TypeVar

import aiohttp
import msgspec

from primordia.drivers.contexts_remote import failures
from primordia.drivers.contexts_remote.failures import NodeUnreachableError
from primordia.kit.errors import TemporaryError
from primordia.wire import copies as wire
from primordia.wire.data import ScrubbedCopy
from primordia.wire.deltas import CONTENT_TYPE

_CONNECT_S = 5.0
_STALL_S = 30.0
"""A node that takes or gives nothing for so long is gone; it may wait so long for its disk."""
_ANSWER_S = 20.0
_SCRUB_S = 900.0
_IDLE_S = 75.0

T = TypeVar("T")


class CopyPeers:
    """The other nodes, as places of copies. Use it in one event loop, and close it there."""

    def __init__(self, tls: ssl.SSLContext, port: int) -> None:
        """`tls` trusts the soup's authority and shows our node's certificate; `port` is every node's API's."""
        self._tls = tls
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    def copies(self, node: str, address: str) -> RemoteCopies:
        """The copies at the node of that address."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls, limit=0, keepalive_timeout=_IDLE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return RemoteCopies(self._session, node, f"{address}:{self._port}")

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class RemoteCopies:
    """The copies port's body for one other node. Beside what that raises, NodeUnreachableError."""

    def __init__(self, session: aiohttp.ClientSession, node: str, place: str) -> None:
        self._session = session
        self._node = node
        self._place = place

    async def holding(self, uid: str, *, wait_s: float = 0.0) -> wire.Holding:
        """See the port."""
        params = {"waitMs": str(round(wait_s * 1000))} if wait_s else {}
        asked = self._session.get(self._url(uid), params=params)
        async with self._told(), asyncio.timeout(_ANSWER_S + wait_s), asked as answer:
            return self._decoded(await self._body(answer), wire.Holding)

    async def deliver(self, uid: str, chunks: AsyncIterator[bytes], *, aside: bool) -> wire.Taken:
        """See the port."""
        broken: list[Exception] = []
        params = {"aside": "true"} if aside else {}
        headers = {"Content-Type": CONTENT_TYPE}
        async with self._told(broken), asyncio.timeout(_STALL_S) as scope:
            request = self._session.post(
                self._url(uid, wire.DELTAS), params=params, data=_watched(chunks, scope, broken), headers=headers
            )
            async with request as answer:
                return self._decoded(await self._body(answer), wire.Taken)

    async def fetch(self, uid: str, root: str, begin: int) -> AsyncIterator[bytes]:
        """See the port."""
        params = {"to": root, "from": str(begin)}
        async with self._told():
            async with asyncio.timeout(_STALL_S):
                answer = await self._session.get(self._url(uid, wire.DELTAS), params=params)
            async with answer:
                if answer.status >= 400:
                    await self._body(answer)
                while True:
                    async with asyncio.timeout(_STALL_S):
                        chunk = await answer.content.readany()  # as it came: nothing is copied to fit
                    if not chunk:
                        return
                    yield chunk

    async def seed(self, uid: str, seed: wire.Seed) -> None:
        """See the port."""
        await self._post(uid, wire.SEED, msgspec.json.encode(seed), _ANSWER_S)

    async def current(self, uid: str, current: wire.Current) -> None:
        """See the port."""
        await self._post(uid, wire.CURRENT, msgspec.json.encode(current), _ANSWER_S)

    async def scrub(self, uid: str) -> ScrubbedCopy:
        """See the port."""
        return self._decoded(await self._post(uid, wire.SCRUB, b"{}", _SCRUB_S), ScrubbedCopy)

    async def _post(self, uid: str, part: str, body: bytes, within_s: float) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = self._session.post(self._url(uid, part), data=body, headers=headers)
        async with self._told(), asyncio.timeout(within_s), request as answer:
            return await self._body(answer)

    def _url(self, uid: str, part: str = "") -> str:
        return f"https://{self._place}{wire.path_of(uid, part)}"

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        body = await answer.read()
        if answer.status >= 400:
            raise failures.error_of_answer(answer.status, body, self._node)
        return body

    def _decoded(self, content: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise TemporaryError(
                f"Node {self._node} answered in a way that this version does not understand ({error}).",
                remedy="Compare the versions in `primordia get nodes -o wide`.",
                reason="BrokenAnswer",
            ) from error

    @contextlib.asynccontextmanager
    async def _told(self, broken: list[Exception] | None = None) -> AsyncIterator[None]:
        """Say what is wrong with the node; `broken` is what went wrong on our side first, in reading what was to be sent."""
        try:
            yield
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if broken:
                raise broken[0] from error
            why = "it takes and gives nothing" if isinstance(error, TimeoutError) else str(error).rstrip(".") or "cut off"
            raise NodeUnreachableError(
                f"Node {self._node} does not answer at {self._place} ({why}).",
                remedy="See `primordia node ls`; it goes on by itself when the node is back.",
            ) from error


async def _watched(chunks: AsyncIterator[bytes], scope: asyncio.Timeout, broken: list[Exception]) -> AsyncIterator[bytes]:
    """The chunks. The node's time runs while it takes one; while we make the next it stands still."""
    loop = asyncio.get_running_loop()
    try:
        scope.reschedule(None)
        async for chunk in chunks:
            scope.reschedule(loop.time() + _STALL_S)
            yield chunk
            scope.reschedule(None)
        scope.reschedule(loop.time() + _STALL_S)
    except Exception as error:
        broken.append(error)
        raise

"""Requests to one other node's API, by its address in the soup's network and with our own node's certificate.

Each request has a connection of its own: its TLS handshake shows that the node's daemon is alive before anything is asked of
it, which a connection out of a pool would not. What is asked often and may be asked twice has one that is kept (`ask`): there
a node that does not answer soon is asked over another one whether it is alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Callable
from urllib.parse import unquote_to_bytes

import aiohttp

from primordia.drivers.contexts_remote import failures
from primordia.drivers.contexts_remote.watch import Watch
from primordia.kit.clock import Clock
from primordia.kit.tasks import TaskSet
from primordia.wire.streams import STATUS_HEADER, internal_path

CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 45.0
"""More than a node gives its guest for an answer: the node's own words are the better ones."""
_CLOSE_WITHIN_S = 1.0
_KEPT_S = 30.0
_DOUBT_S = 1.0
_LARGEST_FRAME = 4 * 1024 * 1024

Params = list[tuple[str, str]]
Socket = aiohttp.ClientWebSocketResponse


def new_session(tls: ssl.SSLContext, *, kept: bool = False) -> aiohttp.ClientSession:
    """What all peers share; with `kept`, for what `Peer.ask` asks."""
    connector = (
        aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=_KEPT_S)
        if kept
        else aiohttp.TCPConnector(ssl=tls, limit=0, force_close=True)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN_S),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


class Peer:
    """One node. Every method raises NodeUnreachableError, or the error that the node's Status tells of."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        node: str,
        place: str,
        clock: Clock,
        tasks: TaskSet,
        kept: aiohttp.ClientSession | None = None,
    ) -> None:
        """`place` is ADDRESS:PORT; `kept` is a session that keeps connections."""
        self.node = node
        self._session = session
        self._kept = kept or session
        self._place = place
        self._clock = clock
        self._tasks = tasks
        self._watch = Watch(node, self.answers, clock, tasks)

    async def answers(self) -> bool:
        """Whether the node's API says anything at all."""
        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT_WITHIN_S)
            async with self._session.get(f"https://{self._place}/healthz", timeout=timeout):
                return True
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    @contextlib.asynccontextmanager
    async def download(self, uid: str, subresource: str, params: Params) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of a GET from a context, piece by piece."""
        async with self.download_from(internal_path(uid, subresource), params) as pieces:
            yield pieces

    @contextlib.asynccontextmanager
    async def download_from(self, path: str, params: Params) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of any GET, piece by piece."""
        async with self._translated(begun=False), asyncio.timeout(ANSWER_WITHIN_S):
            answer = await self._session.get(f"https://{self._place}{path}", params=params)
            await self._check(answer)
        self._watch.add(answer, answer.close)
        try:
            yield self._pieces(answer)
        finally:
            self._watch.remove(answer)
            answer.close()  # what was not read is not waited for

    async def _pieces(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async with self._translated(begun=True):
            async for piece in answer.content.iter_any():
                yield piece

    async def upload(self, uid: str, subresource: str, params: Params, chunks: AsyncIterator[bytes]) -> None:
        """A PUT into a context."""
        await self.upload_to("PUT", internal_path(uid, subresource), params, chunks)

    async def upload_to(self, method: str, path: str, params: Params, chunks: AsyncIterator[bytes]) -> bytes:
        """Any stream of bytes, and its answer, which comes when all has been taken: it may take any time."""
        async with self._translated(begun=False), asyncio.timeout(None) as scope:
            self._watch.add(scope, lambda: scope.reschedule(asyncio.get_running_loop().time()))
            try:
                url = f"https://{self._place}{path}"
                async with self._session.request(method, url, params=params, data=chunks) as answer:
                    await self._check(answer)
                    return await answer.read()
            finally:
                self._watch.remove(scope)

    async def post(self, path: str, body: bytes, within_s: float) -> bytes:
        """A POST of JSON and its whole answer. Leaving early ends what was asked for there."""
        async with self._translated(begun=False):
            return await self._post(self._session, path, body, within_s)

    async def ask(self, path: str, body: bytes, within_s: float) -> bytes:
        """The same for what may be done twice, over a connection that is kept; where that has broken, over a new one."""
        async with self._translated(begun=False):
            try:
                return await self._post(self._kept, path, body, within_s, doubt_s=_DOUBT_S)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                return await self._post(self._session, path, body, within_s)

    async def _post(
        self, session: aiohttp.ClientSession, path: str, body: bytes, within_s: float, *, doubt_s: float = 0.0
    ) -> bytes:
        async with asyncio.timeout(within_s) as scope:

            def cut() -> None:
                scope.reschedule(asyncio.get_running_loop().time())

            self._watch.add(scope, cut)
            doubting = self._tasks.start(self._doubt(doubt_s, cut), name=self.node) if doubt_s else None
            try:
                headers = {"Content-Type": "application/json"}
                async with session.post(f"https://{self._place}{path}", data=body, headers=headers) as answer:
                    await self._check(answer)
                    return await answer.read()
            finally:
                self._watch.remove(scope)
                if doubting is not None:
                    doubting.cancel()

    async def _doubt(self, after_s: float, cut: Callable[[], None]) -> None:
        """The connection is old: it says nothing of whether the node is there."""
        await self._clock.sleep(after_s)
        if not await self.answers():
            cut()

    async def websocket(self, uid: str, subresource: str, params: Params, protocol: str) -> Socket:
        """An open WebSocket; give it back with `drop`."""
        async with self._translated(begun=False), asyncio.timeout(ANSWER_WITHIN_S):
            websocket = await self._session.ws_connect(
                self._url(uid, subresource),
                params=params,
                protocols=(protocol,),
                max_msg_size=_LARGEST_FRAME,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_WITHIN_S),
            )
        connection = websocket.get_extra_info("socket")
        self._watch.add(websocket, lambda: _shut_down(connection))
        return websocket

    async def drop(self, websocket: Socket) -> None:
        """Close a WebSocket; harmless when it is closed."""
        self._watch.remove(websocket)
        await websocket.close()

    def _url(self, uid: str, subresource: str) -> str:
        return f"https://{self._place}{internal_path(uid, subresource)}"

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status >= 400:
            async with answer:
                raise failures.error_of_answer(answer.status, await answer.read(), self.node)

    @contextlib.asynccontextmanager
    async def _translated(self, *, begun: bool) -> AsyncIterator[None]:
        try:
            yield
        except aiohttp.WSServerHandshakeError as error:
            header = error.headers.get(STATUS_HEADER, "") if error.headers is not None else ""
            raise failures.error_of_answer(error.status, unquote_to_bytes(header), self.node) from error
        except TimeoutError as error:
            raise failures.unreachable(self.node, self._place, "no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            if begun:
                raise failures.broken(self.node) from error
            raise failures.unreachable(self.node, self._place, _words(error)) from error


def _shut_down(connection: TransportSocket | None) -> None:
    """Both directions end, and whoever waits for either is told."""
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _words(error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__)

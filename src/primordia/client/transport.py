"""HTTP to whichever server of the soup answers.

A request goes to the server that answered last. When no connection to it can be made, nothing has been sent, and the next
server gets the request; once something has been sent only reads are tried elsewhere, because a write may have been done.
"""

from __future__ import annotations

import contextlib
import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from primordia.client.config import ClientConfig
from primordia.client.errors import START, BrokenAnswerError, ConnectError, from_answer, from_tls
from primordia.client.tls import context_of, explain_refusal
from primordia.kit.errors import PrimordiaError
from primordia.wire.streams import STATUS_HEADER

if TYPE_CHECKING:
    import aiohttp

# aiohttp is imported where it is used: it costs a quarter second, which `primordia --help` does not pay.

_CONNECT_S = 5.0
_REQUEST_S = 60.0
_NEXT_S = 10.0
"""After this long without an answer, a read is asked of the next server: a daemon that hangs keeps its connections."""
_LARGE_BODY = 512 * 1024  # aiohttp sends larger ones in pieces only from a file
_LARGEST_FRAME = 4 * 1024 * 1024
JSON = "application/json"

T = TypeVar("T")


class Transport:
    """Connections to the servers of one config. Make it in the event loop that uses it; close it there."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._servers = tuple(server.rstrip("/") for server in config.servers)
        self._current = 0
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None

    @property
    def server(self) -> str:
        """The URL of the server in use."""
        return self._servers[self._current]

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout_s: float = _REQUEST_S,
    ) -> bytes:
        """One request and its whole answer. Raises the typed error of a failing answer."""
        import aiohttp

        headers = {"Accept": accept} | ({"Content-Type": content_type} if body is not None else {})
        tried = 0

        async def once(server: str) -> bytes:
            nonlocal tried
            tried += 1
            hasty = method == "GET" and tried < len(self._servers)  # another one can be asked the same
            timeout = aiohttp.ClientTimeout(total=min(timeout_s, _NEXT_S) if hasty else timeout_s, sock_connect=_CONNECT_S)
            data = io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body
            async with self._open().request(
                method, server + path, params=params, data=data, headers=headers, timeout=timeout
            ) as answer:
                content = await answer.read()
                if answer.status >= 400:
                    raise from_answer(answer.status, content)
                return content

        return await self._rotate(once, retry=method == "GET")

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: Any = None, accept: str = JSON
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """An answer read bit by bit, of any length and duration. `body` is an async iterable of bytes, or None."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)

        async def once(server: str) -> aiohttp.ClientResponse:
            answer = await self._open().request(
                method, server + path, params=params, data=body, headers={"Accept": accept}, timeout=timeout
            )
            if answer.status >= 400:
                async with answer:
                    raise from_answer(answer.status, await answer.read())
            return answer

        answer = await self._rotate(once, retry=method == "GET")
        try:
            async with answer:
                yield answer.content
        except aiohttp.ClientError as error:
            raise BrokenAnswerError(f"The answer of {self.server} broke off ({_words(error)}).", remedy="Try again.") from error

    @contextlib.asynccontextmanager
    async def websocket(
        self, path: str, params: list[tuple[str, str]], protocols: tuple[str, ...]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket. A refusal before it opens raises the typed error of the server's Status."""
        import aiohttp

        async def once(server: str) -> aiohttp.ClientWebSocketResponse:
            try:
                return await self._open().ws_connect(
                    server + path, params=params, protocols=protocols, max_msg_size=_LARGEST_FRAME, heartbeat=None
                )
            except aiohttp.WSServerHandshakeError as error:
                raise _refusal(error) from error

        socket = await self._rotate(once, retry=False)
        try:
            yield socket
        finally:
            await socket.close()

    async def _rotate(self, once: Callable[[str], Awaitable[T]], *, retry: bool) -> T:
        import aiohttp

        failures: list[str] = []
        for _ in self._servers:
            server = self.server
            try:
                return await once(server)
            except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
                raise _tls_error(error, server) from error
            except aiohttp.ClientConnectorError as error:
                failures.append(_words(error.os_error))
            except (aiohttp.ServerTimeoutError, TimeoutError) as error:
                if not retry and not isinstance(error, aiohttp.ConnectionTimeoutError):
                    raise BrokenAnswerError(
                        f"{server} did not answer in time; the request may have been done.", remedy="Look, then try again."
                    ) from error
                failures.append("no answer in time")
            except aiohttp.ClientError as error:
                if (refusal := self._tls_refusal(error, server)) is not None:
                    raise refusal from error
                if not retry:
                    raise BrokenAnswerError(
                        f"{server} closed the connection ({_words(error)}); the request may have been done.",
                        remedy="Look, then try again.",
                    ) from error
                failures.append(_words(error))
            self._current = (self._current + 1) % len(self._servers)
        places = " or ".join(self._servers)
        raise ConnectError(f"No soup answers at {places} ({failures[-1]}).", remedy=START)

    def _tls_refusal(self, error: Exception, server: str) -> PrimordiaError | None:
        if (tls := _tls_cause(error)) is not None:
            return from_tls(tls, server)
        return explain_refusal(self.config) if server.startswith("https:") else None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            if any(server.startswith("https:") for server in self._servers):
                self._tls = context_of(self.config)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True, limit=0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _tls_error(error: Any, server: str) -> PrimordiaError:
    cause = _tls_cause(error)
    return from_tls(cause if cause is not None else ssl.SSLError(0, str(error)), server)


def _tls_cause(error: BaseException) -> ssl.SSLError | None:
    """The TLS error within a client error: with TLS 1.3 a refused certificate shows only when the answer is read."""
    for each in (getattr(error, "certificate_error", None), getattr(error, "os_error", None), error.__cause__, error):
        if isinstance(each, ssl.SSLError):
            return each
    return None


def _refusal(error: aiohttp.WSServerHandshakeError) -> PrimordiaError:
    """aiohttp drops the body of a refused handshake, so that our servers repeat it in a header."""
    header = error.headers.get(STATUS_HEADER) if error.headers is not None else None
    if header is None:
        return BrokenAnswerError(f"The server did not open a WebSocket (HTTP {error.status}).")
    return from_answer(error.status, unquote_to_bytes(header))


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.rstrip(".")

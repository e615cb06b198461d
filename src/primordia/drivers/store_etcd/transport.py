"""Requests to any one of the engine's servers over mutual TLS: timeouts, rotation, and what may be tried again.

The invariant is "never twice": a request that may have reached a server is sent again only if the caller says that
repeating it is harmless. Otherwise its fate is unknown and the caller is told so (StoreUnavailableError). A connection
that was never made has sent nothing, so that is always tried again, at the next server. Servers that are choosing their
leader say so at once, each of them: what may be repeated waits until they have one.

A machine that lost its power says no goodbye, and a watch that waits for it would miss what happens meanwhile. So the kernel
asks the other end of each connection whether it is there, and breaks it well before anybody's lease is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import socket
import ssl
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from aiohttp import AddrInfoType as AddrInfo

from primordia.drivers.store_etcd import gateway
from primordia.kit.errors import PrimordiaError
from primordia.ports.store import StoreUnavailableError

T = TypeVar("T")

_REMEDY = "See the engine's log on its node; `primordia status` shows which servers answer."
# etcd writes a warning to its log for each request of the gateway that has an Accept header ("ignoring common name").
_NO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent")
_LARGE = 2**20
_HEADERS = {"Content-Type": "application/json"}
# A server that lost the others must end a stream instead of leaving it silent ("require leader" of etcd's clients).
_REQUIRE_LEADER = {"Grpc-Metadata-Hasleader": "true"}
_ASK_AFTER_S, _ASK_EVERY_S, _ASK_TIMES = 1, 1, 2
_UNHEARD_MS = 3000


@dataclass(frozen=True)
class Settings:
    """How patient the client is.

    request_timeout_s: one try of one request. list_timeout_s: one try of one page of a list, which may be large.
    election_s: how long a request that may be repeated waits for servers that are choosing their leader.
    page: keys asked for in one request; longer lists take several, at one revision.
    silence_s: a watch that hears nothing for so long takes its server for dead; must exceed the servers' progress interval.
    patience_s: how long a watch tries to reach a server before it gives up.
    connections: requests under way at once; further ones wait for their turn within their timeout.
    """

    request_timeout_s: float = 1.0
    list_timeout_s: float = 5.0
    election_s: float = 3.0
    page: int = 500
    silence_s: float = 10.0
    patience_s: float = 30.0
    connections: int = 16


class NotSentError(StoreUnavailableError):
    """No connection could be made: the request has certainly not been carried out."""


class Transport:
    """The connections to the engine's servers (`https://HOST:PORT`); the first that answers is kept until it fails."""

    def __init__(self, endpoints: Sequence[str], tls: ssl.SSLContext, settings: Settings, rng: random.Random) -> None:
        self.settings = settings
        self.rng = rng
        self.closed = False
        self._endpoints = tuple(each.rstrip("/") for each in endpoints)
        self._tls = tls
        self._current = 0
        self._requests: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None
        self._open: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()

    async def call(self, path: str, body: bytes, kind: type[T], *, repeat: bool, timeout_s: float = 0.0) -> T:
        """The answer to one request, of type `kind`. `repeat` says that carrying it out twice is harmless.

        Raises StoreUnavailableError, and whatever error the server's refusal means.
        """
        left = max(2, len(self._endpoints))
        elected_by = time.monotonic() + self.settings.election_s
        while True:
            server = self.server()
            try:
                answer = await self._post(server, path, body, timeout_s or self.settings.request_timeout_s)
                return gateway.decode(kind, answer)
            except StoreUnavailableError as error:
                self.avoid(server)
                left -= 1
                choosing = isinstance(error, gateway.NoLeaderError) and time.monotonic() < elected_by
                if self.closed or not (left > 0 or choosing) or not (repeat or isinstance(error, NotSentError)):
                    raise
            await asyncio.sleep(self.rng.uniform(0.02, 0.1))

    async def call_at(self, server: str, path: str, body: bytes, kind: type[T]) -> T:
        """The answer of that one server (`https://HOST:PORT`). Raises as `call` does."""
        return gateway.decode(kind, await self._post(server, path, body, self.settings.request_timeout_s))

    def use(self, endpoints: Sequence[str]) -> None:
        """Ask these servers from now on; what is under way goes on."""
        before = self.server()
        self._endpoints = tuple(each.rstrip("/") for each in endpoints)
        self._current = self._endpoints.index(before) if before in self._endpoints else 0

    async def open_stream(self, server: str, path: str, body: bytes) -> aiohttp.ClientResponse:
        """Begin a request whose answer is a stream without an end; the caller closes it. Raises as `call` does."""
        if self._streams is None:
            self._streams = self._session(0, reuse=False)
        settings = self.settings
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.request_timeout_s, sock_read=settings.silence_s)
        with self.mapped(server):
            async with asyncio.timeout(2 * settings.request_timeout_s):
                response = await self._streams.post(server + path, data=body, timeout=timeout, headers=_REQUIRE_LEADER)
        if response.status != 200:
            refusal = await self._refusal(response, server)
            response.close()
            raise refusal
        self._open.add(response)
        return response

    @property
    def size(self) -> int:
        """How many servers there are."""
        return len(self._endpoints)

    def server(self) -> str:
        """The server to ask next."""
        return self._endpoints[self._current]

    def avoid(self, server: str) -> None:
        """Ask another one next, unless somebody has seen to that already."""
        if server == self.server():
            self._current = (self._current + 1) % len(self._endpoints)

    @contextlib.contextmanager
    def mapped(self, server: str) -> Iterator[None]:
        """Turn what aiohttp raises into the port's errors."""
        try:
            yield
        # RuntimeError is aiohttp's word for a session or connection that was closed meanwhile.
        except (aiohttp.ClientError, TimeoutError, OSError, RuntimeError) as error:
            raise (_closed() if self.closed else _failure(error, server)) from error

    async def close(self) -> None:
        """End every connection; what waits for an answer gets StoreUnavailableError."""
        self.closed = True
        for stream in list(self._open):
            drop(stream)  # closing the session alone does not wake its readers
        for session in (self._requests, self._streams):
            if session is not None:
                await session.close()

    async def _post(self, server: str, path: str, body: bytes, timeout_s: float) -> bytes:
        if self.closed:
            raise _closed()
        if self._requests is None:
            self._requests = self._session(self.settings.connections, reuse=True)
        # The shorter connect timeout tells "never sent" from "no answer".
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=0.8 * timeout_s)
        with self.mapped(server):
            async with self._requests.post(server + path, data=_payload(body), timeout=timeout) as response:
                if response.status != 200:
                    raise await self._refusal(response, server)
                return await response.read()

    async def _refusal(self, response: aiohttp.ClientResponse, server: str) -> PrimordiaError:
        with self.mapped(server):
            async with asyncio.timeout(self.settings.request_timeout_s):
                return gateway.to_error(response.status, await response.read(), server)

    def _session(self, limit: int, *, reuse: bool) -> aiohttp.ClientSession:
        if reuse:
            connector = aiohttp.TCPConnector(ssl=self._tls, limit=limit, keepalive_timeout=60, socket_factory=_socket)
        else:
            connector = aiohttp.TCPConnector(ssl=self._tls, limit=limit, force_close=True, socket_factory=_socket)
        return aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            skip_auto_headers=_NO_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )


def _socket(address: AddrInfo) -> socket.socket:
    """One whose other end the kernel asks, each second, whether it is there."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASK_AFTER_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_EVERY_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _ASK_TIMES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)
    return made


def _payload(body: bytes) -> bytes | io.BytesIO:
    """aiohttp wants large bodies as files, which it sends in pieces."""
    return io.BytesIO(body) if len(body) >= _LARGE else body


def drop(stream: aiohttp.ClientResponse) -> None:
    """End a stream at once. A polite TLS goodbye would wait for a server that may be dead or have much left to say."""
    if stream.connection is not None and stream.connection.transport is not None:
        stream.connection.transport.abort()
    stream.close()


def _closed() -> StoreUnavailableError:
    return StoreUnavailableError("The store's connections are closed.", reason="StoreClosed")


def _failure(error: BaseException, server: str) -> StoreUnavailableError:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return NotSentError(f"The engine at {server} cannot be reached ({_why(error)}).", remedy=_REMEDY)
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"The engine at {server} did not answer in time.", remedy=_REMEDY)
    return StoreUnavailableError(f"The connection to the engine at {server} broke ({_why(error)}).", remedy=_REMEDY)


def _why(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not accepted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or str(error.os_error)
    return str(error) or type(error).__name__

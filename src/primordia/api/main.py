"""The API server: HTTPS with mutual TLS on sockets that the daemon made, one handler for every path.

Shutdown order: no new connections, then a moment for requests under way, then every watch and stream is cancelled, which
ends its exec too. The sockets are the daemon's and are closed by the server with itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from primordia.api import boxes, discovery, health, listing, namespaces, resources, sockets, transfer, volumes, watch
from primordia.api.answers import document_answer, included, status_answer
from primordia.api.auth import User, authorize, user_of
from primordia.api.errors import RequestError, status_of
from primordia.api.hosts import Boxes, VolumeHosts
from primordia.api.negotiate import wants_table
from primordia.api.paths import ACTIONS, Target, list_query, parse
from primordia.api.services import Limits, Services
from primordia.api.timing import limited
from primordia.kit.errors import TemporaryError
from primordia.kit.metrics import Metrics, Sample
from primordia.ports.contexts import Contexts
from primordia.registry.informer import Informer
from primordia.registry.registry import Registry
from primordia.wire.resources import Lifeform, Node, Volume

log = logging.getLogger(__name__)

_GRACE_S = 2.0
_DEAD_PEER_MS = 30_000
_KEEPALIVE_IDLE_S = 30
_LONGEST_LINE = 256 * 1024  # the words of an exec are in its query


class Area(Protocol):
    """What answers paths that are no Kubernetes resources."""

    async def answer(self, request: web.BaseRequest, peer: Mapping[str, Any] | None) -> web.StreamResponse:
        """The answer to one request; `peer` is the client's verified certificate, if it has shown one.

        It has the time of a request that is no stream, except where the area has `streams`.
        """


class ApiServer:
    """Serves one node's API. `tls` is from `auth.server_tls`; `lifeforms` is an informer that somebody runs.

    `contexts` are this node's own; `on_node` gives those of every node by name (default: all are this node's). Without
    `boxes` it makes none.
    """

    def __init__(
        self,
        registry: Registry,
        contexts: Contexts,
        lifeforms: Informer[Lifeform],
        tls: ssl.SSLContext,
        metrics: Metrics | None = None,
        limits: Limits | None = None,
        on_node: Callable[[str], Contexts] | None = None,
        boxes: Boxes | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self._tls = tls
        self._services = Services(
            registry=registry,
            contexts=contexts,
            on_node=on_node or (lambda node: contexts),
            lifeforms=lifeforms,
            metrics=self.metrics,
            limits=limits or Limits(),
            boxes=boxes,
        )
        self._areas: dict[str, Area] = {}
        self._health = health.Health(registry.store, registry.clock)
        labels = ("verb", "resource", "code")
        self._requests = self.metrics.counter("primordia_api_requests_total", "Requests answered.", labels)
        self._latency = self.metrics.histogram(
            "primordia_api_request_duration_seconds", "Time to answer, of requests that are no streams.", labels[:2]
        )
        self._runner: web.ServerRunner | None = None
        self._streams: set[asyncio.Task[object]] = set()
        self.metrics.source(
            lambda: [Sample("primordia_api_streams_open", len(self._streams), "Watches, execs and other streams under way.")]
        )
        self._stopping = False

    def add_area(self, prefix: str, area: Area) -> None:
        """Let `area` answer every path that begins with `prefix`, and decide itself who may ask."""
        self._areas[prefix] = area

    def add_volumes(self, volumes: VolumeHosts) -> None:
        """Answer what is asked of volumes' content, too."""
        self._services = dataclasses.replace(self._services, volumes=volumes)

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Serve on these listening sockets, in whatever network namespace they were made."""
        server = web.Server(
            self._handle, logger=_http_log(), access_log=None, handler_cancellation=True, max_line_size=_LONGEST_LINE
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=_GRACE_S)
        await self._runner.setup()
        for listener in listeners:
            _notice_dead_peers(listener)
            site = web.SockSite(self._runner, listener, ssl_context=self._tls)
            await site.start()

    async def stop(self) -> None:
        """End every request and connection."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        self._stopping = True
        for site in list(runner.sites):
            await site.stop()
        for task in self._streams:
            task.cancel()
        if self._streams:
            await asyncio.wait(self._streams, timeout=_GRACE_S)
        await runner.cleanup()

    # ------------------------------------------------------------ one request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started_s = time.monotonic()
        target: Target | None = None
        stream = False
        try:
            target = parse(request.rel_url.raw_path)
            stream = target is not None and _is_stream(request, target)
            response = await self._route(request, target, stream)
        except ConnectionError:
            raise
        except Exception as error:
            _cut_if_begun(request, error)
            status = status_of(error, target.kind if target else None, target.name if target else "")
            response = status_answer(status, upgrade="Upgrade" in request.headers)
        resource = _resource_of(target)
        self._requests.add(request.method, resource, str(response.status))
        if not stream:
            self._latency.observe(time.monotonic() - started_s, request.method, resource)
        return response

    async def _route(self, request: web.BaseRequest, target: Target | None, stream: bool) -> web.StreamResponse:
        if target is None:
            return await self._route_other(request)
        user = _user(request)
        if request.method not in target.methods():
            raise RequestError(405, f"{request.method} is not possible here; {', '.join(target.methods())} are.")
        authorize(user, request.method, target)
        if stream:
            return await self._owned(self._stream(request, target))
        if target.subresource in ACTIONS:
            return await limited(self._act(request, target), self._services.limits.fork_s)
        return await limited(self._answer(request, target, user), self._services.limits.request_s)

    async def _route_other(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path in health.PATHS:
            return await self._health.answer(path)
        area = next((area for prefix, area in self._areas.items() if path.startswith(prefix)), None)
        if area is not None and getattr(area, "streams", False):
            return await self._owned(area.answer(request, _peer(request)))
        if area is not None:
            return await limited(area.answer(request, _peer(request)), self._services.limits.request_s)
        _user(request)
        if path == "/metrics":
            return web.Response(text=self.metrics.render(), content_type="text/plain")
        if path == namespaces.PATH or (path.startswith(namespaces.PATH + "/") and path.count("/") == 4):
            name = path.removeprefix(namespaces.PATH).lstrip("/")
            return await namespaces.answer(request, name, self._services.registry.store)
        document = discovery.document(path)
        if document is None:
            raise RequestError(404, f"There is nothing at {path[:200]!r}.", remedy="See /apis and /api/v1.")
        if request.method != "GET":
            raise RequestError(405, f"{request.method} is not possible here; GET is.")
        return document_answer(document)

    async def _act(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        if target.kind is Volume:
            return await volumes.act(request, target, self._services)
        if target.kind is Node:
            return await volumes.orphans(target, self._services)
        match target.subresource:
            case "fork":
                return await boxes.fork(request, target, self._services)
            case "promote":
                return await boxes.promote(request, target, self._services)
            case "boxes":
                return await boxes.claim(request, target, self._services)
        return await boxes.claim_here(request, self._services)

    async def _answer(self, request: web.BaseRequest, target: Target, user: User) -> web.StreamResponse:
        services = self._services
        wants_table(request.headers.get("Accept", ""))  # an answer that cannot be given is refused before anything is done
        included(request)
        match request.method, bool(target.name):
            case "GET", True:
                return await resources.get(request, target, services)
            case "GET", False:
                return await listing.answer(request, target, list_query(request.query), services)
            case "POST", _:
                return await resources.create(request, target, services, user)
            case "PUT", _:
                return await resources.replace(request, target, services, user)
            case "PATCH", _:
                return await resources.patch(request, target, services, user)
            case _, True:
                return await resources.delete(request, target, services, user)
        return await resources.delete_many(request, target, services, user)

    async def _owned(self, stream: Coroutine[Any, Any, web.StreamResponse]) -> web.StreamResponse:
        """A stream that `stop` ends, for by itself it might go on for ever."""
        task = asyncio.current_task()
        if self._stopping or task is None:
            stream.close()
            raise TemporaryError("The server is stopping.", remedy="Try again: another one, or the next, will answer.")
        self._streams.add(task)
        try:
            return await stream
        finally:
            self._streams.discard(task)

    async def _stream(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        services = self._services
        if target.kind is Volume and target.subresource:
            return await volumes.stream(request, target, services)
        match target.subresource, request.method:
            case "log", _:
                return await transfer.log(request, target, services)
            case "files", "GET":
                return await transfer.read_files(request, target, services)
            case "files", _:
                return await transfer.write_files(request, target, services)
            case "exec", _:
                return await sockets.execute(request, target, services)
            case "portforward", _:
                return await sockets.forward(request, target, services)
        return await watch.answer(request, target, list_query(request.query), services)


def _client_fault(record: logging.LogRecord) -> bool:
    """Whether aiohttp tells of a request that was no proper HTTP: its sender has been told, and no trace is of use."""
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, HttpProcessingError | web.RequestPayloadError)


def _http_log() -> logging.Logger:
    """For what the HTTP library itself has to say."""
    logger = logging.getLogger("primordia.api.http")
    logger.filters = [lambda record: not _client_fault(record)]
    return logger


def _user(request: web.BaseRequest) -> User:
    return user_of(_peer(request))


def _peer(request: web.BaseRequest) -> Mapping[str, Any] | None:
    """The client's verified certificate, if it has shown one."""
    return request.transport.get_extra_info("peercert") if request.transport is not None else None


def _cut_if_begun(request: web.BaseRequest, error: Exception) -> None:
    """An answer that has begun cannot become another one: the connection is cut, so that it is not taken for whole."""
    if request.writer.output_size and request.transport is not None:
        log.error("a stream failed in a way that it should not", exc_info=error)
        request.transport.abort()
        raise ConnectionResetError("the answer had begun") from error


def _is_stream(request: web.BaseRequest, target: Target) -> bool:
    if target.subresource:
        return target.subresource != "status" and target.subresource not in ACTIONS
    return not target.name and request.method == "GET" and list_query(request.query).watch


def _resource_of(target: Target | None) -> str:
    if target is None:
        return "other"
    return f"{target.kind.PLURAL}/{target.subresource}" if target.subresource else target.kind.PLURAL


def _notice_dead_peers(listener: socket.socket) -> None:
    """Connections inherit this: bytes that nobody acknowledges, and silence, end them."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)

"""The in-guest API: HTTP over streams that a guest opens. The channel is the identity; there is no secret to steal.

The guest is untrusted: h11 parses, sizes and times are bounded, one bad connection ends itself only. It begins with
`GET /v1/self`, and `POST /v1/sync` returns when everything written so far is durable on other racks.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import h11
import msgspec

from primordia.kit.clock import Clock
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError
from primordia.ports.guest import ByteStream, GuestGoneError
from primordia.wire.data import SyncResult

log = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 16384
_MAX_BODY_BYTES = 65536
_IDLE_S = 30.0
_MAX_REQUESTS = 1000
SYNC_S = 25.0
"""What a sync may take: less than a connection may idle."""

Sync = Callable[[float], Awaitable[SyncResult]]


class Self(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a context may know about itself and its place.

    `restored_from` is the snapshot that its data was taken over from, if this epoch began because its node had died, and
    `lost_seconds` the most that was lost by it; without data, or a failover, there are none.
    """

    name: str
    namespace: str
    uid: str
    context: str
    epoch: int
    node: str
    rack: str
    segment: str
    started_because: str
    address: str
    restored_from: int | None = None
    lost_seconds: float | None = None


class _Refused(Exception):
    """A request that gets an error answer; `allow` names the methods that would do."""

    def __init__(self, status: int, message: str, allow: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.allow = allow


class GuestApi:
    """Serves the API to one context; `describe` is asked at each request, for the answer changes.

    `sync` syncs the context's data, and raises PrimordiaError: without it there is none.
    """

    def __init__(self, describe: Callable[[], Self], clock: Clock, sync: Sync | None = None) -> None:
        self._describe = describe
        self._sync = sync
        self._clock = clock

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection to its end. Never raises for anything a guest can do."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADER_BYTES)
        try:
            for _ in range(_MAX_REQUESTS):
                if not await within(self._clock, _IDLE_S, self._exchange(connection, stream)):
                    break
        except (GuestGoneError, TimeoutError, h11.LocalProtocolError) as error:
            log.debug("guest api: %s", error)
        finally:
            await stream.close()

    async def _exchange(self, connection: h11.Connection, stream: ByteStream) -> bool:
        """One request and its answer; whether another may follow."""
        head = False
        try:
            request = await self._read_request(connection, stream)
            if request is None:
                return False
            status, body, headers = await self._answer(request)
            head = request.method == b"HEAD"
        except _Refused as refused:
            status, body, headers = _error(refused)
        except h11.RemoteProtocolError as error:
            status, body, headers = _error(_Refused(error.error_status_hint, "The request is not HTTP as it should be."))
        await stream.write(_response(connection, status, body, headers, head=head))
        if _state(connection.our_state) is h11.DONE and _state(connection.their_state) is h11.DONE:
            connection.start_next_cycle()
            return True
        await stream.end()
        return False

    async def _answer(self, request: h11.Request) -> tuple[int, bytes, list[tuple[str, str]]]:
        path = request.target.partition(b"?")[0]
        if path == b"/v1/sync":
            return await self._answer_sync(request)
        if path != b"/v1/self":
            raise _Refused(404, "There is nothing here. Try /v1/self.")
        if request.method not in (b"GET", b"HEAD"):
            raise _Refused(405, "This can only be read.", allow="GET, HEAD")
        return 200, msgspec.json.encode(self._describe()) + b"\n", []

    async def _answer_sync(self, request: h11.Request) -> tuple[int, bytes, list[tuple[str, str]]]:
        if request.method != b"POST":
            raise _Refused(405, "This can only be posted.", allow="POST")
        if self._sync is None:
            raise _Refused(409, "This context has no data, or its node copies none.")
        try:
            return 200, msgspec.json.encode(await self._sync(SYNC_S)) + b"\n", []
        except PrimordiaError as error:
            raise _Refused(503, error.message) from error

    async def _read_request(self, connection: h11.Connection, stream: ByteStream) -> h11.Request | None:
        """The next request with its body read and dropped; None at the end."""
        request: h11.Request | None = None
        body_bytes = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    raise _Refused(417, "No body is wanted.")
                connection.receive_data(await stream.read())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body_bytes += len(event.data)
                if body_bytes > _MAX_BODY_BYTES:
                    raise _Refused(413, "The body is too large.")
            elif isinstance(event, h11.EndOfMessage):
                return request
            else:
                return None


def _error(refused: _Refused) -> tuple[int, bytes, list[tuple[str, str]]]:
    headers = [("Allow", refused.allow)] if refused.allow else []
    return refused.status, msgspec.json.encode({"error": refused.message}) + b"\n", headers


def _response(connection: h11.Connection, status: int, body: bytes, headers: list[tuple[str, str]], *, head: bool) -> bytes:
    """The bytes of an answer; a request that was not read to its end makes it the connection's last."""
    if _state(connection.our_state) not in (h11.IDLE, h11.SEND_RESPONSE):
        return b""
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
    if _state(connection.their_state) is not h11.DONE:
        fields.append(("Connection", "close"))
    data = connection.send(h11.Response(status_code=status, headers=fields)) or b""
    if not head:
        data += connection.send(h11.Data(data=body)) or b""
    return data + (connection.send(h11.EndOfMessage()) or b"")


def _state(state: object) -> object:
    """A state that a call may have changed since it was last looked at."""
    return state

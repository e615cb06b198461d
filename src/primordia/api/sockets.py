"""Exec and port-forward: streams to a microVM over a WebSocket, framed as `wire/streams.py` says.

Flow control is end to end: we read the client only as fast as the guest takes it, and the guest only as fast as the
client does. A client that vanishes is noticed by pings (their bytes are never acknowledged) and takes its exec with it:
the connection's loss cancels the handler, and the handler closes the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import msgspec
from aiohttp import WSMsgType, web

from primordia.api.errors import RequestError, status_of
from primordia.api.paths import Target, flag, number
from primordia.api.services import Limits, Services
from primordia.api.targets import place_of
from primordia.kit.errors import PrimordiaError
from primordia.ports.guest import ByteStream, ExecSession, Program
from primordia.wire import checks
from primordia.wire.meta import Status
from primordia.wire.problems import Problems
from primordia.wire.resources import Context
from primordia.wire.streams import FORWARD, V4, V5, Channel, TerminalSize, end_of

_CHUNK = 32 * 1024
_LARGEST_TERMINAL = 10_000
_LAST_SIGNAL = 64
_LONGEST_VALUE = 32 * 1024
_LONGEST_SOCKET = 107  # sun_path, less its NUL: unix(7)
_FAREWELL_S = 1.0
_LEFT = "the client left"


async def execute(request: web.BaseRequest, target: Target, services: Services) -> web.StreamResponse:
    """Run a command: `command`, `env` (both repeated), `workingDir`, `user`, `stdin`, `tty`, `container`."""
    place = await place_of(request, target, services)
    program = _program(request, whole=bool(target.uid))
    wants_input = flag(request.query, "stdin")
    _require_upgrade(request)
    session = await place.contexts.exec(place.uid, program, stdin=wants_input)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(session.close)
        socket = await stack.enter_async_context(_open(request, (V5, V4), services.limits))
        stack.push_async_callback(session.close)  # before the client is bidden farewell, which may take a while
        await _converse(socket, session)
    return socket


def _program(request: web.BaseRequest, *, whole: bool) -> Program:
    """What is asked for. Between nodes (`whole`) the terminal's size is told at once."""
    query = request.query
    program = Program(
        argv=tuple(query.getall("command", [])),
        env=tuple((name, value) for name, _, value in (pair.partition("=") for pair in query.getall("env", []))),
        working_dir=query.get("workingDir", ""),
        user=query.get("user", ""),
        tty=flag(query, "tty"),
    )
    _check_program(program)
    if not whole:
        return program
    return dataclasses.replace(
        program,
        rows=number(query, "rows", most=_LARGEST_TERMINAL) or program.rows,
        columns=number(query, "columns", most=_LARGEST_TERMINAL) or program.columns,
    )


def _check_program(program: Program) -> None:
    out = Problems()
    checks.check_command(out, "command", program.argv, first=True)
    for name, value in program.env:
        checks.check_env_name(out, "env", name)
        checks.check_text(out, "env", value, _LONGEST_VALUE)
    if program.working_dir:
        checks.check_path(out, "workingDir", program.working_dir)
    if program.user:
        checks.check_user(out, "user", program.user)
    if out.found:
        raise RequestError(400, f"{out.found[0]}.")


async def _converse(socket: web.WebSocketResponse, session: ExecSession) -> None:
    """Both directions, until the command has ended; then its Status."""
    try:
        async with asyncio.TaskGroup() as group:
            upward = group.create_task(_upward(socket, session), name="exec/up")
            async for stream, data in session.output():
                channel = Channel.STDOUT if stream == "stdout" else Channel.STDERR
                for start in range(0, len(data), _CHUNK):
                    await socket.send_bytes(bytes([channel]) + data[start : start + _CHUNK])
            exit_status = await session.wait()
            await _tell(socket, end_of(exit_status.code, exit_status.error))
            upward.cancel()
    except* PrimordiaError as errors:
        await _tell(socket, status_of(errors.exceptions[0], Context))
    except* ConnectionError:
        pass


async def _tell(socket: web.WebSocketResponse, status: Status) -> None:
    with contextlib.suppress(ConnectionError):
        await socket.send_bytes(bytes([Channel.STATUS]) + msgspec.json.encode(status))


async def _upward(socket: web.WebSocketResponse, session: ExecSession) -> None:
    """What the client sends: input, the end of input, sizes. Its leaving ends the command."""
    async for data in _messages(socket):
        if not data:
            continue
        channel, payload = data[0], data[1:]
        if channel == Channel.STDIN and payload:
            await session.write(payload)
        elif channel == Channel.CLOSE and payload[:1] == bytes([Channel.STDIN]):
            await session.end_input()
        elif channel == Channel.RESIZE:
            await _resize(session, payload)
        elif channel == Channel.SIGNAL and payload and 0 < payload[0] <= _LAST_SIGNAL:
            await session.signal(payload[0])
    raise ConnectionResetError(_LEFT)


async def _resize(session: ExecSession, payload: bytes) -> None:
    try:
        size = msgspec.json.decode(payload, type=TerminalSize)
    except (msgspec.DecodeError, UnicodeError):
        return
    if 0 < size.width <= _LARGEST_TERMINAL and 0 < size.height <= _LARGEST_TERMINAL:
        await session.resize(size.height, size.width)


# ---------------------------------------------------------------- port-forward


async def forward(request: web.BaseRequest, target: Target, services: Services) -> web.StreamResponse:
    """Carry one connection to `port` of the microVM, or to the Unix socket at `socket` in it."""
    place = await place_of(request, target, services)
    port, path = number(request.query, "port", most=65535), request.query.get("socket", "")
    if bool(port) == bool(path):
        raise RequestError(400, "port: is missing.", remedy="Say which port of the microVM, or which `socket`; one of them.")
    if path:
        _check_socket(path)
    _require_upgrade(request)
    contexts, uid = place.contexts, place.uid
    stream = await (contexts.connect_unix(uid, path) if path else contexts.connect_tcp(uid, port))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(stream.close)
        socket = await stack.enter_async_context(_open(request, (FORWARD,), services.limits))
        stack.push_async_callback(stream.close)
        await _carry(socket, stream)
    return socket


def _check_socket(path: str) -> None:
    out = Problems()
    checks.check_path(out, "socket", path)
    if len(path.encode()) > _LONGEST_SOCKET:
        out.invalid("socket", f"is longer than {_LONGEST_SOCKET} bytes")
    if out.found:
        raise RequestError(400, f"{out.found[0]}.")


async def _carry(socket: web.WebSocketResponse, stream: ByteStream) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            ended = asyncio.Event()
            upward = group.create_task(_carry_up(socket, stream, ended), name="forward/up")
            while data := await stream.read(_CHUNK):
                await socket.send_bytes(data)
            await socket.send_bytes(b"")
            await ended.wait()
            upward.cancel()
    except* (ConnectionError, PrimordiaError):
        pass


async def _carry_up(socket: web.WebSocketResponse, stream: ByteStream, ended: asyncio.Event) -> None:
    """What the client sends. After its half-close (`ended`) it is still listened to, for it may leave."""
    async for data in _messages(socket):
        if not data and not ended.is_set():
            await stream.end()
            ended.set()
        elif data and not ended.is_set():
            await stream.write(data)
    raise ConnectionResetError(_LEFT)


# ---------------------------------------------------------------- sockets


def _require_upgrade(request: web.BaseRequest) -> None:
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise RequestError(400, "This is a WebSocket's address, and the request is none.", remedy="Use the client, or SDK.")


@contextlib.asynccontextmanager
async def _open(request: web.BaseRequest, protocols: tuple[str, ...], limits: Limits) -> AsyncIterator[web.WebSocketResponse]:
    """An open WebSocket, pinged while it lasts and closed after."""
    socket = web.WebSocketResponse(
        protocols=protocols, max_msg_size=limits.stream_frame_bytes, compress=False, timeout=_FAREWELL_S
    )
    await socket.prepare(request)
    pinger = asyncio.create_task(_ping(socket, limits.ping_s), name="socket/ping")
    try:
        yield socket
    except BaseException:
        if request.transport is not None:
            request.transport.abort()  # no farewell: it could wait for a client that does not read
        raise
    finally:
        pinger.cancel()
        await asyncio.wait([pinger])
    with contextlib.suppress(ConnectionError):
        await socket.close()


async def _ping(socket: web.WebSocketResponse, every_s: float) -> None:
    """Bytes that only a living client's machine acknowledges."""
    with contextlib.suppress(ConnectionError):
        while True:
            await asyncio.sleep(every_s)
            await socket.ping()


async def _messages(socket: web.WebSocketResponse) -> AsyncIterator[bytes]:
    """Binary messages, until the client closes."""
    while True:
        message = await socket.receive()
        if message.type == WSMsgType.BINARY:
            yield message.data
        elif message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
            return

"""Streams to and from a context: exec sessions and forwarded ports.

Nothing is buffered here beyond what the socket holds: who does not read holds up the sender, and who writes waits for room.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from primordia.client.errors import BrokenAnswerError, from_status
from primordia.kit.tasks import TaskSet
from primordia.wire.meta import Status
from primordia.wire.streams import NOT_STARTED, V5, Channel, exit_code_of

if TYPE_CHECKING:
    import aiohttp

_CHUNK = 32 * 1024
_ENDS = (8, 256, 257, 258)  # aiohttp's CLOSE, CLOSING, CLOSED and ERROR, without importing it


@dataclass(frozen=True)
class ExecResult:
    """How a command ended and what it wrote. `error` says why when it could not even be started."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    error: str = ""


class ExecSession:
    """A command running in a context. Read `output` to its end, then `result`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._result: ExecResult | None = None

    async def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """What the command writes, in the order it arrives, until it has ended."""
        async for channel, data in self._messages():
            if channel == Channel.STDOUT and data:
                yield "stdout", data
            elif channel == Channel.STDERR and data:
                yield "stderr", data
            elif channel == Channel.STATUS:
                self._result = _result_of(data)
                return

    async def result(self) -> ExecResult:
        """How it ended, without its output; what was not read of that is dropped."""
        if self._result is None:
            async for _ in self.output():
                pass
        if self._result is None:
            raise BrokenAnswerError("The connection to the command broke off.", remedy="It was ended with it; start it again.")
        return self._result

    async def write(self, data: bytes) -> None:
        """Send to its standard input; returns when there is room for more."""
        for start in range(0, len(data), _CHUNK):
            await self._send(Channel.STDIN, data[start : start + _CHUNK])

    async def end_input(self) -> None:
        """Close its standard input. A command that has ended already does not mind."""
        if self._socket.protocol == V5:
            await self._send(Channel.CLOSE, bytes([Channel.STDIN]))

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the size."""
        await self._send(Channel.RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    async def _send(self, channel: Channel, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it ended meanwhile: its result says how
            await self._socket.send_bytes(bytes([channel]) + data)

    async def _messages(self) -> AsyncIterator[tuple[int, bytes]]:
        import aiohttp

        while True:
            message = await self._socket.receive()
            if message.type == aiohttp.WSMsgType.BINARY and message.data:
                yield message.data[0], message.data[1:]
            elif message.type in _ENDS:
                return


class ForwardedStream:
    """One connection to a port inside a context."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ended = False

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""
        import aiohttp

        while not self._ended:
            message = await self._socket.receive()
            if message.type == aiohttp.WSMsgType.BINARY and message.data:
                return bytes(message.data)
            if message.type == aiohttp.WSMsgType.BINARY or message.type in _ENDS:
                self._ended = True
        return b""

    async def write(self, data: bytes) -> None:
        """Send; returns when there is room for more. Raises BrokenAnswerError when the other side is gone."""
        try:
            for start in range(0, len(data), _CHUNK):
                await self._socket.send_bytes(data[start : start + _CHUNK])
        except ConnectionError as error:
            raise BrokenAnswerError("The forwarded connection is closed.") from error

    async def end(self) -> None:
        """Half-close: no more will be written."""
        with contextlib.suppress(ConnectionError):
            await self._socket.send_bytes(b"")


@contextlib.asynccontextmanager
async def listen(connect: Any, host: str, port: int) -> AsyncIterator[int]:
    """Listen on a local port (0: any) and carry each connection by a stream that `connect()` opens; gives the port."""
    tasks = TaskSet("forward")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with connect() as stream, asyncio.TaskGroup() as group:
                group.create_task(_upward(reader, stream), name="forward/up")
                group.create_task(_downward(stream, writer), name="forward/down")
        except* Exception:
            writer.transport.abort()  # a reset is all that the far side of a socket can be told
        finally:
            writer.close()

    server = await asyncio.start_server(lambda r, w: tasks.start(carry(r, w), name="connection"), host, port, limit=_CHUNK)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await tasks.close()
        await server.wait_closed()


async def _upward(reader: asyncio.StreamReader, stream: ForwardedStream) -> None:
    while data := await reader.read(_CHUNK):
        await stream.write(data)
    await stream.end()


async def _downward(stream: ForwardedStream, writer: asyncio.StreamWriter) -> None:
    while data := await stream.read():
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _result_of(data: bytes) -> ExecResult:
    try:
        status = msgspec.json.decode(data, type=Status)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BrokenAnswerError("The server told the command's end in a way that this version does not understand.") from error
    code = exit_code_of(status)
    if code is None:
        raise from_status(status)
    return ExecResult(code, error=status.message if status.reason == NOT_STARTED else "")

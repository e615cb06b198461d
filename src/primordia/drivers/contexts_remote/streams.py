"""An exec and a forwarded port that live on another node, as `wire/streams.py` frames them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import aiohttp
import msgspec

from primordia.drivers.contexts_remote import failures
from primordia.drivers.contexts_remote.peer import Peer, Socket
from primordia.ports.guest import ExitStatus
from primordia.wire.meta import Status
from primordia.wire.streams import NOT_STARTED, Channel, TerminalSize, exit_code_of

_CHUNK = 32 * 1024


async def _messages(websocket: Socket) -> AsyncIterator[bytes]:
    """Binary messages until the other side closes, or is gone."""
    while True:
        message = await websocket.receive()
        if message.type == aiohttp.WSMsgType.BINARY:
            yield message.data
        elif message.type != aiohttp.WSMsgType.TEXT:
            return


class RemoteSession:
    """A running exec. Its status comes behind its output, so `wait` drops what was not read of that."""

    def __init__(self, peer: Peer, websocket: Socket) -> None:
        self._peer = peer
        self._websocket = websocket
        self._status: Status | None = None

    async def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """What it writes, until its end. Raises NodeUnreachableError when the connection breaks off."""
        if self._status is not None:
            return
        async for message in _messages(self._websocket):
            if message[:1] == bytes([Channel.STDOUT]):
                yield "stdout", message[1:]
            elif message[:1] == bytes([Channel.STDERR]):
                yield "stderr", message[1:]
            elif message[:1] == bytes([Channel.STATUS]):
                self._status = _decoded(message[1:])
                return
        raise failures.broken(self._peer.node)

    async def wait(self) -> ExitStatus:
        """How it ended. A signal is told by the code alone."""
        async for _ in self.output():
            pass
        if self._status is None:
            raise failures.broken(self._peer.node)
        code = exit_code_of(self._status)
        if code is None:
            raise failures.error_of(self._status, self._peer.node)
        return ExitStatus(code, error=self._status.message if self._status.reason == NOT_STARTED else "")

    async def write(self, data: bytes) -> None:
        """Send to its standard input; returns when there is room."""
        for start in range(0, len(data), _CHUNK):
            await self._send(Channel.STDIN, data[start : start + _CHUNK])

    async def end_input(self) -> None:
        """Close its standard input."""
        await self._send(Channel.CLOSE, bytes([Channel.STDIN]))

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the size."""
        await self._send(Channel.RESIZE, msgspec.json.encode(TerminalSize(width=columns, height=rows)))

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        await self._send(Channel.SIGNAL, bytes([number]))

    async def close(self) -> None:
        """Give up: the other node ends what still runs."""
        await self._peer.drop(self._websocket)

    async def _send(self, channel: Channel, data: bytes) -> None:
        try:
            await self._websocket.send_bytes(bytes([channel]) + data)
        except ConnectionError:
            return  # it ended meanwhile, or its node is gone: what is read next says which


class RemoteStream:
    """A connection to a port of a context on another node. An empty message is the end of its direction."""

    def __init__(self, peer: Peer, websocket: Socket) -> None:
        self._peer = peer
        self._websocket = websocket
        self._rest = b""
        self._ended = False

    async def read(self, limit: int = 65536) -> bytes:
        """The next bytes; empty at the end. Raises NodeUnreachableError when the connection breaks off."""
        if not self._rest and not self._ended:
            self._rest = await self._next()
            self._ended = not self._rest
        taken, self._rest = self._rest[:limit], self._rest[limit:]
        return taken

    async def _next(self) -> bytes:
        async for message in _messages(self._websocket):
            return message
        raise failures.broken(self._peer.node)

    async def write(self, data: bytes) -> None:
        """Send; returns when there is room. Raises NodeUnreachableError when the connection is gone."""
        try:
            for start in range(0, len(data), _CHUNK):
                await self._websocket.send_bytes(data[start : start + _CHUNK])
        except ConnectionError as error:
            raise failures.broken(self._peer.node) from error

    async def end(self) -> None:
        """Half-close: no more will be written."""
        try:
            await self._websocket.send_bytes(b"")
        except ConnectionError:
            return

    async def close(self) -> None:
        """Drop the stream."""
        await self._peer.drop(self._websocket)


def _decoded(data: bytes) -> Status:
    try:
        return msgspec.json.decode(data, type=Status)
    except (msgspec.DecodeError, UnicodeError):
        return Status(message="The command's end was told in a way that this version does not understand.")

"""QEMU's monitor: connect, ask, hear why a machine stopped. One line of JSON each way for each message (QEMU's qmp-spec).

Everything has a deadline and a size, because the other end is a process that a hostile guest may have taken over; and nothing
that it sends is kept: each event is handed on and forgotten. An answer goes from the socket to whoever waits for it with no
task between, for a fork's claim waits for one.
"""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import itertools
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

from primordia.drivers.vmm_qemu.argv import CONSOLE, CONSOLE_BYTES
from primordia.kit.errors import PermanentError, TemporaryError

CONNECT_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 10.0
# Each port has two queues, in and out, and between those of port 0 and port 1 lie the two for control (virtio 1.2, 5.3.2).
_AGENT_OUTPUT_QUEUE = 5
_LONGEST_LINE = 1 << 20

OnEvent = Callable[[str, Mapping[str, Any]], None]


class _LostError(Exception):
    """The connection is gone; the words say how, where anybody knows."""


class _RefusedError(Exception):
    """An answer that is a refusal, in QEMU's own words."""


class _Lines(asyncio.Protocol):
    """Lines of JSON to whoever waits for them."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._unread = b""
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        loop = asyncio.get_running_loop()
        self._greeting: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport | None = None

    async def greeted(self) -> None:
        """Wait for QEMU's first words. Raises _LostError."""
        await asyncio.wait((self._greeting, self.lost), return_when=asyncio.FIRST_COMPLETED)
        if not self._greeting.done():
            raise _LostError("it was closed before a word")

    async def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """The answer. Raises _RefusedError, _LostError."""
        if self.transport is None or self.lost.done():
            raise _LostError("it is closed")
        number = next(self._numbers)
        message: dict[str, object] = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.transport.write(json.dumps(message).encode() + b"\n")
            return await answer
        finally:
            self._waiting.pop(number, None)

    # ------------------------------------------------------------ asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > _LONGEST_LINE:
            self._end("it sends a line without end")
        for line in lines:
            if line.strip() and not self.lost.done():
                self._take(line)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error) if error else "it was closed")

    # ------------------------------------------------------------ messages

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        match message:
            case {"event": str(name)}:
                data = message.get("data")
                self._on_event(name, data if isinstance(data, dict) else {})
            case {"QMP": _}:
                _settle(self._greeting, None)
            case {"return": found, "id": int(number)}:
                if (waiting := self._waiting.get(number)) is not None:
                    _settle(waiting, found)
            case {"error": {"desc": str(words)}, "id": int(number)}:
                if (waiting := self._waiting.get(number)) is not None and not waiting.done():
                    waiting.set_exception(_RefusedError(words))
            case _:
                self._end("what it says makes no sense")

    def _end(self, why: str) -> None:
        _settle(self.lost, None)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(_LostError(why))
        if self.transport is not None:
            self.transport.abort()


def _settle(future: asyncio.Future[Any], found: Any) -> None:
    if not future.done():
        future.set_result(found)


class Monitor:
    """One connection to a machine's monitor. Not reconnected: make another."""

    def __init__(self, connection: socket.socket, lines: _Lines) -> None:
        self._connection = connection
        self._lines = lines

    @classmethod
    async def connect(cls, connection: socket.socket, on_event: OnEvent) -> Monitor:
        """Negotiate over a connected socket, which then belongs to the monitor. Raises TemporaryError."""
        lines = _Lines(on_event)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: lines, sock=connection)
                await lines.greeted()
                await lines.ask("qmp_capabilities")
        except (_LostError, _RefusedError, OSError, TimeoutError) as error:
            _drop(lines, connection)
            raise TemporaryError(f"QEMU's monitor does not answer ({error}).") from error
        except BaseException:
            _drop(lines, connection)
            raise
        return cls(connection, lines)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a command and return what it returns. Raises PermanentError when QEMU refuses, TemporaryError when lost."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._lines.ask(command, arguments)
        except _RefusedError as error:
            raise PermanentError(f"QEMU refused {command}: {error}.", reason="VmmRefused") from error
        except (_LostError, TimeoutError) as error:
            raise TemporaryError(f"QEMU's monitor was lost during {command}.", remedy="It is connected again.") from error

    async def hand_over(self, descriptor: int) -> int:
        """Give QEMU a copy of an open file; returns n, so that QEMU knows it as /dev/fdset/n. One at a time.

        Raises PermanentError when QEMU refuses, TemporaryError when lost.
        """
        transport = self._lines.transport
        try:
            if transport is None or transport.is_closing() or transport.get_write_buffer_size():
                raise BlockingIOError
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            self._connection.sendmsg([b" "], [rights])
        except OSError as error:
            raise TemporaryError("QEMU's monitor was lost while it was handed a file.", remedy="Try again.") from error
        answer = await self.execute("add-fd")
        return int(answer["fdset-id"])

    async def serial_device(self) -> str:
        """Where QEMU keeps the device that has the agent's port."""
        for device in await self.execute("x-query-virtio"):
            if device["name"] == "virtio-serial":
                return str(device["path"])
        raise PermanentError("QEMU has no virtio-serial device.", reason="VmmRefused")

    async def is_sending(self, serial_device: str) -> bool:
        """Whether the agent's port holds something of the guest's that the host's end of the channel has no room for."""
        queue = {"path": serial_device, "queue": _AGENT_OUTPUT_QUEUE}
        return bool((await self.execute("x-query-virtio-queue-status", queue))["inuse"])

    async def status(self) -> str:
        """The run state: running, paused, shutdown, internal-error..."""
        answer = await self.execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def take_console(self) -> str:
        """What the guest wrote to its console since the last time, at most the ring's size."""
        answer = await self.execute("ringbuf-read", {"device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64"})
        with contextlib.suppress(ValueError):
            return base64.b64decode(str(answer)).decode(errors="replace")
        return ""

    async def end_at_resets(self) -> None:
        """From now on a guest that resets has ended, as with `-no-reboot`."""
        await self.execute("set-action", {"reboot": "shutdown"})

    async def lost(self) -> None:
        """Wait until the connection is gone."""
        await asyncio.shield(self._lines.lost)

    async def close(self) -> None:
        """Drop the connection; the machine goes on."""
        _drop(self._lines, self._connection)


def _drop(lines: _Lines, connection: socket.socket) -> None:
    if lines.transport is not None:
        lines.transport.abort()
    else:
        connection.close()

"""One stream of the channel: what came in and waits for its reader, how much may still be sent, and how it ended.

Invariant: no more than WINDOW bytes lie here unread, for the guest gets credit only for what was read; sending more ends
the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from primordia.ports.guest import GuestGoneError
from primordia.wire.guest_frames import CHANNEL_MASK, PAYLOAD_MAX, WINDOW, Frame, FrameError, FrameType

_GIVE_BACK = WINDOW // 4
_CREDIT_MAX = 64 * WINDOW


class Sender(Protocol):
    """Where a stream's frames go: the channel."""

    def send(self, frame: Frame) -> None:
        """Queue a frame. Harmless when the connection is gone."""

    async def drained(self) -> None:
        """Wait until the channel takes more. Raises GuestGoneError."""

    def forget(self, stream_id: int) -> None:
        """The stream has ended on both sides."""


class Stream:
    """A stream from its OPEN to its CLOSE. Made by the channel, which hands it its frames."""

    def __init__(self, stream_id: int, sender: Sender) -> None:
        self.id = stream_id
        self._sender = sender
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._window_left = WINDOW
        self._owed = 0
        self._credit = WINDOW
        self._input_ended = False
        self._opened = False
        self._outcome: tuple[FrameType, bytes] | None = None
        self._gone: GuestGoneError | None = None
        self._dropped = False
        self._waiters: set[asyncio.Future[None]] = set()

    # ---- from the channel ----

    def take(self, frame: Frame) -> None:
        """A frame of the guest for this stream. Raises FrameError when the guest must not send it."""
        match frame.type:
            case FrameType.DATA:
                self._take_data(frame)
            case FrameType.WINDOW:
                self._take_credit(frame.payload)
            case FrameType.EOF:
                self._input_ended = True
            case FrameType.OPENED:
                self._opened = True
            case FrameType.CLOSE | FrameType.REFUSED:
                self._outcome = (frame.type, frame.payload)
                self._sender.forget(self.id)
            case _:
                raise FrameError(f"a {frame.type.name} frame came for stream {self.id}")
        self._wake()

    def break_off(self, error: GuestGoneError) -> None:
        """The connection is gone."""
        self._gone = error
        self._wake()

    def _take_data(self, frame: Frame) -> None:
        size = len(frame.payload)
        if size > self._window_left:
            raise FrameError(f"the guest sent more on stream {frame.stream} than it has credit for")
        if self._input_ended or size == 0:
            raise FrameError(f"the guest sent bytes on stream {frame.stream} that it must not send")
        self._window_left -= size
        self._inbox.append((frame.flags & CHANNEL_MASK, frame.payload))

    def _take_credit(self, payload: bytes) -> None:
        self._credit += int.from_bytes(payload, "little")
        if len(payload) != 4 or self._credit > _CREDIT_MAX:
            raise FrameError(f"the guest gave a credit of {self._credit} bytes")

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    # ---- for the reader and writer ----

    @property
    def ended(self) -> bool:
        """Whether the guest has closed or refused it, or we have dropped it."""
        return self._outcome is not None or self._dropped

    def _check(self) -> None:
        if self._gone is not None:
            raise GuestGoneError(self._gone.message, remedy=self._gone.remedy)

    async def opened(self) -> bool:
        """Wait for the guest's answer: True when opened, False when it ended instead. Raises GuestGoneError."""
        while not self._opened and not self.ended:
            self._check()
            await self._change()
        return self._opened

    async def outcome(self) -> tuple[FrameType, bytes]:
        """Wait for CLOSE or REFUSED and its parameters. Raises GuestGoneError."""
        while self._outcome is None:
            self._check()
            await self._change()
        return self._outcome

    async def receive(self, limit: int = PAYLOAD_MAX) -> tuple[int, bytes] | None:
        """The next bytes and their channel number; None at the end. Raises GuestGoneError."""
        while not self._inbox:
            if self._input_ended or self.ended:
                return None
            self._check()
            await self._change()
        number, data = self._inbox.popleft()
        if len(data) > limit:
            self._inbox.appendleft((number, data[limit:]))
            data = data[:limit]
        self._give_back(len(data))
        return number, data

    def _give_back(self, size: int) -> None:
        self._owed += size
        if self._owed >= _GIVE_BACK and not self.ended:
            self._sender.send(Frame(FrameType.WINDOW, self.id, self._owed.to_bytes(4, "little")))
            self._window_left += self._owed
            self._owed = 0

    async def send(self, data: bytes) -> None:
        """Send bytes as credit comes in. Raises GuestGoneError, BrokenPipeError when the guest has ended the stream."""
        view = memoryview(data)
        while view:
            while self._credit == 0 and not self.ended:
                self._check()
                await self._change()
            self._check()
            if self.ended:
                raise BrokenPipeError("the guest has ended the stream")
            size = min(len(view), self._credit, PAYLOAD_MAX)
            self._credit -= size
            self._sender.send(Frame(FrameType.DATA, self.id, bytes(view[:size])))
            view = view[size:]
            await self._sender.drained()

    def send_end(self) -> None:
        """No more bytes will be sent."""
        if not self.ended:
            self._sender.send(Frame(FrameType.EOF, self.id))

    def send_control(self, params: bytes) -> None:
        """A control message, beside the bytes."""
        if not self.ended:
            self._sender.send(Frame(FrameType.CONTROL, self.id, params))

    def drop(self, params: bytes = b"") -> None:
        """Close it from our side; harmless when it has ended."""
        if not self.ended:
            self._dropped = True
            self._sender.send(Frame(FrameType.CLOSE, self.id, params))
            self._sender.forget(self.id)
        self._inbox.clear()
        self._wake()


class Duplex:
    """A stream as the port's ByteStream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self, limit: int = 65536) -> bytes:
        received = await self._stream.receive(limit)
        return received[1] if received else b""

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except BrokenPipeError as error:
            raise GuestGoneError("The guest has closed the stream.") from error

    async def end(self) -> None:
        self._stream.send_end()

    async def close(self) -> None:
        self._stream.drop()

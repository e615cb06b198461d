"""The connection to one agent: greeting, frames to streams, streams the guest opens.

The guest is untrusted. What it sends is bounded in rate (pace), in unread bytes (each stream's window), in streams it may
open (GUEST_STREAMS_MAX) and in answers it leaves unread (UNREAD_MAX). Whatever breaks the protocol ends the connection
with a sentence; nothing else is hurt. Every task belongs to the channel and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

from primordia.drivers.guest_channel.pace import Crowd, Pace
from primordia.drivers.guest_channel.stream import Duplex, Stream
from primordia.kit.tasks import TaskSet
from primordia.ports.guest import GuestError, GuestGoneError, InboundHandler
from primordia.wire.guest_frames import (
    FLAG_MORE,
    FRAME_MAX,
    GUEST_STREAMS_MAX,
    HOST_STREAMS_MAX,
    NONCE_SIZE,
    VERSION,
    Decoder,
    Frame,
    FrameError,
    FrameType,
    HelloAck,
    encode,
    encode_params,
    find_ack,
    greeting,
    open_frames,
    parse_params,
)

log = logging.getLogger(__name__)

UNREAD_MAX = 1024 * 1024
_READ_SIZE = 65536
_FRAMES_PER_SLICE = 64
_WRITE_HIGH = 128 * 1024


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> tuple[HelloAck, bytes]:
    """Take the channel over from whoever had it before. Returns the agent's greeting and bytes that came behind it.

    Raises GuestGoneError when the agent does not answer in time or speaks another version.
    """
    nonce = os.urandom(NONCE_SIZE)
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(greeting(nonce))
            await writer.drain()
            while True:
                part = await reader.read(_READ_SIZE)
                if not part:
                    raise GuestGoneError("The channel to the guest's agent closed before it answered.")
                data += part
                ack, used = find_ack(data, nonce)
                del data[:used]
                if ack is not None:
                    break
                await asyncio.sleep(0)
    except TimeoutError as error:
        raise GuestGoneError(f"The guest's agent did not answer within {timeout_s:g} s.") from error
    except OSError as error:
        raise GuestGoneError(f"The channel to the guest's agent broke: {error.strerror}.") from error
    if ack.version != VERSION:
        raise GuestGoneError(
            f"The guest's agent speaks version {ack.version} of the protocol, this program {VERSION}.",
            remedy="Restart the lifeform.",
        )
    return ack, bytes(data)


class Channel:
    """Streams over a greeted connection. `start` begins to read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, crowd: Crowd) -> None:
        self._reader = reader
        self._writer = writer
        self._name = name
        self._pace = Pace(time.monotonic(), crowd)
        self._streams: dict[int, Stream] = {}
        self._handlers: dict[str, InboundHandler] = {}
        self._next_id = 1
        self._last_guest_id = 0
        self._guest_streams = 0
        self._pongs: dict[bytes, asyncio.Future[None]] = {}
        self._closed = asyncio.Event()
        self._error: GuestGoneError | None = None
        self._tasks = TaskSet(f"guest-channel/{name}")
        writer.transport.set_write_buffer_limits(high=_WRITE_HIGH)

    def start(self, first: bytes) -> None:
        """Serve the connection until it ends; `first` are bytes that were read already."""
        self._tasks.start(self._serve(first), name="read")

    def serve(self, kind: str, handler: InboundHandler) -> None:
        """Hand streams of this kind that the guest opens to the handler."""
        self._handlers[kind] = handler

    # ---- out ----

    def open(self, kind: str, params: list[tuple[str, str]]) -> Stream:
        """Open a stream; the guest's answer comes to it.

        Raises GuestGoneError, GuestError when too many are open, ValueError for a NUL or too long parameters.
        """
        self.check()
        if len(self._streams) - self._guest_streams >= HOST_STREAMS_MAX:
            raise GuestError(f"More than {HOST_STREAMS_MAX} calls to the guest are under way.", reason="EMFILE")
        encoded = encode_params([("kind", kind), *params])
        self._pace.called(time.monotonic())
        stream = Stream(self._next_id, self)
        for frame in open_frames(stream.id, encoded):
            self.send(frame)
        self._next_id += 2
        self._streams[stream.id] = stream
        return stream

    def send(self, frame: Frame) -> None:
        if self._error is None:
            self._writer.write(encode(frame))

    async def drained(self) -> None:
        self.check()
        try:
            await self._writer.drain()
        except OSError as error:
            raise GuestGoneError("The channel to the guest's agent broke.") from error

    def forget(self, stream_id: int) -> None:
        if self._streams.pop(stream_id, None) is not None and stream_id % 2 == 0:
            self._guest_streams -= 1

    async def ping(self) -> float:
        """The seconds until the agent has answered. Raises GuestGoneError."""
        self.check()
        token = os.urandom(8)
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs[token] = pong
        begin = time.perf_counter()
        try:
            self.send(Frame(FrameType.PING, payload=token))
            await pong
        finally:
            self._pongs.pop(token, None)
        return time.perf_counter() - begin

    # ---- in ----

    async def _serve(self, first: bytes) -> None:
        try:
            await self._read(first)
            self._end(GuestGoneError("The channel to the guest's agent was closed."))
        except FrameError as error:
            log.warning("guest %s broke the protocol: %s", self._name, error)
            self._end(GuestGoneError(f"The guest's agent broke the protocol: {error}.", remedy="Restart the lifeform."))
        except OSError as error:
            self._end(GuestGoneError(f"The channel to the guest's agent broke: {error.strerror}."))

    async def _read(self, first: bytes) -> None:
        decoder = Decoder()
        data = first or await self._reader.read(_READ_SIZE)
        while data:
            frames = 0
            for frame in decoder.feed(data):
                self._dispatch(frame)
                frames += 1
                if frames % _FRAMES_PER_SLICE == 0:
                    await asyncio.sleep(self._pace.spend(_FRAMES_PER_SLICE, 0, time.monotonic()))
            await asyncio.sleep(self._pace.spend(frames % _FRAMES_PER_SLICE, len(data), time.monotonic()))
            if self._writer.transport.get_write_buffer_size() > UNREAD_MAX + FRAME_MAX:
                raise FrameError("it does not read what it is sent")
            data = await self._reader.read(_READ_SIZE)

    def _dispatch(self, frame: Frame) -> None:
        if frame.type is FrameType.PONG:
            self._take_pong(frame.payload)
        elif frame.type is FrameType.OPEN:
            self._take_open(frame)
        elif (stream := self._streams.get(frame.stream)) is not None:
            stream.take(frame)
        elif not self._was_open(frame.stream) or frame.type in (FrameType.HELLO, FrameType.HELLO_ACK, FrameType.PING):
            raise FrameError(f"a {frame.type.name} frame came for stream {frame.stream}, which is not open")

    def _was_open(self, stream_id: int) -> bool:
        """Frames may cross our CLOSE on the way; only a stream that never was is an error."""
        return 0 < stream_id < self._next_id if stream_id % 2 else 0 < stream_id <= self._last_guest_id

    def _take_pong(self, payload: bytes) -> None:
        pong = self._pongs.get(payload)
        if pong is not None and not pong.done():
            pong.set_result(None)

    def _take_open(self, frame: Frame) -> None:
        if frame.stream % 2 or frame.stream <= self._last_guest_id or frame.flags & FLAG_MORE:
            raise FrameError(f"it cannot open stream {frame.stream}")
        if self._guest_streams >= GUEST_STREAMS_MAX:
            raise FrameError(f"it opened more than {GUEST_STREAMS_MAX} streams")
        self._last_guest_id = frame.stream
        kind = parse_params(frame.payload).get("kind", "")
        handler = self._handlers.get(kind)
        if handler is None:
            refusal = encode_params([("error", "ENOSYS"), ("message", "nobody serves streams of this kind")])
            self.send(Frame(FrameType.REFUSED, frame.stream, refusal))
            return
        stream = Stream(frame.stream, self)
        self._streams[stream.id] = stream
        self._guest_streams += 1
        self.send(Frame(FrameType.OPENED, stream.id))
        self._tasks.start(self._handle(handler, stream), name=f"{kind}-{stream.id}")

    async def _handle(self, handler: InboundHandler, stream: Stream) -> None:
        try:
            await handler(Duplex(stream))
        except GuestGoneError:
            log.debug("guest %s went away from stream %d", self._name, stream.id)
        finally:
            stream.drop()

    # ---- the end ----

    def check(self) -> None:
        """Raises GuestGoneError when the connection is gone."""
        if self._error is not None:
            raise GuestGoneError(self._error.message, remedy=self._error.remedy)

    def _end(self, error: GuestGoneError) -> None:
        if self._error is not None:
            return
        self._error = error
        for stream in list(self._streams.values()):
            stream.break_off(error)
        for pong in self._pongs.values():
            if not pong.done():
                pong.set_exception(GuestGoneError(error.message, remedy=error.remedy))
        # abort: what is still unsent is for nobody, and a guest that does not read must not hold us up
        self._writer.transport.abort()
        self._closed.set()

    async def closed(self) -> None:
        """Wait until the connection is gone."""
        await self._closed.wait()

    async def close(self) -> None:
        """Drop the connection and wait for our tasks."""
        self._end(GuestGoneError("The channel to the guest's agent was closed."))
        await self._tasks.close()

"""A watch of the engine: one HTTP stream at a time, reconnected so that nothing is missed and nothing told twice.

The stream is cut into lines, each a message. What has been told is remembered as one revision, and a new stream begins
behind it, at whichever server answers. Two rules of etcd matter: an answer with events may carry a header that is ahead
of them while the watch catches up, so only the last event's revision counts; an answer without events (a progress
notification) promises everything up to its header. A quiet stream is told from a dead server by those notifications.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

import aiohttp

from primordia.drivers.store_etcd import gateway
from primordia.drivers.store_etcd.transport import Transport, drop
from primordia.ports.store import CompactedError, StoreUnavailableError, WatchBatch

log = logging.getLogger(__name__)

_LONGEST_LINE = 256 * 1024 * 1024
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 1.0


class Lines:
    """Cuts a stream of bytes into lines. Raises StoreUnavailableError for one that never ends."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends."""
        *complete, rest = data.split(b"\n")
        for line in complete:
            whole = b"".join([*self._parts, line])
            self._parts, self._size = [], 0
            if whole:
                yield whole
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > _LONGEST_LINE:
            raise StoreUnavailableError("The engine sent a line without an end.")


@dataclass
class Progress:
    """How far a watch has come: pure, fed with messages in order, across streams."""

    prefix: str
    after: int
    _pieces: list[gateway.WatchedEvent] = field(default_factory=list)

    def restart(self) -> None:
        """A new stream begins behind the last whole answer; pieces of a torn one are forgotten."""
        self._pieces.clear()

    def take(self, answer: gateway.WatchAnswer) -> WatchBatch | None:
        """What an answer tells, None if nothing yet. Raises CompactedError, and StoreUnavailableError if canceled."""
        if answer.compact_revision:
            raise CompactedError(
                f"Revision {self.after} is no longer kept: the oldest is {answer.compact_revision}.", retry_after_s=0
            )
        if answer.canceled:
            raise StoreUnavailableError(f"The engine ended a watch: {answer.cancel_reason or 'no reason given'}.")
        if answer.created:
            return None
        self._pieces.extend(answer.events)
        if answer.fragment:
            return None
        events = tuple(gateway.to_watch_event(each) for each in self._pieces)
        self._pieces.clear()
        self.after = max(self.after, events[-1].revision if events else answer.header.revision)
        return WatchBatch(self.after, events)


class Watch:
    """One watch. `open` sets it up; `batches` follows it until closed."""

    def __init__(self, transport: Transport, prefix: str, after_revision: int) -> None:
        self._transport = transport
        self._progress = Progress(prefix, after_revision)
        self._stream: _Stream | None = None

    async def open(self) -> None:
        """Set it up at any server. Raises StoreUnavailableError when none of them answers."""
        self._stream = await self._connect_any()

    async def batches(self) -> AsyncGenerator[WatchBatch, None]:
        """The changes and signs of life. Raises CompactedError, and StoreUnavailableError when patience ends."""
        clock = asyncio.get_running_loop().time
        heard, delay_s = clock(), _FIRST_DELAY_S
        while True:
            try:
                if self._stream is None:
                    self._stream = await self._connect_any()
                async for answer in self._stream.answers():
                    if (batch := self._progress.take(answer)) is not None:
                        yield batch
                        heard, delay_s = clock(), _FIRST_DELAY_S
            except StoreUnavailableError as error:
                if self._transport.closed or clock() > heard + self._transport.settings.patience_s:
                    raise
                log.info("watch of %s behind revision %d is set up anew: %s", *self._where(), error)
            self._lose()
            await asyncio.sleep(delay_s * self._transport.rng.uniform(0.5, 1.0))
            delay_s = min(_LONGEST_DELAY_S, delay_s * 2)

    def close(self) -> None:
        """Drop the stream, and with it the server's side of the watch."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _where(self) -> tuple[str, int]:
        return self._progress.prefix, self._progress.after

    def _lose(self) -> None:
        if self._stream is not None:
            self._transport.avoid(self._stream.server)
        self.close()

    async def _connect_any(self) -> _Stream:
        """A fresh stream from the first server that sets one up; each is asked once."""
        self._progress.restart()
        prefix, after = self._where()
        request = gateway.watch_request(prefix, after)
        for left in reversed(range(self._transport.size)):
            server = self._transport.server()
            try:
                return _Stream(self._transport, server, await self._transport.open_stream(server, gateway.WATCH, request))
            except StoreUnavailableError:
                self._transport.avoid(server)
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")


class _Stream:
    """One connection's messages. etcd answers when the watch is set up, so an open stream is a set-up watch."""

    def __init__(self, transport: Transport, server: str, response: aiohttp.ClientResponse) -> None:
        self.server = server
        self._transport = transport
        self._response = response

    async def answers(self) -> AsyncGenerator[gateway.WatchAnswer, None]:
        """Messages until the connection ends, which is always a StoreUnavailableError."""
        lines = Lines()
        while True:
            with self._transport.mapped(self.server):
                data = await self._response.content.readany()
                if not data:
                    raise ConnectionResetError("it was ended")
            for line in lines.feed(data):
                message = gateway.decode(gateway.WatchLine, line)
                if message.error is not None:
                    raise _as_lost(gateway.error_of(message.error, self.server))
                if message.result is not None:
                    yield message.result

    def close(self) -> None:
        drop(self._response)


def _as_lost(error: Exception) -> Exception:
    """A stream that ends by a refusal is tried again elsewhere, whatever the reason; only compaction is final."""
    return error if isinstance(error, CompactedError) else StoreUnavailableError(str(error))

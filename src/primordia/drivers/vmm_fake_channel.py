"""The byte channel of the fake VMM: two streams in memory, with real back-pressure and without descriptors.

A virtual clock can drive it, and what is sent to a paused guest waits at its gate until the guest goes on.
"""

from __future__ import annotations

import asyncio

_HIGH_WATER_BYTES = 65536

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _MemoryTransport(asyncio.Transport):
    """One direction's sending end: hands bytes to the peer's protocol, and stops the writer while the peer does not read.

    `gate` holds back what arrives while it is cleared (a paused guest); None never holds back.
    """

    def __init__(self, protocol: asyncio.StreamReaderProtocol, gate: asyncio.Event | None) -> None:
        super().__init__()
        self._protocol = protocol
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._writer_paused = False
        self._reading = True
        self._closing = False
        self._gate_task: asyncio.Task[bool] | None = None
        self.peer: _MemoryTransport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue for the peer."""
        if self._closing:
            return
        self._buffer += data
        if len(self._buffer) > _HIGH_WATER_BYTES and not self._writer_paused:
            self._writer_paused = True
            self._protocol.pause_writing()
        self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        if not self._buffer or not self.peer._reading or self.peer._closing:
            return
        if self._gate is not None and not self._gate.is_set():
            if self._gate_task is None:
                self._gate_task = self._loop.create_task(self._gate.wait(), name="fake guest paused")
                self._gate_task.add_done_callback(self._opened)
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._writer_paused:
            self._writer_paused = False
            self._protocol.resume_writing()
        self.peer._protocol.data_received(data)

    def _opened(self, task: asyncio.Task[bool]) -> None:
        self._gate_task = None
        self._deliver()

    def pause_reading(self) -> None:
        """Called by the stream when its buffer is full."""
        self._reading = False

    def resume_reading(self) -> None:
        """Called by the stream when it has room again."""
        self._reading = True
        self._loop.call_soon(self.peer._deliver)

    def write_eof(self) -> None:
        """Half-closing is not something a byte channel of a microVM has."""
        raise NotImplementedError

    def can_write_eof(self) -> bool:
        """No."""
        return False

    def is_closing(self) -> bool:
        """Whether this end is closed."""
        return self._closing

    def close(self) -> None:
        """Close both ends, delivering first what the peer can still take."""
        if self._closing:
            return
        self._deliver()
        if self._gate_task is not None:
            self._gate_task.cancel()
        self._closing = True
        self._loop.call_soon(self._protocol.connection_lost, None)
        self._loop.call_soon(self.peer.close)

    def abort(self) -> None:
        """As close."""
        self.close()


def memory_channel(gate: asyncio.Event | None = None) -> tuple[Stream, Stream]:
    """Two connected streams, host's and guest's; bytes reach the guest's only while `gate` is set."""
    ends: list[tuple[asyncio.StreamReader, _MemoryTransport, asyncio.StreamReaderProtocol]] = []
    loop = asyncio.get_running_loop()
    for own_gate in (gate, None):
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        ends.append((reader, _MemoryTransport(protocol, own_gate), protocol))
    ends[0][1].peer, ends[1][1].peer = ends[1][1], ends[0][1]
    for _, transport, protocol in ends:
        protocol.connection_made(transport)
    host, guest = ((reader, asyncio.StreamWriter(t, p, reader, loop)) for reader, t, p in ends)
    return host, guest

"""Frames of the byte channel to a guest's agent: the host's half of guest/PROTOCOL.md, pure.

The guest is untrusted, so everything here is bounded before it is believed: a frame's length by its two bytes and
PAYLOAD_MAX, parameters by PARAMS_MAX, and a frame whose CRC is wrong ends the connection. The CRC is no defence against
a hostile guest; it tells the halves of two connections apart when a host died in mid-frame.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

VERSION = 2
HEADER = struct.Struct("<BBHI")
HEADER_SIZE = 12
PAYLOAD_MAX = 32768
FRAME_MAX = HEADER_SIZE + PAYLOAD_MAX
WINDOW = 256 * 1024
OPEN_MAX = 4 * 1024 * 1024
PARAMS_MAX = 256
HOST_STREAMS_MAX = 160
GUEST_STREAMS_MAX = 64
NONCE_SIZE = 16
MAGIC = b"primordia-hello\xa5"
FLAG_MORE = 0x80
CHANNEL_MASK = 0x0F
_ACK = struct.Struct("<16sI16sI")


class FrameType(enum.IntEnum):
    """What a frame says."""

    HELLO = 1
    HELLO_ACK = 2
    PING = 3
    PONG = 4
    OPEN = 5
    OPENED = 6
    REFUSED = 7
    DATA = 8
    WINDOW = 9
    EOF = 10
    CLOSE = 11
    CONTROL = 12


class GuestState(enum.IntFlag):
    """The agent's state in its HELLO_ACK."""

    CONFIGURED = 1
    MAIN_RUNNING = 2
    MAIN_ENDED = 4
    SHUTTING_DOWN = 8
    PREPARED = 16
    FROZEN = 32


class FrameError(ValueError):
    """The bytes are no frame of this protocol: a sentence that says what was wrong."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `stream` is 0 where no stream is meant."""

    type: FrameType
    stream: int = 0
    payload: bytes = b""
    flags: int = 0


@dataclass(frozen=True, slots=True)
class HelloAck:
    """The agent's greeting: which boot (or fork) of the guest this is, and how far it has come."""

    version: int
    boot_id: bytes
    state: GuestState


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. Raises ValueError when the payload is too long."""
    if len(frame.payload) > PAYLOAD_MAX:
        raise ValueError(f"a payload of {len(frame.payload)} bytes is longer than {PAYLOAD_MAX}")
    head = HEADER.pack(frame.type, frame.flags, len(frame.payload), frame.stream)
    crc = zlib.crc32(frame.payload, zlib.crc32(head))
    return b"".join((head, crc.to_bytes(4, "little"), frame.payload))


def greeting(nonce: bytes) -> bytes:
    """What a host sends first: filler that completes (and so spoils) a frame left half-sent, then HELLO."""
    payload = MAGIC + VERSION.to_bytes(4, "little") + nonce
    return bytes(FRAME_MAX + 1) + encode(Frame(FrameType.HELLO, payload=payload))


def find_ack(data: bytes | bytearray, nonce: bytes) -> tuple[HelloAck | None, int]:
    """Look for the answer to our HELLO among bytes of an earlier connection.

    Returns the answer and the offset behind it, or None and how many bytes can be thrown away.
    """
    size = HEADER_SIZE + _ACK.size
    start = data.find(nonce)
    while start >= 0:
        begin = start - HEADER_SIZE
        if begin >= 0 and len(data) - begin < size:
            return None, begin
        if begin >= 0 and (ack := _parse_ack(bytes(data[begin : begin + size]))) is not None:
            return ack, begin + size
        start = data.find(nonce, start + 1)
    return None, max(0, len(data) - size)


def _parse_ack(data: bytes) -> HelloAck | None:
    kind, flags, length, stream = HEADER.unpack_from(data)
    payload = data[HEADER_SIZE:]
    if (kind, flags, length, stream) != (FrameType.HELLO_ACK, 0, _ACK.size, 0):
        return None
    if zlib.crc32(payload, zlib.crc32(data[:8])) != int.from_bytes(data[8:HEADER_SIZE], "little"):
        return None
    _, version, boot_id, state = _ACK.unpack(payload)
    return HelloAck(version, boot_id, GuestState(state & 0x3F))


class Decoder:
    """Cuts a byte stream into frames. It never holds more than what was fed and one frame."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises FrameError at the first thing that is no frame; no use after that."""
        self._data += data
        view = memoryview(bytes(self._data))
        at = 0
        try:
            while len(view) - at >= HEADER_SIZE:
                kind, flags, length, stream = HEADER.unpack_from(view, at)
                if length > PAYLOAD_MAX:
                    raise FrameError(f"a frame announces {length} bytes, more than {PAYLOAD_MAX}")
                if not FrameType.HELLO <= kind <= FrameType.CONTROL:
                    raise FrameError(f"a frame has the unknown type {kind}")
                end = at + HEADER_SIZE + length
                if end > len(view):
                    break
                payload = bytes(view[at + HEADER_SIZE : end])
                if zlib.crc32(payload, zlib.crc32(view[at : at + 8])) != int.from_bytes(view[at + 8 : at + 12], "little"):
                    raise FrameError("the checksum of a frame is wrong")
                at = end
                yield Frame(FrameType(kind), stream, payload, flags)
        finally:
            del self._data[:at]


def encode_params(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Parameters as NUL-terminated `key=value`. Raises ValueError for a NUL, which C strings cannot carry."""
    texts = [f"{key}={value}" for key, value in pairs]
    for text in texts:
        if "\0" in text:
            raise ValueError(f"{text.split('=')[0]} contains a NUL character")
    return b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in texts)


def parse_params(payload: bytes) -> dict[str, str]:
    """Parameters of a frame from the guest; of a repeated key the first counts. Raises FrameError."""
    if not payload:
        return {}
    if not payload.endswith(b"\0"):
        raise FrameError("parameters do not end in NUL")
    texts = payload[:-1].split(b"\0", PARAMS_MAX)
    if len(texts) > PARAMS_MAX:
        raise FrameError(f"a frame has more than {PARAMS_MAX} parameters")
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.decode("utf-8", "replace").partition("=")
        if not equals or not key:
            raise FrameError("a parameter is not of the form key=value")
        found.setdefault(key, value)
    return found


def open_frames(stream: int, params: bytes) -> Iterator[Frame]:
    """OPEN, in as many frames as the parameters need. Raises ValueError above OPEN_MAX."""
    if len(params) > OPEN_MAX:
        raise ValueError(f"parameters of {len(params)} bytes are longer than {OPEN_MAX}")
    for at in range(0, max(1, len(params)), PAYLOAD_MAX):
        more = FLAG_MORE if at + PAYLOAD_MAX < len(params) else 0
        yield Frame(FrameType.OPEN, stream, params[at : at + PAYLOAD_MAX], more)

"""A waiting guest's warmed interpreter runs a little of its own code, so that its first request finds the way warm.

The interpreter is the only user process that may go on before its guest is claimed, and only where the agent has seen that
nothing else would (guest/PROTOCOL.md, `stir`). What is asked over the connection is a request like any other
(guest/interpreter.py), so that all of a first request's way is taken. What the guest answers is read to its end and believed
in nothing.
"""

from __future__ import annotations

import json

from primordia.ports.guest import ByteStream, GuestError

_REQUEST = json.dumps({"id": 0, "rehearse": True}).encode()
_TIMES = 2
_HEAD = 4
_LONGEST = 65536


async def rehearse_interpreter(stream: ByteStream) -> None:
    """Ask for it and wait until it is done, twice: what was translated once is chained at the second time.

    Raises GuestError when what answers is not the interpreter.
    """
    unread = b""
    for _ in range(_TIMES):
        await stream.write(len(_REQUEST).to_bytes(_HEAD, "big") + _REQUEST)
        done = False
        while not done:
            done, unread = await _frame(stream, unread)


async def _frame(stream: ByteStream, unread: bytes) -> tuple[bool, bytes]:
    """Whether the next frame is an answer's last, and what came behind it."""
    data = await _filled(stream, unread, _HEAD)
    size = _HEAD + int.from_bytes(data[:_HEAD], "big")
    if size > _LONGEST:
        raise _nonsense()
    data = await _filled(stream, data, size)
    try:
        message = json.loads(data[_HEAD:size])
    except (ValueError, RecursionError) as error:
        raise _nonsense() from error
    return isinstance(message, dict) and message.get("done") is True, data[size:]


async def _filled(stream: ByteStream, data: bytes, size: int) -> bytes:
    while len(data) < size:
        part = await stream.read()
        if not part:
            raise _nonsense()
        data += part
    return data


def _nonsense() -> GuestError:
    return GuestError("The guest's interpreter does not rehearse as it should.", reason="EPROTO")

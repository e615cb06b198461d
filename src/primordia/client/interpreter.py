"""The warmed interpreter of a box, as its clients speak to it: frames of JSON over a Unix socket in the guest.

A frame is four bytes of length, big-endian, and that much JSON. One request is answered by frames with `stdout` or `stderr`
text, in the order it was written, and at the end by one with `done`, its `result` and its `error`. What the guest sends is
its own word and may be anything: lengths are bounded, and what is no frame is an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import msgspec

from primordia.client.box_results import CodeError, CodeResult, Output
from primordia.client.errors import BrokenAnswerError

SOCKET = "/run/primordia/interpreter.sock"
_HEAD = 4
_LONGEST = 64 * 1024 * 1024

OnText = Callable[[str], object]


class Stream(Protocol):
    """What a connection to a socket in the guest can do."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes) -> None: ...


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    traceback: str = ""


class _Answer(msgspec.Struct):
    stdout: str = ""
    stderr: str = ""
    done: bool = False
    result: str | None = None
    error: _Error | None = None


def request(code: str, *, env: Mapping[str, str] | None = None) -> bytes:
    """The frame that asks for a piece of code to be run, until it ends or its client goes."""
    asked: dict[str, Any] = {"id": 1, "code": code}
    if env:
        asked["env"] = dict(env)
    body = msgspec.json.encode(asked)
    return len(body).to_bytes(_HEAD, "big") + body


async def converse(stream: Stream, asked: bytes, tell: Mapping[Output, OnText | None]) -> CodeResult:
    """Send a request and gather its answer; output is told as it comes. Raises BrokenAnswerError."""
    await stream.write(asked)
    out: list[str] = []
    err: list[str] = []
    async for answer in _answers(stream):
        for text, gathered, callback in ((answer.stdout, out, tell["stdout"]), (answer.stderr, err, tell["stderr"])):
            if text:
                gathered.append(text)
                if callback is not None:
                    callback(text)
        if answer.done:
            error = CodeError(answer.error.type, answer.error.message, answer.error.traceback) if answer.error else None
            return CodeResult(answer.result or "", "".join(out), "".join(err), error)
    raise BrokenAnswerError("The box's interpreter ended before its answer did.", remedy="The code may have ended it.")


async def _answers(stream: Stream) -> AsyncIterator[_Answer]:
    buffer = bytearray()
    while data := await stream.read():
        buffer += data
        while len(buffer) >= _HEAD:
            length = int.from_bytes(buffer[:_HEAD], "big")
            if length > _LONGEST:
                raise BrokenAnswerError("The box's interpreter sent a frame without end.")
            if len(buffer) < _HEAD + length:
                break
            body = bytes(buffer[_HEAD : _HEAD + length])
            del buffer[: _HEAD + length]
            yield _decoded(body)


def _decoded(body: bytes) -> _Answer:
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BrokenAnswerError(f"The box's interpreter answers in a way that is not understood ({error}).") from error

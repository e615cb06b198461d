"""What runs inside a fake guest: streams in memory, processes, and a few programs as coroutines."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Literal, Protocol

from primordia.ports.guest import ExitStatus, GuestGoneError, Program

_WINDOW = 256 * 1024


class Inside(Protocol):
    """What a program sees of its guest."""

    files: dict[str, bytes]

    async def running(self) -> None:
        """Wait while the guest's user processes are frozen."""


class MemoryStream:
    """One end of a duplex stream in memory, with the back-pressure of a window."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._changed = asyncio.Event()
        self.other: MemoryStream = self

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _put(self, data: bytes) -> None:
        self._buffer += data
        self._changed.set()

    async def read(self, limit: int = 65536) -> bytes:
        while not self._buffer and not self._ended:
            await self._change()
        data = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        self._changed.set()
        return data

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), _WINDOW):
            while len(self.other._buffer) >= _WINDOW and not self.other._ended:
                await self.other._change()
            if self.other._ended:
                raise GuestGoneError("The other side has closed the stream.")
            self.other._put(data[at : at + _WINDOW])

    async def end(self) -> None:
        self.other._ended = True
        self.other._changed.set()

    async def close(self) -> None:
        self._ended = True
        self._changed.set()
        await self.end()


def stream_pair() -> tuple[MemoryStream, MemoryStream]:
    """Two ends of one stream."""
    one, other = MemoryStream(), MemoryStream()
    one.other, other.other = other, one
    return one, other


class FakeProcess:
    """A running program: what its coroutine sees, and the port's ExecSession for the host."""

    def __init__(self, agent: Inside, program: Program, *, stdin: bool) -> None:
        self.agent = agent
        self.program = program
        self.size = (program.rows, program.columns)
        self.exit: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self._host_input, self.stdin = stream_pair()
        self._output: asyncio.Queue[tuple[Literal["stdout", "stderr"], bytes] | None] = asyncio.Queue(64)
        self.on_output: Callable[[bytes], None] | None = None
        if not stdin:
            self.stdin._ended = True

    async def print(self, data: bytes, channel: Literal["stdout", "stderr"] = "stdout") -> None:
        """Write to standard output; waits while the host does not read, or the guest is frozen."""
        await self.agent.running()
        if self.on_output is not None:
            self.on_output(data)
        else:
            await self._output.put((channel, data))

    def finish(self, status: ExitStatus) -> None:
        """End it, as a signal does."""
        if not self.exit.done():
            self.exit.set_result(status)
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        if self._output.full():
            self._output.get_nowait()
        self._output.put_nowait(None)

    async def run(self, body: FakeProgram) -> None:
        """Run the coroutine to its end."""
        code = await body(self)
        if not self.exit.done():
            self.exit.set_result(ExitStatus(code))
        if self.on_output is None:
            await self._output.put(None)

    async def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        while (item := await self._output.get()) is not None:
            yield item

    async def write(self, data: bytes) -> None:
        await self._host_input.write(data)

    async def end_input(self) -> None:
        await self._host_input.end()

    async def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)

    async def signal(self, number: int) -> None:
        if not self.exit.done():
            self.finish(ExitStatus(128 + number, number))

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.exit)

    async def close(self) -> None:
        await self.signal(signal.SIGHUP)


FakeProgram = Callable[[FakeProcess], Awaitable[int]]


async def _echo(process: FakeProcess) -> int:
    await process.print(" ".join(process.program.argv[1:]).encode() + b"\n")
    return 0


async def _cat(process: FakeProcess) -> int:
    for path in process.program.argv[1:]:
        content = process.agent.files.get(path)
        if content is None:
            await process.print(f"cat: {path}: No such file or directory\n".encode(), "stderr")
            return 1
        await process.print(content)
    while len(process.program.argv) == 1 and (data := await process.stdin.read()):
        await process.print(data)
    return 0


async def _sleep(process: FakeProcess) -> int:
    await asyncio.sleep(float(process.program.argv[1]))
    return 0


async def _true(_: FakeProcess) -> int:
    return 0


async def _false(_: FakeProcess) -> int:
    return 1


PROGRAMS: Mapping[str, FakeProgram] = {"echo": _echo, "cat": _cat, "sleep": _sleep, "true": _true, "false": _false}

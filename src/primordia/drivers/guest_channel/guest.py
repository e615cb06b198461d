"""The guest port's calls, each a stream of the channel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Literal

from primordia.drivers.guest_channel import identifying
from primordia.drivers.guest_channel.calls import (
    Params,
    boot_id,
    exit_status,
    freeze_params,
    hosts_params,
    main_state,
    program_params,
    refusal,
)
from primordia.drivers.guest_channel.channel import Channel, greet
from primordia.drivers.guest_channel.pace import Crowd
from primordia.drivers.guest_channel.rehearsing import rehearse_interpreter
from primordia.drivers.guest_channel.stream import Duplex, Stream
from primordia.ports.guest import (
    ByteStream,
    ExecSession,
    ExitStatus,
    GuestConfig,
    GuestError,
    GuestGoneError,
    GuestIdentity,
    InboundHandler,
    LogChunk,
    MainState,
    Program,
)
from primordia.wire.guest_frames import FrameError, FrameType, GuestState, HelloAck, encode_params, parse_params

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 30.0
SYNC_TIMEOUT_S = 300.0
_LOG_PREFIX = 8

Answer = dict[str, str]


async def connect(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    timeout_s: float = 30.0,
    name: str = "",
    crowd: Crowd | None = None,
) -> ChannelGuest:
    """Greet the agent on a machine's channel and serve the connection; `name` is for the log.

    `crowd` are the guests that share this thread and so give way to each other (default: it is alone).

    A guest that still boots answers when it is ready, so `timeout_s` covers the boot. Raises GuestGoneError; the writer is
    closed then.
    """
    try:
        ack, rest = await greet(reader, writer, timeout_s)
    except BaseException:
        writer.transport.abort()
        raise
    channel = Channel(reader, writer, name, crowd or Crowd())
    channel.start(rest)
    return ChannelGuest(channel, ack)


class ChannelGuest:
    """ports.guest.Guest over a channel."""

    def __init__(self, channel: Channel, ack: HelloAck) -> None:
        self._channel = channel
        self._ack = ack

    @property
    def agent_boot_id(self) -> str:
        return self._ack.boot_id.hex()

    @property
    def state(self) -> GuestState:
        """How far the guest had come when the connection was made."""
        return self._ack.state

    # ---- calls with one answer ----

    async def prepare(self, root: str, scratch: str) -> None:
        await self._call("prepare", [("root", root), ("scratch", scratch)])

    async def identify(self, identity: GuestIdentity) -> tuple[str, ...]:
        try:
            done = await identifying.identify(self._call, identity)
        except ValueError as error:
            raise GuestError(f"The guest cannot be asked for identify: {error}.", reason="E2BIG") from error
        self._ack = replace(self._ack, boot_id=boot_id(done.answer))
        log.debug("guest %s confirmed %s (microseconds)", identity.hostname, done.spent_us)
        return tuple(done.spent_us)

    async def rehearse(self) -> None:
        await self._rehearse_exec()
        await self._rehearse_following()
        try:
            stream = Duplex(await self._opened("stir", []))
        except GuestError:
            return  # no interpreter waits there alone
        try:
            await rehearse_interpreter(stream)
        finally:
            await stream.close()
        await self.freeze()

    async def _rehearse_following(self) -> None:
        """What is asked of a guest as soon as it is somebody, and else would stand in the way of its first command."""
        await self._call("main_state")
        for kind, params in (("wait_main", []), ("logs", [("offset", "0")])):
            (await self._opened(kind, params)).drop()

    async def _rehearse_exec(self) -> None:
        session = ChannelExec(await self._opened("rehearse", []))
        try:
            async for _ in session.output():
                continue
            await session.wait()
        finally:
            await session.close()

    async def configure(self, config: GuestConfig) -> None:
        await self.prepare(config.root, config.scratch)
        await self.identify(config)

    async def freeze(self) -> None:
        await self._call("freeze")

    async def thaw(self) -> None:
        await self._call("thaw")

    async def start_main(self, program: Program) -> None:
        await self._call("start_main", program_params(program))

    async def main_state(self) -> MainState:
        return main_state(await self._call("main_state"))

    async def wait_main(self) -> ExitStatus:
        return exit_status(await self._call("wait_main", timeout_s=None))

    async def signal_main(self, number: int) -> None:
        await self._call("signal_main", [("signal", str(number))])

    async def set_hosts(self, hosts: dict[str, str]) -> None:
        await self._call("hosts", hosts_params(hosts))

    async def sync(self) -> None:
        await self._call("sync", timeout_s=SYNC_TIMEOUT_S)

    async def grow_data(self) -> None:
        await self._call("grow_data", timeout_s=SYNC_TIMEOUT_S)

    async def freeze_data(self, deadline_s: float) -> None:
        await self._call("freeze_data", freeze_params(deadline_s), timeout_s=deadline_s + ANSWER_TIMEOUT_S)

    async def thaw_data(self) -> None:
        await self._call("thaw_data")

    async def shutdown(self, grace_s: float) -> None:
        await self._call("shutdown", [("grace_ms", str(int(grace_s * 1000)))])

    async def ping(self) -> float:
        async with _answer_within(ANSWER_TIMEOUT_S):
            return await self._channel.ping()

    async def _call(
        self, kind: str, params: Params | None = None, timeout_s: float | None = ANSWER_TIMEOUT_S
    ) -> dict[str, str]:
        stream = self._open(kind, params or [])
        try:
            async with _answer_within(timeout_s):
                await self._channel.drained()
                return await _result(stream)
        finally:
            stream.drop()

    def _open(self, kind: str, params: Params) -> Stream:
        try:
            return self._channel.open(kind, params)
        except ValueError as error:
            raise GuestError(f"The guest cannot be asked for {kind}: {error}.", reason="E2BIG") from error

    async def _opened(self, kind: str, params: Params) -> Stream:
        """Open a stream and wait until the agent took it. Raises GuestError when it refused."""
        stream = self._open(kind, params)
        try:
            async with _answer_within(ANSWER_TIMEOUT_S):
                await self._channel.drained()
                if not await stream.opened():
                    await _result(stream)
                    raise GuestError(f"The guest ended {kind} before it began.")
        except BaseException:
            stream.drop()
            raise
        return stream

    # ---- streams ----

    async def logs(self, offset: int) -> AsyncIterator[LogChunk]:
        stream = await self._opened("logs", [("offset", str(offset))])
        try:
            expected, first = offset, True
            while (received := await stream.receive()) is not None:
                start, data = int.from_bytes(received[1][:_LOG_PREFIX], "little"), received[1][_LOG_PREFIX:]
                if start < expected and not first:
                    raise GuestError("The guest's agent sent its log out of order.", reason="EPROTO")
                yield LogChunk(start, data, max(0, start - expected))
                expected, first = start + len(data), False
            await _result(stream)
        finally:
            stream.drop()

    async def exec(self, program: Program, *, stdin: bool) -> ExecSession:
        params = [*program_params(program), ("stdin", "1" if stdin else "0")]
        return ChannelExec(await self._opened("exec", params))

    async def read_tar(self, path: str) -> AsyncIterator[bytes]:
        stream = await self._opened("read_tar", [("path", path)])
        try:
            while (received := await stream.receive()) is not None:
                yield received[1]
            await _result(stream)
        finally:
            stream.drop()

    async def write_tar(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        stream = await self._opened("write_tar", [("path", path)])
        try:
            # the agent may end the stream early: its answer then says why
            with suppress(BrokenPipeError):
                async for chunk in chunks:
                    await stream.send(chunk)
                stream.send_end()
            await _result(stream)
        finally:
            stream.drop()

    async def connect_tcp(self, port: int, host: str = "127.0.0.1") -> ByteStream:
        return Duplex(await self._opened("tcp", [("host", host), ("port", str(port))]))

    async def connect_unix(self, path: str) -> ByteStream:
        return Duplex(await self._opened("unix", [("path", path)]))

    def on_stream(self, kind: str, handler: InboundHandler) -> None:
        self._channel.serve(kind, handler)

    async def closed(self) -> None:
        await self._channel.closed()

    async def close(self) -> None:
        await self._channel.close()


class ChannelExec:
    """ports.guest.ExecSession over a stream. The guest's program waits when its output is not read."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        while (received := await self._stream.receive()) is not None:
            yield "stderr" if received[0] == 2 else "stdout", received[1]

    async def write(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # the program has ended: like a pipe whose reader is gone, and wait() tells
            await self._stream.send(data)

    async def end_input(self) -> None:
        self._stream.send_end()

    async def resize(self, rows: int, columns: int) -> None:
        self._stream.send_control(encode_params([("rows", str(rows)), ("columns", str(columns))]))

    async def signal(self, number: int) -> None:
        self._stream.send_control(encode_params([("signal", str(number))]))

    async def wait(self) -> ExitStatus:
        return exit_status(await _result(self._stream))

    async def close(self) -> None:
        self._stream.drop()


async def _result(stream: Stream) -> Answer:
    """The parameters of a stream's end. Raises GuestError when they name an error, GuestGoneError."""
    kind, payload = await stream.outcome()
    try:
        answer = parse_params(payload)
    except FrameError as error:
        raise GuestError(f"The guest's agent gave an answer that makes no sense: {error}.", reason="EPROTO") from error
    if kind is FrameType.REFUSED or "error" in answer:
        raise refusal(answer)
    return answer


@asynccontextmanager
async def _answer_within(timeout_s: float | None) -> AsyncIterator[None]:
    """Turns a deadline into GuestGoneError; None waits without one."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as late:
        raise GuestGoneError(f"The guest's agent did not answer within {timeout_s:g} s.") from late

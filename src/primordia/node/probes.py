"""Readiness probes: one try at a time, each bounded by its timeout, judged by thresholds.

TCP and HTTP go over the network to the context's own address, for that is how its users come: a server that listens only
on the guest's loopback is not ready. The guest is untrusted, so only the first bytes of an answer are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from primordia.domain.probes import Readiness, judge
from primordia.kit.clock import Clock
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError
from primordia.ports.guest import Guest, Program
from primordia.wire.resources import Probe

Dial = Callable[[str, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_MAX_ANSWER = 4096
_SHORTEST_PERIOD_S = 0.1


async def dial_tcp(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP connection from the node."""
    return await asyncio.open_connection(address, port, limit=_MAX_ANSWER)


@dataclass(frozen=True)
class Target:
    """What is probed. `program` has the environment, folder and user for exec probes."""

    address: str
    guest: Guest
    program: Program


class Prober:
    """Probes one context over and over."""

    def __init__(self, clock: Clock, dial: Dial) -> None:
        self._clock = clock
        self._dial = dial

    async def watch(self, probe: Probe, target: Target, tell: Callable[[Readiness], None]) -> None:
        """Probe until cancelled; `tell` hears every judgement that differs from the one before."""
        state = Readiness()
        await self._clock.sleep(probe.initial_delay_seconds)
        while True:
            failure = await self.check(probe, target)
            after = judge(state, failure, success_threshold=probe.success_threshold, failure_threshold=probe.failure_threshold)
            if (after.ready, after.message) != (state.ready, state.message):
                tell(after)
            state = after
            await self._clock.sleep(max(_SHORTEST_PERIOD_S, probe.period_seconds))

    async def check(self, probe: Probe, target: Target) -> str:
        """One try: empty when it succeeded, else a sentence."""
        timeout_s = max(_SHORTEST_PERIOD_S, probe.timeout_seconds)
        try:
            return await within(self._clock, timeout_s, self._try(probe, target))
        except TimeoutError:
            return f"The readiness probe got no answer within {timeout_s:g} s."
        except OSError as error:
            return f"The readiness probe failed: {error.strerror or error}."
        except PrimordiaError as error:
            return f"The readiness probe failed: {error.message}"

    async def _try(self, probe: Probe, target: Target) -> str:
        if probe.exec is not None:
            return await self._exec(probe.exec.command, target)
        if probe.http_get is not None:
            return await self._http(probe.http_get.port, probe.http_get.path, target)
        if probe.tcp_socket is not None:
            _, writer = await self._dial(target.address, probe.tcp_socket.port)
            await _hang_up(writer)
        return ""

    async def _exec(self, command: tuple[str, ...], target: Target) -> str:
        program = target.program
        session = await target.guest.exec(Program(command, program.env, program.working_dir, program.user), stdin=False)
        try:
            async for _ in session.output():
                pass
            status = await session.wait()
        finally:
            await session.close()
        if status.error:
            return f"The readiness probe cannot run {command[0]}: {status.error}."
        return f"The readiness probe {command[0]} ended with exit code {status.code}." if status.code else ""

    async def _http(self, port: int, path: str, target: Target) -> str:
        reader, writer = await self._dial(target.address, port)
        try:
            host = f"{target.address}:{port}"
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: primordia-probe\r\n\r\n".encode()
            )
            answer = b""
            while b"\n" not in answer and len(answer) < _MAX_ANSWER and (more := await reader.read(_MAX_ANSWER)):
                answer += more
        finally:
            await _hang_up(writer)
        match = _STATUS_LINE.match(answer)
        if match is None:
            return "The readiness probe got an answer that is not HTTP."
        code = int(match.group(1))
        return "" if 200 <= code < 400 else f"The readiness probe got HTTP status {code}."


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close without waiting for what the guest does about it."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()

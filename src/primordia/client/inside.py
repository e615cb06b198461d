"""What a client does inside a context: commands, logs, files, ports. A lifeform's name means its first context.

Streams hold no more in memory than a socket does, and leaving one ends what it stood for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from primordia.client.config import ClientConfig
from primordia.client.streams import ExecResult, ExecSession, ForwardedStream, listen
from primordia.client.transport import Transport
from primordia.wire import streams as frames
from primordia.wire.kinds import path_of
from primordia.wire.resources import Context, Lifeform, Resource

Target = type[Lifeform] | type[Context]


@dataclass(frozen=True)
class Surroundings:
    """What a command runs in; what is left open is as the context's main program has it."""

    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    user: str = ""

    def params(self) -> list[tuple[str, str]]:
        """As the query of an exec."""
        params = [("env", f"{name}={value}") for name, value in self.env.items()]
        params += [("workingDir", self.working_dir)] if self.working_dir else []
        return params + ([("user", self.user)] if self.user else [])


AS_MAIN = Surroundings()


class ContextAccess:
    """The part of the client that reaches into contexts. `container` is a lifeform's context by name."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.namespace = config.namespace
        self.transport = Transport(config)

    async def close(self) -> None:
        """Close every connection."""
        await self.transport.close()

    async def exec(
        self,
        name: str,
        command: Sequence[str],
        *,
        kind: Target = Lifeform,
        namespace: str = "",
        container: str = "",
        stdin: bytes = b"",
        surroundings: Surroundings = AS_MAIN,
    ) -> ExecResult:
        """Run a command in a lifeform's context (`container`; default: the first) and gather what it writes."""
        written: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        options: dict[str, Any] = {"kind": kind, "namespace": namespace, "container": container, "surroundings": surroundings}
        async with self.exec_session(name, command, stdin=bool(stdin), **options) as session:
            feeder = asyncio.create_task(_feed(session, stdin), name="exec/stdin")
            try:
                async for stream, data in session.output():
                    written[stream] += data
                result = await session.result()
            finally:
                feeder.cancel()
                await asyncio.wait([feeder])
        return ExecResult(result.code, bytes(written["stdout"]), bytes(written["stderr"]), result.error)

    @contextlib.asynccontextmanager
    async def exec_session(
        self,
        name: str,
        command: Sequence[str],
        *,
        kind: Target = Lifeform,
        namespace: str = "",
        container: str = "",
        stdin: bool = False,
        tty: bool = False,
        surroundings: Surroundings = AS_MAIN,
    ) -> AsyncIterator[ExecSession]:
        """A command with its streams open. Leaving the context ends it."""
        params = [("command", word) for word in command] + [("stdout", "true"), ("stderr", "true")] + surroundings.params()
        params += [(flag, "true") for flag, on in (("stdin", stdin), ("tty", tty)) if on] + _container(container)
        path = self._path(kind, namespace, name, "exec")
        async with self.transport.websocket(path, params, (frames.V5, frames.V4)) as socket:
            yield ExecSession(socket)

    async def logs(
        self,
        name: str,
        *,
        kind: Target = Lifeform,
        namespace: str = "",
        container: str = "",
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        timestamps: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Output of the context's program as it comes, in pieces of any size. `tail` is the number of last lines."""
        params = {flag: "true" for flag, on in (("follow", follow), ("previous", previous), ("timestamps", timestamps)) if on}
        params |= dict(_container(container)) | ({"tailLines": str(tail)} if tail is not None else {})
        path = self._path(kind, namespace, name, "log")
        async with self.transport.stream("GET", path, params=params, accept="*/*") as content:
            async for chunk in content.iter_any():
                yield chunk

    async def read_tar(
        self, name: str, path: str, *, kind: Target = Lifeform, namespace: str = "", container: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """A tar stream of a file or folder in a context. Its members are the guest's word: unpack with care."""
        params = {"path": path} | dict(_container(container))
        where = self._path(kind, namespace, name, "files")
        async with self.transport.stream("GET", where, params=params, accept="*/*") as content:
            async for chunk in content.iter_any():
                yield chunk

    async def write_tar(
        self,
        name: str,
        path: str,
        chunks: AsyncIterable[bytes] | Iterable[bytes],
        *,
        kind: Target = Lifeform,
        namespace: str = "",
        container: str = "",
    ) -> None:
        """Unpack a tar stream into a folder of a context."""
        params = {"path": path} | dict(_container(container))
        where = self._path(kind, namespace, name, "files")
        async with self.transport.stream("PUT", where, params=params, body=_async(chunks)) as content:
            await content.read()

    @contextlib.asynccontextmanager
    async def connect_port(
        self, name: str, port: int, *, kind: Target = Lifeform, namespace: str = "", container: str = ""
    ) -> AsyncIterator[ForwardedStream]:
        """One connection to a port inside a context."""
        params = [("port", str(port)), *_container(container)]
        path = self._path(kind, namespace, name, "portforward")
        async with self.transport.websocket(path, params, (frames.FORWARD,)) as socket:
            yield ForwardedStream(socket)

    @contextlib.asynccontextmanager
    async def connect_socket(
        self, name: str, path: str, *, kind: Target = Lifeform, namespace: str = "", container: str = ""
    ) -> AsyncIterator[ForwardedStream]:
        """One connection to the Unix socket at an absolute path inside a context."""
        params = [("socket", path), *_container(container)]
        where = self._path(kind, namespace, name, "portforward")
        async with self.transport.websocket(where, params, (frames.FORWARD,)) as socket:
            yield ForwardedStream(socket)

    def port_forward(
        self,
        name: str,
        port: int,
        *,
        kind: Target = Lifeform,
        namespace: str = "",
        container: str = "",
        local_host: str = "127.0.0.1",
        local_port: int = 0,
    ) -> AbstractAsyncContextManager[int]:
        """Listen on a local port (0: any free one; given as the context's value) and carry its connections."""

        def connect() -> AbstractAsyncContextManager[ForwardedStream]:
            return self.connect_port(name, port, kind=kind, namespace=namespace, container=container)

        return listen(connect, local_host, local_port)

    def _path(self, kind: type[Resource], namespace: str = "", name: str = "", sub: str = "", *, every: bool = False) -> str:
        return path_of(kind, "" if every else namespace or self.namespace, name, sub)


def _container(name: str) -> list[tuple[str, str]]:
    return [("container", name)] if name else []


async def _feed(session: ExecSession, stdin: bytes) -> None:
    if stdin:
        await session.write(stdin)
        await session.end_input()


async def _async(chunks: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk

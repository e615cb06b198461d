"""An API server on loopback with real TLS and certificates, over the memory store, and contexts that are local processes.

`LocalContexts` is a small real body of the contexts port: exec starts programs of this machine with real pipes and
terminals, files are those of a folder, ports are this machine's. What it cannot do is be a microVM.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import io
import os
import pty
import signal
import socket
import struct
import tarfile
import termios
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp

from primordia.api.auth import ADMINS, NODES, server_tls
from primordia.api.hosts import Boxes
from primordia.api.main import ApiServer
from primordia.api.services import Limits
from primordia.client import AsyncClient, ClientConfig
from primordia.client.tls import context_of
from primordia.domain.lifeforms import context_object_name
from primordia.drivers.contexts_remote.contexts import Peers
from primordia.drivers.store_memory import MemoryStore
from primordia.kit import pki
from primordia.kit.clock import SystemClock
from primordia.kit.errors import AlreadyExistsError, NotFoundError
from primordia.kit.tasks import TaskSet
from primordia.ports.contexts import Contexts, LogLine
from primordia.ports.forks import Forks
from primordia.ports.guest import ExitStatus, GuestError, Program
from primordia.ports.store import Store
from primordia.registry.informer import Informer
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.testing.boxes import LocalForks, ready_node, ready_template
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextSpec,
    ContextTemplate,
    Lifeform,
    LifeformSpec,
    Node,
    Template,
    TemplateNode,
)

_HOST = "127.0.0.1"


class LocalSession:
    """An exec that is a process of this machine."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int | None) -> None:
        self.process = process
        self._terminal = terminal
        self.closed = asyncio.Event()

    async def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        if self._terminal is not None:
            async for data in self._terminal_output(self._terminal):
                yield "stdout", data
            return
        queue: asyncio.Queue[tuple[Literal["stdout", "stderr"], bytes] | None] = asyncio.Queue(maxsize=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump("stdout", self.process.stdout, queue))
            group.create_task(self._pump("stderr", self.process.stderr, queue))
            for _ in range(2):
                while (item := await queue.get()) is not None:
                    yield item

    async def _pump(
        self,
        name: Literal["stdout", "stderr"],
        reader: asyncio.StreamReader | None,
        queue: asyncio.Queue[tuple[Literal["stdout", "stderr"], bytes] | None],
    ) -> None:
        assert reader is not None
        while data := await reader.read(16384):
            await queue.put((name, data))
        await queue.put(None)

    async def _terminal_output(self, terminal: int) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            loop.add_reader(terminal, readable.set)
            try:
                await readable.wait()
                data = os.read(terminal, 4096)
            except OSError:  # the other side of a terminal is gone
                return
            finally:
                loop.remove_reader(terminal)
            if not data:
                return
            yield data

    async def write(self, data: bytes) -> None:
        if self._terminal is not None:
            os.write(self._terminal, data)
        elif self.process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                self.process.stdin.write(data)
                await self.process.stdin.drain()

    async def end_input(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def resize(self, rows: int, columns: int) -> None:
        if self._terminal is not None:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    async def wait(self) -> ExitStatus:
        code = await self.process.wait()
        return ExitStatus(code) if code >= 0 else ExitStatus(128 - code, -code)

    async def close(self) -> None:
        await self.signal(signal.SIGKILL)
        self.process._transport.close()  # type: ignore[attr-defined]  # wait() alone waits for pipes that nobody reads
        await self.process.wait()
        if not self.closed.is_set() and self._terminal is not None:
            os.close(self._terminal)
        self.closed.set()


class _NotStarted:
    """An exec that could not be started, as the agent tells it."""

    def __init__(self, error: str) -> None:
        self._error = error

    async def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        for _ in ():
            yield "stdout", b""

    async def write(self, data: bytes) -> None: ...
    async def end_input(self) -> None: ...
    async def resize(self, rows: int, columns: int) -> None: ...
    async def signal(self, number: int) -> None: ...
    async def wait(self) -> ExitStatus:
        return ExitStatus(127, error=self._error)

    async def close(self) -> None: ...


class LocalStream:
    """A TCP connection of this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int = 65536) -> bytes:
        return await self._reader.read(limit)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()


class LocalContexts:
    """The contexts port on this machine. `uids` are the contexts that exist, `lines` their logs, `root` their files.

    They take `slow_s` before they send a file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uids: set[str] = set()
        self.lines: list[LogLine] = []
        self.more = asyncio.Event()
        self.slow_s = 0.0
        self.sessions: list[LocalSession] = []

    async def exec(self, uid: str, program: Program, *, stdin: bool) -> LocalSession | _NotStarted:
        self._check(uid)
        slave: int | None = None
        terminal: int | None = None
        if program.tty:
            terminal, slave = pty.openpty()
        pipe = slave if slave is not None else asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *program.argv,
                stdin=pipe if stdin or program.tty else asyncio.subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
                env={**os.environ, **dict(program.env)},
                cwd=program.working_dir or None,
            )
        except OSError as error:
            if terminal is not None:
                os.close(terminal)
            return _NotStarted(f"{program.argv[0]} cannot be started: {error.strerror}.")
        finally:
            if slave is not None:
                os.close(slave)
        session = LocalSession(process, terminal)
        self.sessions.append(session)
        return session

    async def logs(self, uid: str, *, follow: bool, tail: int | None, previous: bool = False) -> AsyncIterator[LogLine]:
        self._check(uid)
        if previous:
            raise NotFoundError("There is no run before this one.")
        place = max(0, len(self.lines) - tail) if tail is not None else 0
        while True:
            while place < len(self.lines):
                yield self.lines[place]
                place += 1
            if not follow:
                return
            self.more.clear()
            await self.more.wait()

    async def read_tar(self, uid: str, path: str) -> AsyncIterator[bytes]:
        self._check(uid)
        await asyncio.sleep(self.slow_s)
        place = self.root / path.lstrip("/")
        if not place.exists():
            raise GuestError(f"{path} does not exist.", reason="ENOENT")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w|") as tar:
            tar.add(place, arcname=place.name)
        content = buffer.getvalue()
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    async def write_tar(self, uid: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        self._check(uid)
        folder = self.root / path.lstrip("/")
        if not folder.is_dir():
            raise GuestError(f"{path} is no folder.", reason="ENOTDIR")
        content = b"".join([chunk async for chunk in chunks])
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                _extract(tar, folder)
        except tarfile.TarError as error:
            raise GuestError(f"The stream is no tar ({error}).", reason="EINVAL") from error

    async def connect_tcp(self, uid: str, port: int) -> LocalStream:
        self._check(uid)
        try:
            return LocalStream(*await asyncio.open_connection(_HOST, port))
        except ConnectionRefusedError as error:
            raise GuestError(f"Nothing listens on port {port} of the context.", reason="ECONNREFUSED") from error

    async def connect_unix(self, uid: str, path: str) -> LocalStream:
        self._check(uid)
        try:
            return LocalStream(*await asyncio.open_unix_connection(str(self.root / path.lstrip("/"))))
        except OSError as error:
            raise GuestError(f"{path} does not answer in the context.", reason=errno.errorcode[error.errno or 0]) from error

    def _check(self, uid: str) -> None:
        if uid not in self.uids:
            raise NotFoundError(f"This node does not run the context {uid}.")


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
    else:  # Debian 12's Python has no filters
        tar.extractall(folder)


@dataclass
class TestApi:
    """A running API and what is behind it. `admin`, `node` and `nobody` are configs; the last one's role is unknown."""

    __test__ = False

    server: ApiServer
    store: Store
    registry: Registry
    lifeforms: Informer[Lifeform]
    contexts: LocalContexts
    admin: ClientConfig
    node: ClientConfig
    nobody: ClientConfig
    anonymous: ClientConfig
    url: str
    ca: pki.KeyPair
    forks: LocalForks
    informers: Informers
    entry: ApiServer
    """The server that clients ask: `server`, or with a relay another node's, which passes streams on to it."""

    async def lifeform(self, name: str = "shop", namespace: str = "default") -> Context:
        """Store a lifeform with one running context, and give the context."""
        template = ContextTemplate(name="main", image="busybox")
        await self.registry.create(
            Lifeform(metadata=ObjectMeta(name=name, namespace=namespace), spec=LifeformSpec(contexts=(template,)))
        )
        context = await self.registry.create(
            Context(
                metadata=ObjectMeta(name=context_object_name(name, "main"), namespace=namespace),
                spec=ContextSpec(lifeform=name, lifeform_uid="u", node="n1", epoch=1, template=template),
            )
        )
        self.contexts.uids.add(context.metadata.uid)
        return context

    async def template(self, name: str = "py", image: str = "busybox") -> Template:
        """Store a template that is ready on this node, which takes boxes."""
        with contextlib.suppress(AlreadyExistsError):
            await self.registry.create(ready_node("n1"))
        template = await self.registry.create(ready_template(name, TemplateNode(node="n1", digest="d"), image=image))
        await self.informers.refresh(Node, Template)
        return template


@contextlib.asynccontextmanager
async def running_api(
    folder: Path,
    store: Store | None = None,
    limits: Limits | None = None,
    authority: pki.KeyPair | None = None,
    *,
    relayed: bool = False,
) -> AsyncIterator[TestApi]:
    """An API server on a free port of loopback, until the end of the block. A store that is given is not closed.

    `relayed`: clients are given another node's server, which has no contexts of its own and relays to the first.
    """
    clock = SystemClock()
    backing = store or MemoryStore(clock)
    registry = Registry(backing, clock)
    informers = Informers(registry)
    lifeforms, nodes, templates = informers.of(Lifeform), informers.of(Node), informers.of(Template)
    ca = authority or pki.make_ca("primordia test")
    contexts = LocalContexts(folder / "root")
    (folder / "root").mkdir(exist_ok=True)
    tasks = TaskSet("test-api")
    tasks.start(informers.run(), name="informers")
    await informers.synced()
    forks = LocalForks(registry, clock, "n1", contexts.uids)
    async with contextlib.AsyncExitStack() as stack:
        if store is None:
            stack.push_async_callback(backing.close)
        stack.push_async_callback(tasks.close)

        async def serve(
            name: str, own: LocalContexts, on_node: Callable[[str], Contexts] | None, forks_of: Callable[[str], Forks]
        ) -> tuple[ApiServer, int]:
            listener = socket.create_server((_HOST, 0))
            tls = server_tls(*_credentials(folder, ca, name))
            boxes = Boxes(forks, forks_of, nodes, templates)
            server = ApiServer(registry, own, lifeforms, tls, limits=limits, on_node=on_node, boxes=boxes)
            await server.start([listener])
            stack.push_async_callback(server.stop)
            return server, listener.getsockname()[1]

        server, port = entry, entry_port = await serve("n1", contexts, None, lambda node: forks)
        if relayed:
            peers = Peers(pki.client_context(*_credentials(folder, ca, "n2")), port, clock)
            stack.push_async_callback(peers.close)
            nothing = LocalContexts(folder / "root")
            entry, entry_port = await serve(
                "n2", nothing, lambda node: peers.contexts(node, _HOST), lambda node: peers.forks(node, _HOST)
            )
        url = f"https://{_HOST}:{entry_port}"
        admin, node, nobody = (
            _config(url, ca, name, role) for name, role in (("admin", ADMINS), ("n1", NODES), ("eve", "others"))
        )
        anonymous = ClientConfig(servers=(url,), ca=admin.ca)
        yield TestApi(
            server, backing, registry, lifeforms, contexts, admin, node, nobody, anonymous, url, ca, forks, informers, entry
        )
        for session in contexts.sessions:
            stack.push_async_callback(session.close)


def _credentials(folder: Path, ca: pki.KeyPair, name: str) -> tuple[Path, Path, Path]:
    """A node's files: the authority's certificate, its own, and its key."""
    paths = folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(ca.certificate)
    pki.issue(ca, name, NODES, san_ip=[_HOST], server=True).write(paths[1], paths[2])
    return paths


@contextlib.asynccontextmanager
async def connected(config: ClientConfig) -> AsyncIterator[AsyncClient]:
    """A client that is closed at the end."""
    async with AsyncClient(config) as client:
        yield client


def _config(url: str, ca: pki.KeyPair, name: str, role: str) -> ClientConfig:
    pair = pki.issue(ca, name, role)
    return ClientConfig.of_pem((url,), ca=ca.certificate, cert=pair.certificate, key=pair.key)


@contextlib.asynccontextmanager
async def raw_session(config: ClientConfig) -> AsyncIterator[aiohttp.ClientSession]:
    """Plain HTTP with a config's certificate, for requests that no client of ours would send."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context_of(config))) as session:
        yield session

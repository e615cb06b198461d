"""The guest port in memory: an agent without a machine, for tests of what stands above it.

`FakeAgent` is the guest (one for each machine: it keeps files, the main program and its log across connections) and
`connect` gives what a host would have. Programs are small coroutines in a table that a test may extend; files are a table
too, carried as real tar streams. Thousands of them are cheap: nothing runs until asked.
"""

from __future__ import annotations

import asyncio
import io
import signal
import tarfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from primordia.drivers.guest_fake_programs import PROGRAMS, FakeProcess, FakeProgram, MemoryStream, stream_pair
from primordia.kit.tasks import TaskSet
from primordia.ports.guest import (
    CONFIRMED,
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

__all__ = ["PROGRAMS", "FakeAgent", "FakeGuest", "FakeProcess", "FakeProgram", "MemoryStream", "stream_pair"]

RING_BYTES = 256 * 1024

T = TypeVar("T")


class FakeAgent:
    """A guest's inside. Tests reach its fields; `connect` is the host's side."""

    def __init__(self, programs: Mapping[str, FakeProgram] = PROGRAMS) -> None:
        self.programs = dict(programs)
        self.boot_id = uuid.uuid4().hex
        self.prepared = False
        self.config: GuestIdentity | None = None
        self.secrets: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = {"/", "/tmp", "/data"}
        self.listeners: dict[int | str, Callable[[ByteStream], Awaitable[None]]] = {}
        self.main: FakeProcess | None = None
        self.log = bytearray()
        self.log_start = 0
        self.syncs = 0
        self.growths = 0
        self.rehearsals = 0
        self.data_still: asyncio.TimerHandle | None = None
        self.shutting_down = False
        self.tasks = TaskSet("guest-fake")
        self.connection: FakeGuest | None = None
        self._log_changed = asyncio.Event()
        self._thawed = asyncio.Event()
        self._thawed.set()

    @property
    def frozen(self) -> bool:
        """Whether its programs stand."""
        return not self._thawed.is_set()

    async def running(self) -> None:
        """Wait while the programs are frozen."""
        await self._thawed.wait()

    def freeze(self) -> None:
        """Let no program write until `thaw`."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Let them go on."""
        self._thawed.set()

    def still_data(self, deadline_s: float) -> None:
        """Still the data, which goes on by itself at the deadline."""
        self.thaw_data()
        self.data_still = asyncio.get_running_loop().call_later(deadline_s, self.thaw_data)

    def thaw_data(self) -> None:
        """Let the data go on."""
        if self.data_still is not None:
            self.data_still.cancel()
        self.data_still = None

    def identify(self, identity: GuestIdentity) -> None:
        """Become somebody else, all but the hooks."""
        if not identity.inherit_secrets:
            for path in self.secrets:
                self.files.pop(path, None)
            self.secrets.clear()
        self.secrets |= {secret.path for secret in identity.secrets}
        self.files |= {secret.path: secret.content for secret in identity.secrets}
        self.files |= {
            "/etc/hostname": identity.hostname.encode() + b"\n",
            "/etc/machine-id": identity.machine_id.encode() + b"\n",
        }
        self.write_hosts(identity.hosts)
        self.prepared = True
        self.boot_id = uuid.uuid4().hex
        self.files["/proc/sys/kernel/random/boot_id"] = str(uuid.UUID(self.boot_id)).encode() + b"\n"
        if not identity.rehearsal:
            self.config = identity
            self.thaw()

    def write_hosts(self, hosts: Mapping[str, str]) -> None:
        """Replace /etc/hosts."""
        lines = ["127.0.0.1\tlocalhost", *(f"{address}\t{name}" for name, address in sorted(hosts.items()))]
        self.files["/etc/hosts"] = "\n".join([*lines, ""]).encode()

    async def connect(self) -> FakeGuest:
        """A new connection; an earlier one is gone."""
        if self.connection is not None:
            await self.connection.close()
        self.connection = FakeGuest(self)
        return self.connection

    async def close(self) -> None:
        """The machine is gone."""
        self.thaw_data()
        if self.connection is not None:
            await self.connection.close()
        await self.tasks.close()

    def start(self, program: Program, *, stdin: bool) -> FakeProcess:
        """Start a program of the table. Raises GuestError ENOENT."""
        body = self.programs.get(PurePosixPath(program.argv[0]).name) if program.argv else None
        if body is None:
            raise GuestError(f"The guest refused: cannot start {program.argv[:1]}: No such file.", reason="ENOENT")
        process = FakeProcess(self, program, stdin=stdin)
        process.task = self.tasks.start(process.run(body), name=program.argv[0])
        return process

    def write_log(self, data: bytes) -> None:
        """Output of the main program."""
        self.log += data
        surplus = max(0, len(self.log) - RING_BYTES)
        self.log_start += surplus
        del self.log[:surplus]
        self._log_changed.set()
        self._log_changed = asyncio.Event()

    async def log_change(self) -> None:
        """Wait until the log grows or the main program ends."""
        await self._log_changed.wait()

    def start_main(self, program: Program) -> None:
        """Start the main program; its output goes to the log."""
        if self.main is not None:
            raise GuestError("The guest refused: the main program was started before.", reason="EALREADY")
        main = self.start(program, stdin=False)
        main.on_output = self.write_log
        main.exit.add_done_callback(lambda _: self.write_log(b""))
        self.main = main

    def open_stream(self, kind: str) -> MemoryStream:
        """A stream that the guest opens to the host. Raises ConnectionRefusedError when nobody serves it."""
        handler = self.connection.handlers.get(kind) if self.connection is not None else None
        if handler is None:
            raise ConnectionRefusedError(kind)
        ours, theirs = stream_pair()
        self.tasks.start(_serve(handler, theirs), name=kind)
        return ours


async def _serve(handler: Callable[[ByteStream], Awaitable[None]], stream: MemoryStream) -> None:
    try:
        await handler(stream)
    finally:
        await stream.close()


class FakeGuest:
    """ports.guest.Guest on a FakeAgent."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.handlers: dict[str, InboundHandler] = {}
        self._processes: list[FakeProcess] = []
        self._gone = asyncio.Event()

    @property
    def agent_boot_id(self) -> str:
        return self.agent.boot_id

    def _check(self, *, configured: bool = True, frozen: bool = False) -> None:
        """Raises what the agent would answer: `frozen` says that the call is served while the programs stand."""
        if self._gone.is_set():
            raise GuestGoneError("The channel to the guest's agent was closed.")
        if configured and self.agent.config is None:
            raise GuestError("The guest refused: it has no identity yet.", reason="EAGAIN")
        if configured and not frozen and self.agent.frozen:
            raise GuestError("The guest refused: it is frozen.", reason="EAGAIN")

    def _check_prepared(self) -> None:
        self._check(configured=False)
        if not self.agent.prepared:
            raise GuestError("The guest refused: it is not prepared yet.", reason="EAGAIN")

    def _check_unnamed(self) -> None:
        self._check(configured=False)
        if self.agent.config is not None:
            raise GuestError("The guest refused: it was configured before.", reason="EALREADY")

    async def prepare(self, root: str, scratch: str) -> None:
        self._check_unnamed()
        self.agent.prepared = True

    async def identify(self, identity: GuestIdentity) -> tuple[str, ...]:
        self._check_prepared()
        self.agent.identify(identity)
        mounts = ("mounts",) if identity.mounts else ()
        if identity.rehearsal:
            return (*CONFIRMED[:-2], *mounts)
        await self._run_hooks(identity)
        return (*CONFIRMED[:-2], *mounts, *CONFIRMED[-2:])

    async def rehearse(self) -> None:
        self._check_prepared()
        self.agent.rehearsals += 1

    async def _run_hooks(self, identity: GuestIdentity) -> None:
        for hook in identity.hooks:
            code = (await self.agent.start(hook, stdin=False).wait()).code
            if code:
                raise GuestError(
                    f"The guest refused: identify: hook {hook.argv[0]} ended with code {code}.", reason="ECANCELED"
                )

    async def configure(self, config: GuestConfig) -> None:
        self._check_unnamed()
        self.agent.identify(config)
        await self._run_hooks(config)

    async def freeze(self) -> None:
        self._check_prepared()
        self.agent.freeze()

    async def thaw(self) -> None:
        self._check_prepared()
        self.agent.thaw()

    async def start_main(self, program: Program) -> None:
        self._check()
        self.agent.start_main(program)

    async def main_state(self) -> MainState:
        self._check(configured=False)
        main = self.agent.main
        if main is None:
            return MainState("none")
        return MainState("ended", status=main.exit.result()) if main.exit.done() else MainState("running", pid=2)

    async def wait_main(self) -> ExitStatus:
        self._check(configured=False)
        while self.agent.main is None:
            await self._or_gone(self.agent.log_change())
        return await self._or_gone(self.agent.main.wait())

    async def signal_main(self, number: int) -> None:
        self._check()
        if self.agent.main is None or self.agent.main.exit.done():
            raise GuestError("The guest refused: cannot signal the main program: No such process.", reason="ESRCH")
        await self.agent.main.signal(number)

    async def logs(self, offset: int) -> AsyncIterator[LogChunk]:
        self._check(configured=False)
        at = min(offset, self.agent.log_start + len(self.agent.log))
        while True:
            agent = self.agent
            lost = max(0, agent.log_start - at)
            data = bytes(agent.log[max(0, at - agent.log_start) :])
            if data:
                at += lost
                yield LogChunk(at, data, lost)
                at += len(data)
            elif agent.main is not None and agent.main.exit.done():
                return
            else:
                await self._or_gone(agent.log_change())

    async def exec(self, program: Program, *, stdin: bool) -> ExecSession:
        self._check()
        process = self.agent.start(program, stdin=stdin)
        self._processes.append(process)
        process.exit.add_done_callback(lambda _: self._processes.remove(process))
        return process

    async def read_tar(self, path: str) -> AsyncIterator[bytes]:
        self._check()
        below = path.rstrip("/") + "/"
        found = {name: data for name, data in self.agent.files.items() if name == path or name.startswith(below)}
        if not found and path not in self.agent.folders:
            raise GuestError(f"The guest refused: cannot start {path}: No such file or directory.", reason="ENOENT")
        buffer = io.BytesIO()
        base = PurePosixPath(path)
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            if path in self.agent.folders:
                folder = tarfile.TarInfo(base.name or ".")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
            for name, data in sorted(found.items()):
                entry = tarfile.TarInfo(str(PurePosixPath(base.name or ".") / PurePosixPath(name).relative_to(base)))
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        yield buffer.getvalue()

    async def write_tar(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        self._check()
        if path not in self.agent.folders:
            raise GuestError(f"The guest refused: cannot start {path}: No such file or directory.", reason="ENOENT")
        buffer = io.BytesIO(b"".join([chunk async for chunk in chunks]))
        try:
            with tarfile.open(fileobj=buffer) as archive:
                for entry in archive:
                    self._unpack(path, entry, archive)
        except tarfile.TarError as error:
            raise GuestError("The guest refused: this is no tar stream, or it is damaged.", reason="EINVAL") from error

    def _unpack(self, path: str, entry: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name = PurePosixPath(entry.name)
        if name.is_absolute() or ".." in name.parts:
            raise GuestError(f"The guest refused: {entry.name} leads out of the folder.", reason="EPERM")
        place = str(PurePosixPath(path) / name)
        if entry.isdir():
            self.agent.folders.add(place)
        elif (content := archive.extractfile(entry)) is not None:
            self.agent.files[place] = content.read()

    async def connect_tcp(self, port: int, host: str = "127.0.0.1") -> ByteStream:
        self._check()
        handler = self.agent.listeners.get(port)
        if handler is None:
            raise GuestError(f"The guest refused: cannot connect to {host}: Connection refused.", reason="ECONNREFUSED")
        ours, theirs = stream_pair()
        self.agent.tasks.start(_serve(handler, theirs), name=f"tcp-{port}")
        return ours

    async def connect_unix(self, path: str) -> ByteStream:
        self._check()
        handler = self.agent.listeners.get(path)
        if handler is None:
            raise GuestError(f"The guest refused: cannot connect to {path}: No such file or directory.", reason="ENOENT")
        ours, theirs = stream_pair()
        self.agent.tasks.start(_serve(handler, theirs), name=path)
        return ours

    async def set_hosts(self, hosts: dict[str, str]) -> None:
        self._check(frozen=True)
        self.agent.write_hosts(hosts)

    async def sync(self) -> None:
        self._check()
        self.agent.syncs += 1

    async def grow_data(self) -> None:
        self._check()
        self.agent.growths += 1

    async def freeze_data(self, deadline_s: float) -> None:
        self._check()
        self.agent.still_data(deadline_s)

    async def thaw_data(self) -> None:
        self._check()
        self.agent.thaw_data()

    async def ping(self) -> float:
        self._check(configured=False)
        begin = time.perf_counter()
        await asyncio.sleep(0)
        return time.perf_counter() - begin

    async def shutdown(self, grace_s: float) -> None:
        self._check(configured=False)
        self.agent.shutting_down = True
        if self.agent.main is not None:
            await self.agent.main.signal(signal.SIGTERM)

    def on_stream(self, kind: str, handler: InboundHandler) -> None:
        self.handlers[kind] = handler

    async def closed(self) -> None:
        await self._gone.wait()

    async def close(self) -> None:
        self._gone.set()
        for process in list(self._processes):
            await process.close()

    async def _or_gone(self, awaitable: Coroutine[Any, Any, T]) -> T:
        """The result, or GuestGoneError when the connection goes first."""
        wanted, gone = asyncio.ensure_future(awaitable), asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
            self._check(configured=False)
            return await wanted
        finally:
            for task in (wanted, gone):
                task.cancel()

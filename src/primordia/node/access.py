"""The contexts port: what the API asks of the contexts that run here."""

from __future__ import annotations

from collections.abc import AsyncIterator

from primordia.kit.clock import Clock
from primordia.kit.deadline import within
from primordia.kit.errors import NotFoundError
from primordia.node.fleet import Fleet
from primordia.node.live import Live
from primordia.node.settings import NodeSettings
from primordia.ports.contexts import LogLine
from primordia.ports.guest import ByteStream, ExecSession, Guest, GuestGoneError, Program


class Access:
    """Contexts of this node, by uid."""

    def __init__(self, fleet: Fleet, settings: NodeSettings, clock: Clock, node: str) -> None:
        self._fleet = fleet
        self._settings = settings
        self._clock = clock
        self._node = node

    async def exec(self, uid: str, program: Program, *, stdin: bool) -> ExecSession:
        """Run a process in the context, with the environment, folder and user of its main program where none is given.

        Raises NotFoundError, GuestGoneError, GuestError.
        """
        live = self._live(uid)
        guest = self._guest(live)
        whole = completed(program, live.program)
        try:
            return await within(self._clock, self._settings.call_deadline_s, guest.exec(whole, stdin=stdin))
        except TimeoutError as error:
            raise _silent(live) from error

    def logs(self, uid: str, *, follow: bool, tail: int | None, previous: bool = False) -> AsyncIterator[LogLine]:
        """The main program's output."""
        return self._live(uid).log.read(follow=follow, tail=tail, previous=previous)

    def read_tar(self, uid: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a path in the context."""
        return self._guest(self._live(uid)).read_tar(path)

    async def write_tar(self, uid: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into a folder of the context."""
        await self._guest(self._live(uid)).write_tar(path, chunks)

    async def connect_tcp(self, uid: str, port: int) -> ByteStream:
        """A connection to a port inside the context."""
        live = self._live(uid)
        try:
            return await within(self._clock, self._settings.call_deadline_s, self._guest(live).connect_tcp(port))
        except TimeoutError as error:
            raise _silent(live) from error

    async def connect_unix(self, uid: str, path: str) -> ByteStream:
        """A connection to a Unix socket inside the context."""
        live = self._live(uid)
        try:
            return await within(self._clock, self._settings.call_deadline_s, self._guest(live).connect_unix(path))
        except TimeoutError as error:
            raise _silent(live) from error

    def _live(self, uid: str) -> Live:
        live = self._fleet.get(uid)
        if live is None:
            raise NotFoundError(f"Node {self._node} runs no context with uid {uid[:64]}.")
        return live

    def _guest(self, live: Live) -> Guest:
        """The link to a guest whose program runs or has run. Raises GuestGoneError saying what is the matter."""
        if live.guest is not None and (live.main in ("running", "ended") or (live.is_fork and live.main == "none")):
            return live.guest
        if live.machine is None:
            raise GuestGoneError(
                f"Context {live.title} is not running: it is {live.phase}.",
                remedy="See `primordia describe` for why.",
                reason="NotRunning",
            )
        raise _silent(live)


def completed(program: Program, main: Program) -> Program:
    """The asked program with what it leaves open filled in from the main one; its own variables go before."""
    return Program(
        argv=program.argv,
        env=tuple({**dict(main.env), **dict(program.env)}.items()),
        working_dir=program.working_dir or main.working_dir,
        user=program.user or main.user,
        tty=program.tty,
        rows=program.rows,
        columns=program.columns,
    )


def _silent(live: Live) -> GuestGoneError:
    return GuestGoneError(f"The guest of context {live.title} does not answer now.", remedy="Try again in a moment.")

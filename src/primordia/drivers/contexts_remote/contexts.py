"""The contexts of another node: its own body of the contexts port, spoken to over its API's paths for nodes.

Nothing is buffered beyond what the sockets hold: who does not read holds up the sender on the other node, and who writes
waits for room there. Leaving a stream ends what it stood for.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import aiohttp

from primordia.drivers.contexts_remote.forks import RemoteForks
from primordia.drivers.contexts_remote.lines import Lines
from primordia.drivers.contexts_remote.peer import Params, Peer, new_session
from primordia.drivers.contexts_remote.streams import RemoteSession, RemoteStream
from primordia.drivers.contexts_remote.volumes import RemoteVolumes
from primordia.kit.clock import Clock
from primordia.kit.tasks import TaskSet
from primordia.ports.contexts import LogLine
from primordia.ports.guest import Program
from primordia.wire.streams import FORWARD, V5


class Peers:
    """The other nodes, each by name and address. Use it in one event loop, and close it there."""

    def __init__(self, tls: ssl.SSLContext, port: int, clock: Clock) -> None:
        """`tls` trusts the soup's authority and shows our node's certificate; `port` is every node's API's."""
        self._tls = tls
        self._port = port
        self._clock = clock
        self._tasks = TaskSet("peers")
        self._session: aiohttp.ClientSession | None = None
        self._kept: aiohttp.ClientSession | None = None
        self._known: dict[tuple[str, str], Peer] = {}

    def contexts(self, node: str, address: str) -> RemoteContexts:
        """The contexts of the node at that address."""
        return RemoteContexts(self._peer(node, address))

    def forks(self, node: str, address: str) -> RemoteForks:
        """The claims and forks of the node at that address."""
        return RemoteForks(self._peer(node, address))

    def volumes(self, node: str, address: str) -> RemoteVolumes:
        """The volumes of the node at that address."""
        return RemoteVolumes(self._peer(node, address))

    def _peer(self, node: str, address: str) -> Peer:
        if self._session is None or self._kept is None:
            self._session, self._kept = new_session(self._tls), new_session(self._tls, kept=True)
        known = self._known.get((node, address))
        if known is None:
            place = f"{address}:{self._port}"
            known = Peer(self._session, node, place, self._clock, self._tasks, self._kept)
            self._known[node, address] = known
        return known

    async def close(self) -> None:
        """Close every connection."""
        await self._tasks.close()
        self._known.clear()
        sessions, self._session, self._kept = (self._session, self._kept), None, None
        for session in sessions:
            if session is not None:
                await session.close()


class RemoteContexts:
    """The contexts port's body for one other node.

    Beside what the node itself raises, every method raises NodeUnreachableError when it does not answer.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def exec(self, uid: str, program: Program, *, stdin: bool) -> RemoteSession:
        """Run a process in the context."""
        params = [*_words_of(program), ("stdin", _flag(stdin))]
        websocket = await self._peer.websocket(uid, "exec", params, V5)
        return RemoteSession(self._peer, websocket)

    async def logs(self, uid: str, *, follow: bool, tail: int | None, previous: bool = False) -> AsyncIterator[LogLine]:
        """The main program's output."""
        params = [("follow", _flag(follow)), ("previous", _flag(previous)), ("timestamps", "true")]
        params += [("tailLines", str(tail))] if tail is not None else []
        lines = Lines()
        async with self._peer.download(uid, "log", params) as pieces:
            async for piece in pieces:
                for line in lines.feed(piece):
                    yield line

    async def read_tar(self, uid: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a path in the context."""
        async with self._peer.download(uid, "files", [("path", path)]) as pieces:
            async for piece in pieces:
                yield piece

    async def write_tar(self, uid: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into a folder of the context."""
        await self._peer.upload(uid, "files", [("path", path)], chunks)

    async def connect_tcp(self, uid: str, port: int) -> RemoteStream:
        """A connection to a port inside the context."""
        websocket = await self._peer.websocket(uid, "portforward", [("port", str(port))], FORWARD)
        return RemoteStream(self._peer, websocket)

    async def connect_unix(self, uid: str, path: str) -> RemoteStream:
        """A connection to a Unix socket inside the context."""
        websocket = await self._peer.websocket(uid, "portforward", [("socket", path)], FORWARD)
        return RemoteStream(self._peer, websocket)


def _words_of(program: Program) -> Params:
    """A program as the query of an exec between nodes."""
    params = [("command", word) for word in program.argv]
    params += [("env", f"{name}={value}") for name, value in program.env]
    params += [("tty", _flag(program.tty)), ("rows", str(program.rows)), ("columns", str(program.columns))]
    params += [("workingDir", program.working_dir)] if program.working_dir else []
    return params + ([("user", program.user)] if program.user else [])


def _flag(on: bool) -> str:
    return "true" if on else "false"

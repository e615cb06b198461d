"""Published ports: listeners in the host's namespace, and what carries their connections to a context.

A connection is accepted by us and carried on to the context as a second one, made by the node. So nothing of the host's
packet filter is touched, and the host reaches a context without being in the soup's network. The context sees the node's
address as its client.

Each direction is one loop that reads only after its last piece was taken: the slower side holds the faster one back, and
an idle connection keeps no buffer. What is accepted is bounded; more clients wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import struct
from collections.abc import Iterable, Sequence

from primordia.drivers.net_linux.listeners import describe_bind_failure
from primordia.kit import netns
from primordia.kit.tasks import TaskSet
from primordia.ports.network import Publication, PublicationFault

MOST_CONNECTIONS_OF_A_PORT = 256
MOST_CONNECTIONS = 1024
_CONNECT_TRIES_S = (0.1, 0.2, 0.4, 0.8, 3.5)
"""What comes to a context before its guest has its address is lost, and a kernel asks again only after a second: that is long
beside a start. So it is asked anew soon; by a guest that is slow and not absent, the last of them is answered."""
_PIECE_BYTES = 1 << 16
_QUEUE = 256
_ACCEPT_PAUSE_S = 0.2
_ABORT = struct.pack("=ii", 1, 0)

log = logging.getLogger(__name__)


class Publisher:
    """Owns the listeners of one address."""

    def __init__(self, address: str, netns_fd: int | None) -> None:
        """`netns_fd` is the namespace to listen in; None is the process's own."""
        self._address = address
        self._netns_fd = netns_fd
        self._ports: dict[int, PublishedPort] = {}
        self._slots = asyncio.Semaphore(MOST_CONNECTIONS)

    async def apply(self, publications: Iterable[Publication]) -> tuple[PublicationFault, ...]:
        """Make the listeners equal to `publications`. A port that leads elsewhere now, or nowhere, loses its connections."""
        wanted = {publication.port: publication for publication in publications}
        for number in [number for number in self._ports if number not in wanted]:
            await self._ports.pop(number).close()
        faults = []
        for number, publication in wanted.items():
            port = self._ports.get(number)
            if port is not None:
                await port.lead_to(publication)
                continue
            try:
                listener = self._listen(number)
            except OSError as error:
                faults.append(PublicationFault(publication, self._explain(number, error)))
                continue
            self._ports[number] = PublishedPort(listener, publication, self._slots)
        return tuple(faults)

    async def close(self) -> None:
        """Close every listener and connection."""
        ports, self._ports = list(self._ports.values()), {}
        for port in ports:
            await port.close()

    def _listen(self, number: int) -> socket.socket:
        def listen() -> socket.socket:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self._address, number))
                listener.listen(_QUEUE)
            except BaseException:
                listener.close()
                raise
            return listener

        return listen() if self._netns_fd is None else netns.call_in(self._netns_fd, listen)

    def _explain(self, number: int, error: OSError) -> str:
        if self._netns_fd is None:
            return describe_bind_failure(self._address, number, error)
        return netns.call_in(self._netns_fd, lambda: describe_bind_failure(self._address, number, error))


class PublishedPort:
    """One listener and the connections that came by it."""

    def __init__(self, listener: socket.socket, publication: Publication, slots: asyncio.Semaphore) -> None:
        self._listener = listener
        self._publication = publication
        self._slots = slots
        self._begin()

    async def lead_to(self, publication: Publication) -> None:
        """Lead there from now on; connections to an earlier target are closed, waiting clients get the new one."""
        if publication != self._publication:
            await self._tasks.close()
            self._publication = publication
            self._begin()

    async def close(self) -> None:
        """Close the listener and its connections."""
        await self._tasks.close()
        self._listener.close()

    def _begin(self) -> None:
        self._tasks = TaskSet(f"publish/{self._publication.port}")
        self._tasks.start(self._accept(), name="accept")

    async def _accept(self) -> None:
        own_slots = asyncio.Semaphore(MOST_CONNECTIONS_OF_A_PORT)
        while True:
            await own_slots.acquire()
            await self._slots.acquire()
            try:
                client = await self._next_client()
            except BaseException:
                self._slots.release()
                raise
            task = self._tasks.start(self._carry(client), name="connection")
            task.add_done_callback(functools.partial(self._ended, client, own_slots))

    async def _next_client(self) -> socket.socket:
        while True:
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as error:  # a client that left again, or no descriptor free just now
                log.warning("port %d cannot accept: %s", self._publication.port, error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
            else:
                return client

    def _ended(self, client: socket.socket, own_slots: asyncio.Semaphore, _task: asyncio.Task[None]) -> None:
        """Also after a task that was cancelled before it began, which a `finally` in it would not see."""
        client.close()
        own_slots.release()
        self._slots.release()

    async def _carry(self, client: socket.socket) -> None:
        whole = False
        with client:
            try:
                _prepare(client)
                with await connect((self._publication.address, self._publication.target_port)) as target:
                    try:
                        await _carry_both(client, target)
                        whole = True
                    finally:
                        if not whole:
                            _abort(target)
            except* (OSError, TimeoutError) as errors:
                log.debug("a connection of port %d ended: %s", self._publication.port, errors.exceptions[0])
            finally:
                if not whole:
                    # Neither side may take a cut connection for an orderly end.
                    _abort(client)


async def connect(place: tuple[str, int], tries_s: Sequence[float] = _CONNECT_TRIES_S) -> socket.socket:
    """A connection to the place, asked for again where nothing at all comes back. Raises OSError, TimeoutError."""
    for patience_s in tries_s:
        target = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _prepare(target)
            async with asyncio.timeout(patience_s):
                await asyncio.get_running_loop().sock_connect(target, place)
        except TimeoutError:
            target.close()
        except BaseException:
            target.close()
            raise
        else:
            return target
    raise TimeoutError(f"{place[0]} does not answer within {sum(tries_s):g} s")


async def _carry_both(client: socket.socket, target: socket.socket) -> None:
    async with asyncio.TaskGroup() as both:
        both.create_task(_copy(client, target), name="to the context")
        both.create_task(_copy(target, client), name="from the context")


async def _copy(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes until the source ends, then end the target's input: a half-closed connection stays one."""
    loop = asyncio.get_running_loop()
    while piece := await loop.sock_recv(source, _PIECE_BYTES):
        await loop.sock_sendall(target, piece)
    target.shutdown(socket.SHUT_WR)


def _prepare(connection: socket.socket) -> None:
    """No delays, and a peer that vanished without a word is noticed within a minute or so."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)


def _abort(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)

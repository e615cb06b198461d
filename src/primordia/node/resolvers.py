"""Asking the host's resolvers on behalf of a guest.

From the host's namespace, for its resolver often listens on the host's loopback. The guest's message is not passed on:
only its question goes, in a message of our own with an identifier and a source port of our own, and only an answer to that
question comes back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.rrset

from primordia.kit import netns
from primordia.kit.errors import TemporaryError

RESOLV_CONF = Path("/etc/resolv.conf")
TRY_S = 2.0
MOST_AT_ONCE = 128
_MOST_RESOLVERS = 3
_PORT = 53
_PAYLOAD = 1232  # DNS flag day 2020: passes any link unfragmented
_LARGEST = 65535

Place = tuple[str, int]


class ResolversSilentError(TemporaryError):
    """None of the host's resolvers answered in time."""

    reason = "ResolversSilent"


def parse_resolv_conf(text: str) -> tuple[str, ...]:
    """The name servers of resolv.conf(5), at most three; the machine itself where it names none. Pure."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(str(ipaddress.ip_address(words[1])))
            except ValueError:
                continue
    return tuple(found[:_MOST_RESOLVERS]) or ("127.0.0.1",)


def host_resolvers() -> tuple[Place, ...]:
    """What the host uses now; read each time, for it changes with the network."""
    try:
        text = RESOLV_CONF.read_text(errors="replace")
    except OSError:
        text = ""
    return tuple((address, _PORT) for address in parse_resolv_conf(text))


class Resolvers:
    """Forwards questions, a bounded number at once."""

    def __init__(self, netns_fd: int | None, places: Callable[[], tuple[Place, ...]] = host_resolvers) -> None:
        """`netns_fd` is the namespace to ask from; None is the process's own."""
        self._netns_fd = netns_fd
        self._places = places
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)

    async def ask(self, question: dns.rrset.RRset) -> dns.message.Message:
        """The answer of the first resolver that gives one. Raises ResolversSilentError."""
        query = dns.message.make_query(question.name, question.rdtype, question.rdclass, use_edns=0, payload=_PAYLOAD)
        async with self._slots:
            for place in self._places():
                try:
                    async with asyncio.timeout(TRY_S):
                        answer = await self._ask_udp(query, place)
                        if answer.flags & dns.flags.TC:
                            answer = await self._ask_tcp(query, place)
                        return answer
                except (OSError, TimeoutError, EOFError, dns.exception.DNSException):
                    continue
        raise ResolversSilentError(f"No resolver of the host answered for {question.name}.")

    async def _ask_udp(self, query: dns.message.Message, place: Place) -> dns.message.Message:
        loop = asyncio.get_running_loop()
        with self._socket(place, socket.SOCK_DGRAM) as connection:
            await loop.sock_connect(connection, place)
            await loop.sock_sendall(connection, query.to_wire())
            while True:
                answer = _parse(await loop.sock_recv(connection, _LARGEST))
                if answer is not None and query.is_response(answer):
                    return answer

    async def _ask_tcp(self, query: dns.message.Message, place: Place) -> dns.message.Message:
        loop = asyncio.get_running_loop()
        with self._socket(place, socket.SOCK_STREAM) as connection:
            await loop.sock_connect(connection, place)
            wire = query.to_wire()
            await loop.sock_sendall(connection, len(wire).to_bytes(2, "big") + wire)
            size = int.from_bytes(await _read_exactly(connection, 2), "big")
            answer = _parse(await _read_exactly(connection, size))
        if answer is None or not query.is_response(answer):
            raise EOFError
        return answer

    def _socket(self, place: Place, kind: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET

        def make() -> socket.socket:
            return socket.socket(family, kind | socket.SOCK_NONBLOCK)

        return make() if self._netns_fd is None else netns.call_in(self._netns_fd, make)


async def _read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _parse(wire: bytes) -> dns.message.Message | None:
    try:
        return dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None

"""Names for guests: answers the DNS messages that come by a guest's own channel.

The channel says who asks, so nothing on the network answers names and no guest can ask for another. Names of the soup are
answered here, from the directory as it is now, with a short life, because lifeforms move. Other names go to the host's
resolvers, but only for a lifeform that may reach the world: a name is a way out, too. Otherwise they are refused.

The guest is untrusted: messages are parsed by dnspython, what is not a plain question is refused, and the questions under
way are bounded for each guest and for the node. Transport: a stream carries messages behind a two-byte length, as over TCP
(RFC 1035, 4.2.2); what the guest asked over UDP is cut to size by its agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from primordia.domain.names import Directory, Entry, Outcome, address_of_reverse
from primordia.node.resolvers import Resolvers, ResolversSilentError
from primordia.ports.guest import ByteStream, InboundHandler
from primordia.wire.resources import Context, Lifeform

TTL_S = 5
MOST_STREAMS_OF_A_GUEST = 64
MESSAGE_WITHIN_S = 10.0
_LARGEST_QUERY = 4096
_HEADER_BYTES = 12
_REFUSED_TYPES = frozenset({*range(128, 256), dns.rdatatype.OPT})
"""Meta types (RFC 6895, 3.1): transfers, ANY and what else is no plain question."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asker:
    """The lifeform whose context asks, and whether it may reach the world."""

    namespace: str
    lifeform: str
    egress: bool


class NameServer:
    """Answers for all guests of a node. `directory` gives the names as they are now."""

    def __init__(self, directory: Callable[[], Directory], resolvers: Resolvers, own_networks: Iterable[str]) -> None:
        """`own_networks` are those whose addresses only we can name: the contexts' and the nodes'."""
        self._directory = directory
        self._resolvers = resolvers
        self._own_networks = tuple(ipaddress.ip_network(network) for network in own_networks)

    def handler(self, asker: Callable[[], Asker]) -> InboundHandler:
        """What serves the `dns` streams of one guest; `asker` is asked at each message, for policy changes."""
        streams = 0

        async def serve(stream: ByteStream) -> None:
            nonlocal streams
            if streams >= MOST_STREAMS_OF_A_GUEST:
                await stream.close()
                return
            streams += 1
            try:
                await self._serve(stream, asker)
            finally:
                streams -= 1
                await stream.close()

        return serve

    async def _serve(self, stream: ByteStream, asker: Callable[[], Asker]) -> None:
        reader = _Messages(stream)
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(MESSAGE_WITHIN_S):
                    message = await reader.next()
                answer = await self.answer(message, asker()) if message else None
                if answer is None:
                    return
                async with asyncio.timeout(MESSAGE_WITHIN_S):
                    await stream.write(len(answer).to_bytes(2, "big") + answer)

    async def answer(self, message: bytes, asker: Asker) -> bytes | None:
        """The answer to one message; None for what deserves none."""
        if len(message) < _HEADER_BYTES:
            return None
        identifier, flags = struct.unpack_from("!HH", message)
        if flags & dns.flags.QR:
            return None
        try:
            query = dns.message.from_wire(message)
        except Exception:  # whatever a parser may trip over: the guest chose these bytes
            return struct.pack("!HHHHHH", identifier, dns.flags.QR | (flags & 0x7900) | dns.rcode.FORMERR, 0, 0, 0, 0)
        response = await self._respond(query, asker)
        try:
            return response.to_wire(max_size=65535)
        except Exception as error:  # as above: an answer that cannot be written (too long, odd names) is a failure
            log.debug("an answer cannot be written: %s", error)
            return _plain(query, dns.rcode.SERVFAIL).to_wire()

    async def _respond(self, query: dns.message.Message, asker: Asker) -> dns.message.Message:
        if query.opcode() != dns.opcode.QUERY:
            return _plain(query, dns.rcode.NOTIMP)
        if len(query.question) != 1:
            return _plain(query, dns.rcode.FORMERR)
        question = query.question[0]
        if question.rdclass != dns.rdataclass.IN or question.rdtype in _REFUSED_TYPES:
            return _plain(query, dns.rcode.REFUSED)
        response = self._local(query, question, asker)
        if response is not None:
            return response
        if not asker.egress:
            return _plain(query, dns.rcode.REFUSED)
        try:
            return _carried(query, await self._resolvers.ask(question))
        except ResolversSilentError as error:
            log.debug("%s", error)
            return _plain(query, dns.rcode.SERVFAIL)

    def _local(self, query: dns.message.Message, question: dns.rrset.RRset, asker: Asker) -> dns.message.Message | None:
        """The answer from the directory; None for a name that is not ours."""
        directory = self._directory()
        name = question.name.to_text(omit_final_dot=True)
        address = address_of_reverse(name)
        if address is not None:
            return self._reverse(query, question, directory, address)
        resolution = directory.resolve(name, namespace=asker.namespace, lifeform=asker.lifeform)
        if resolution.outcome is Outcome.FOREIGN:
            return None
        if resolution.outcome is Outcome.MISSING:
            return _negative(query, dns.rcode.NXDOMAIN, directory.domain)
        if question.rdtype != dns.rdatatype.A or not resolution.addresses:
            return _negative(query, dns.rcode.NOERROR, directory.domain)
        return _positive(query, question, resolution.addresses)

    def _reverse(
        self, query: dns.message.Message, question: dns.rrset.RRset, directory: Directory, address: str
    ) -> dns.message.Message | None:
        known = directory.name_of(address)
        if known is None:
            ours = any(ipaddress.ip_address(address) in network for network in self._own_networks)
            return _negative(query, dns.rcode.NXDOMAIN, directory.domain) if ours else None
        if question.rdtype != dns.rdatatype.PTR:
            return _negative(query, dns.rcode.NOERROR, directory.domain)
        return _positive(query, question, (f"{known}.",))


def directory_of(
    contexts: Iterable[Context], lifeforms: Iterable[Lifeform], addresses: Mapping[str, str], domain: str
) -> Directory:
    """The names of these contexts. `addresses`, by uid, are the node's own word and go before a context's status. Pure."""
    positions = {
        (one.metadata.namespace, one.metadata.name, template.name): position
        for one in lifeforms
        for position, template in enumerate(one.spec.contexts)
    }
    entries = []
    for context in contexts:
        namespace, lifeform, name = context.metadata.namespace, context.spec.lifeform, context.spec.template.name
        if not lifeform:  # a box or fork: nobody's peer
            continue
        address = addresses.get(context.metadata.uid) or context.status.ip
        if address and not context.spec.parent:
            position = positions.get((namespace, lifeform, name), 0)
            entries.append(Entry(namespace, lifeform, name, address, position))
    return Directory(entries, domain)


class _Messages:
    """Messages behind a two-byte length, out of a stream's pieces."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def next(self) -> bytes:
        """The next message; empty at the end, and for one that no resolver sends."""
        size = int.from_bytes(await self._take(2), "big")
        return await self._take(size) if 0 < size <= _LARGEST_QUERY else b""

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            piece = await self._stream.read(_LARGEST_QUERY)
            if not piece:
                return b""
            self._buffer += piece
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


def _plain(query: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(rcode)
    return response


def _positive(query: dns.message.Message, question: dns.rrset.RRset, values: Collection[str]) -> dns.message.Message:
    response = _plain(query, dns.rcode.NOERROR)
    response.flags |= dns.flags.AA
    response.answer.append(dns.rrset.from_text_list(question.name, TTL_S, question.rdclass, question.rdtype, values))
    return response


def _negative(query: dns.message.Message, rcode: dns.rcode.Rcode, domain: str) -> dns.message.Message:
    """No such name, or no such data; the SOA says for how long that may be believed (RFC 2308)."""
    response = _plain(query, rcode)
    response.flags |= dns.flags.AA
    soa = f"ns.{domain}. hostmaster.{domain}. 1 3600 600 86400 {TTL_S}"
    response.authority.append(dns.rrset.from_text(f"{domain}.", TTL_S, dns.rdataclass.IN, dns.rdatatype.SOA, soa))
    return response


def _carried(query: dns.message.Message, found: dns.message.Message) -> dns.message.Message:
    """The guest's question with the world's answer. Extended codes need EDNS, which the guest may not speak: a failure."""
    rcode = found.rcode()
    response = _plain(query, rcode if rcode < 16 else dns.rcode.SERVFAIL)
    response.answer = found.answer
    response.authority = found.authority
    response.additional = found.additional
    return response

"""Answers to guests' DNS messages, with a real resolver on the loopback for the world's names, and hostile messages."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import cast

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.names import Directory, Entry
from primordia.node import dns as name_server
from primordia.node import resolvers
from primordia.node.dns import Asker, NameServer, directory_of
from primordia.node.resolvers import Resolvers, parse_resolv_conf
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextSpec, ContextStatus, ContextTemplate, Lifeform, LifeformSpec

OUT, KEPT = Asker("default", "shop", egress=True), Asker("default", "shop", egress=False)
DIRECTORY = Directory((Entry("default", "shop", "web", "10.128.0.1"), Entry("default", "db", "main", "10.128.0.2")))
Reply = Callable[[dns.message.Message], dns.message.Message | bytes | None]


def server(*places: tuple[str, int]) -> NameServer:
    return NameServer(lambda: DIRECTORY, Resolvers(None, lambda: places), ("10.128.0.0/9", "10.77.0.0/16"))


async def ask(names: NameServer, name: str, kind: str = "A", asker: Asker = OUT) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    answer = await names.answer(query.to_wire(), asker)
    assert answer is not None
    parsed = dns.message.from_wire(answer)
    assert query.is_response(parsed)
    return parsed


def values(answer: dns.message.Message) -> list[str]:
    return [record.to_text() for rrset in answer.answer for record in rrset]


@contextlib.asynccontextmanager
async def upstream(udp: Reply, tcp: Reply | None = None) -> AsyncIterator[tuple[str, int]]:
    """A resolver on the loopback."""

    class Protocol(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            reply = udp(dns.message.from_wire(data))
            if reply is not None:
                self.transport.sendto(reply if isinstance(reply, bytes) else reply.to_wire(), addr)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        reply = (tcp or udp)(dns.message.from_wire(await reader.readexactly(size)))
        if reply is not None:
            wire = reply if isinstance(reply, bytes) else reply.to_wire(max_size=65535)
            writer.write(len(wire).to_bytes(2, "big") + wire)
        writer.close()

    listener = socket.create_server(("127.0.0.1", 0))
    place = listener.getsockname()
    streams = await asyncio.start_server(serve, sock=listener)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, local_addr=place)
    try:
        yield place
    finally:
        transport.close()
        streams.close()


def says(*addresses: str) -> Reply:
    def reply(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *addresses))
        return response

    return reply


async def test_names_of_the_soup_are_answered_without_any_resolver() -> None:
    names = server()
    answer = await ask(names, "web")
    assert values(answer) == ["10.128.0.1"]
    assert answer.flags & dns.flags.AA
    assert answer.answer[0].ttl <= 5
    assert values(await ask(names, "main.DB.default.soup.internal", asker=KEPT)) == ["10.128.0.2"]
    assert values(await ask(names, "2.0.128.10.in-addr.arpa", "PTR")) == ["main.db.default.soup.internal."]


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("nobody", "A", dns.rcode.NXDOMAIN),
        ("nobody.default.soup.internal", "A", dns.rcode.NXDOMAIN),
        ("9.0.128.10.in-addr.arpa", "PTR", dns.rcode.NXDOMAIN),
        ("1.0.77.10.in-addr.arpa", "PTR", dns.rcode.NXDOMAIN),
        ("web", "AAAA", dns.rcode.NOERROR),
        ("default.soup.internal", "A", dns.rcode.NOERROR),
    ],
)
async def test_what_does_not_exist_is_denied_with_a_short_life(name: str, kind: str, rcode: dns.rcode.Rcode) -> None:
    answer = await ask(server(), name, kind)
    assert (answer.rcode(), values(answer)) == (rcode, [])
    assert answer.authority[0].rdtype == dns.rdatatype.SOA


async def test_the_worlds_names_are_for_those_with_egress() -> None:
    async with upstream(says("203.0.113.7")) as place:
        names = server(place)
        assert values(await ask(names, "example.org")) == ["203.0.113.7"]
        assert (await ask(names, "example.org", asker=KEPT)).rcode() == dns.rcode.REFUSED


async def test_a_truncated_answer_is_asked_again_by_tcp() -> None:
    many = [f"203.0.{number // 200}.{number % 200}" for number in range(600)]

    def truncated(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return response

    async with upstream(truncated, says(*many)) as place:
        assert set(values(await ask(server(place), "example.org"))) == set(many)


async def test_a_silent_resolver_costs_its_time_and_the_next_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "TRY_S", 1.0)
    async with upstream(lambda _: None) as silent, upstream(says("203.0.113.7")) as good:
        assert values(await ask(server(silent, good), "example.org")) == ["203.0.113.7"]
        assert (await ask(server(silent), "example.org")).rcode() == dns.rcode.SERVFAIL


async def test_answers_to_another_question_and_nonsense_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "TRY_S", 0.3)

    def other_question(query: dns.message.Message) -> dns.message.Message:
        forged = dns.message.make_query("evil.example", "A")
        forged.id = query.id
        answered = says("203.0.113.66")(forged)
        assert isinstance(answered, dns.message.Message)
        return answered

    async with upstream(other_question) as forger, upstream(lambda _: b"\xff" * 40) as babbler:
        assert (await ask(server(forger, babbler), "example.org")).rcode() == dns.rcode.SERVFAIL


async def test_what_is_no_plain_question_is_refused() -> None:
    names = server()
    for kind in ("ANY", "AXFR"):
        assert (await ask(names, "web", kind)).rcode() == dns.rcode.REFUSED
    chaos = dns.message.make_query("version.bind", "TXT", "CH")
    update = dns.message.make_query("web", "A")
    update.set_opcode(dns.opcode.NOTIFY)
    two = dns.message.make_query("web", "A")
    two.question.append(dns.message.make_query("main", "A").question[0])
    for query, rcode in ((chaos, dns.rcode.REFUSED), (update, dns.rcode.NOTIMP), (two, dns.rcode.FORMERR)):
        answer = await names.answer(query.to_wire(), OUT)
        assert answer is not None
        assert answer[3] & 0xF == rcode


async def test_an_answer_is_not_answered_and_a_broken_question_is_called_so() -> None:
    names = server()
    response = dns.message.make_response(dns.message.make_query("web", "A")).to_wire()
    assert await names.answer(response, OUT) is None
    assert await names.answer(b"short", OUT) is None
    broken = struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0) + b"\x3fx"
    assert await names.answer(broken, OUT) == struct.pack("!HHHHHH", 0x1234, 0x8101, 0, 0, 0, 0)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_harmless(data: bytes, with_header: bool) -> None:
    message = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 1) + data if with_header else data
    answer = asyncio.run(server().answer(message, OUT))
    assert answer is None or (len(answer) >= 12 and answer[:2] == message[:2])


class Pipe:
    """A ByteStream of which the test holds the other end."""

    def __init__(self, *pieces: bytes) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        for piece in pieces:
            self.incoming.put_nowait(piece)
        self.sent = b""
        self.closed = False

    async def read(self, limit: int = 65536) -> bytes:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        self.sent += data

    async def end(self) -> None:
        self.closed = True

    async def close(self) -> None:
        self.closed = True


async def test_a_stream_carries_messages_however_they_are_cut() -> None:
    wires = [dns.message.make_query(name, "A").to_wire() for name in ("web", "main.db.default.soup.internal")]
    data = b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires)
    pipe = Pipe(*(data[at : at + 7] for at in range(0, len(data), 7)), b"")
    await server().handler(lambda: KEPT)(pipe)
    assert pipe.closed
    answers = []
    while pipe.sent:
        size = int.from_bytes(pipe.sent[:2], "big")
        answers.append(dns.message.from_wire(pipe.sent[2 : 2 + size]))
        pipe.sent = pipe.sent[2 + size :]
    assert [values(answer) for answer in answers] == [["10.128.0.1"], ["10.128.0.2"]]


async def test_a_guest_that_says_nothing_or_too_much_loses_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_server, "MESSAGE_WITHIN_S", 0.05)
    for pipe in (Pipe(b"\x00"), Pipe(b"\xff\xff" + b"x" * 100), Pipe(b"\x00\x00")):
        await asyncio.wait_for(server().handler(lambda: OUT)(pipe), 10)
        assert pipe.closed


async def test_a_guest_has_a_bounded_number_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_server, "MOST_STREAMS_OF_A_GUEST", 2)
    names = server()
    serve, neighbour = names.handler(lambda: OUT), names.handler(lambda: OUT)
    waiting = [Pipe(), Pipe()]
    tasks = [asyncio.ensure_future(serve(pipe)) for pipe in waiting]
    await asyncio.sleep(0)
    refused = Pipe()
    await serve(refused)
    assert refused.closed
    other = Pipe(b"")
    await neighbour(other)
    assert [pipe.closed for pipe in waiting] == [False, False]
    for pipe in waiting:
        pipe.incoming.put_nowait(b"")
    await asyncio.gather(*tasks)


def test_resolv_conf_is_read() -> None:
    text = "# nameserver 1.1.1.1\nnameserver 192.0.2.1\nsearch x\nnameserver ::1 \nnameserver fe80::1%eth0\nnameserver bad\n"
    assert parse_resolv_conf(text)[:2] == ("192.0.2.1", "::1")
    assert "bad" not in parse_resolv_conf(text)
    assert parse_resolv_conf("") == ("127.0.0.1",)


def test_the_directory_knows_contexts_by_their_address_and_place() -> None:
    def context(name: str, uid: str, ip: str) -> Context:
        return Context(
            metadata=ObjectMeta(name=f"shop.{name}", namespace="default", uid=uid),
            spec=ContextSpec(
                lifeform="shop", lifeform_uid="l", node="n1", epoch=1, template=ContextTemplate(name=name, image="i")
            ),
            status=ContextStatus(ip=ip),
        )

    lifeform = Lifeform(
        metadata=ObjectMeta(name="shop", namespace="default"),
        spec=LifeformSpec(contexts=(ContextTemplate(name="web", image="i"), ContextTemplate(name="cache", image="i"))),
    )
    contexts = (context("cache", "u1", "10.128.0.1"), context("web", "u2", ""), context("none", "u3", ""))
    directory = directory_of(contexts, (lifeform,), {"u2": "10.128.0.2"}, "soup.internal")
    assert directory.resolve("shop.default.soup.internal", namespace="", lifeform="").addresses == ("10.128.0.2",)
    assert directory.resolve("cache", namespace="default", lifeform="shop").addresses == ("10.128.0.1",)
    assert directory.resolve("none", namespace="default", lifeform="shop").addresses == ()

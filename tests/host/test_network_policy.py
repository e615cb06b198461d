"""Who reaches whom, tried with real packets through real TAPs and the real filter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from primordia.domain.addresses import FIRST_OWNER_ID
from primordia.drivers.net_linux import ruleset
from primordia.kit import command, netns
from primordia.node.resolvers import Resolvers
from primordia.ports.network import Flow, NetworkState
from primordia.testing.network import HOST_OUTSIDE, PATIENCE_S, WORLD, Guest, World, echo, eventually, world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces and TAPs, which needs root")


@pytest.fixture
async def here() -> AsyncIterator[World]:
    async with world() as built:
        yield built


def state_of(*guests: Guest, flows: tuple[Flow, ...] = ()) -> NetworkState:
    return NetworkState(tuple(guest.endpoint for guest in guests), flows)


async def test_only_the_own_group_and_opened_flows_connect(here: World) -> None:
    a1, a2 = await here.guest(1, "a"), await here.guest(2, "a")
    b1, c1 = await here.guest(3, "b"), await here.guest(4, "c")
    everyone = (a1, a2, b1, c1)
    await here.network.apply(state_of(*everyone, flows=(Flow(a1.endpoint.address, (b1.endpoint.address,)),)))
    allowed = {(a1, a2), (a2, a1), (b1, a1)}
    for target in everyone:
        async with echo(target, 80):
            for source in everyone:
                if source is not target:
                    seen = await source.reach(target.endpoint.address, 80)
                    assert (seen == "open") == ((source, target) in allowed), (source.endpoint, target.endpoint, seen)
                    assert seen in ("open", "denied")


async def test_nothing_passes_before_apply_knows_the_endpoint(here: World) -> None:
    a1, a2 = await here.guest(1, "a"), await here.guest(2, "a")
    async with echo(a2, 80):
        assert await a1.reach(a2.endpoint.address, 80, timeout_s=0.5) == "silence"
        await here.network.apply(state_of(a1, a2))
        assert await a1.reach(a2.endpoint.address, 80) == "open"


async def test_a_closed_flow_ends_connections_that_are_open(here: World) -> None:
    a1, b1 = await here.guest(1, "a"), await here.guest(2, "b")
    await here.network.apply(state_of(a1, b1, flows=(Flow(a1.endpoint.address, (b1.endpoint.address,)),)))
    loop = asyncio.get_running_loop()
    async with echo(a1, 80):
        with b1.new_socket() as client:
            await loop.sock_connect(client, (a1.endpoint.address, 80))
            await loop.sock_sendall(client, b"one")
            assert await loop.sock_recv(client, 10) == b"one"
            await here.network.apply(state_of(a1, b1))
            await loop.sock_sendall(client, b"two")
            with pytest.raises((TimeoutError, OSError)):
                await asyncio.wait_for(loop.sock_recv(client, 10), 0.7)


@pytest.mark.parametrize("guard", ["filter", "reverse path"])
async def test_a_borrowed_source_address_is_dropped_by_either_guard_alone(here: World, guard: str) -> None:
    a1, b1, c1 = await here.guest(1, "a"), await here.guest(2, "b"), await here.guest(3, "c")
    await here.network.apply(state_of(a1, b1, c1, flows=(Flow(a1.endpoint.address, (b1.endpoint.address,)),)))
    if guard == "filter":
        Path(f"/proc/sys/net/ipv4/conf/{c1.tap.name}/rp_filter").write_text("0")
    else:
        rule = f'insert rule inet primordia prerouting iifname "{c1.tap.name}" accept'
        await command.run(["nft", *rule.split()])
    await c1.ip(f"address add {b1.endpoint.address}/32 dev eth0")
    loop = asyncio.get_running_loop()
    with (
        a1.new_socket(socket.SOCK_DGRAM) as receiver,
        c1.new_socket(socket.SOCK_DGRAM) as thief,
        b1.new_socket(socket.SOCK_DGRAM) as owner,
    ):
        receiver.bind(("0.0.0.0", 99))
        thief.bind((b1.endpoint.address, 0))
        for _ in range(5):
            await loop.sock_sendto(thief, b"stolen", (a1.endpoint.address, 99))
        await loop.sock_sendto(owner, b"mine", (a1.endpoint.address, 99))
        assert await asyncio.wait_for(loop.sock_recv(receiver, 10), PATIENCE_S) == b"mine"


async def test_no_address_of_a_node_answers_a_guest(here: World) -> None:
    guest = await here.guest(1, "a", egress=True)
    await here.network.apply(state_of(guest))
    loop = asyncio.get_running_loop()
    async with echo(here.n1, 9000), echo(here.n2, 9000):
        for address in ("10.77.0.1", "10.77.0.2", "169.254.1.1", "169.254.169.254", HOST_OUTSIDE, WORLD, "127.77.0.1"):
            assert await guest.reach(address, 9000, timeout_s=0.5) in ("silence", "denied", "refused"), address
        with here.n1.new_socket(socket.SOCK_DGRAM) as server, guest.new_socket(socket.SOCK_DGRAM) as client:
            server.bind(("10.77.0.1", 99))
            await loop.sock_sendto(client, b"hello", ("10.77.0.1", 99))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(server, 10), 0.3)
        # ... while the node itself reaches the guest, for probes and published ports.
        async with echo(guest, 80):
            assert await here.n1.reach(guest.endpoint.address, 80) == "open"
            assert await here.n2.reach(guest.endpoint.address, 80) == "open"


async def test_a_guest_gets_no_answer_to_arp_and_no_ipv6(here: World) -> None:
    guest = await here.guest(1, "a")
    await here.network.apply(state_of(guest))
    name = guest.tap.name
    assert Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").read_text() == "1\n"
    await guest.ip("link set eth0 arp on")
    await guest.ip("route add 10.77.0.1 dev eth0 scope link")
    await guest.reach("10.77.0.1", 9000, timeout_s=0.5)
    shown = await command.run(netns.argv_in(guest.name, ["ip", "neighbour", "show", "10.77.0.1"]))
    assert "lladdr" not in shown.text()


async def test_a_context_of_another_node_is_reached_by_a_flow_and_path_mtu_is_found(here: World) -> None:
    guest, stranger = await here.guest(1, "a"), await here.guest(2, "b")
    remote = "10.128.32.9"
    await here.n2.ip(f"address add {remote}/32 dev lo")
    await here.network.apply(state_of(guest, stranger, flows=(Flow(remote, (guest.endpoint.address,)),)))
    async with echo(here.n2, 80, remote):
        assert await guest.reach(remote, 80) == "open"
        assert await stranger.reach(remote, 80) == "denied"
    await here.n1.ip("link set wire0 mtu 1300")
    loop = asyncio.get_running_loop()
    with guest.new_socket(socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        await loop.sock_connect(sender, (remote, 99))

        async def mtu_is_found() -> bool:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sender, bytes(1400))
            return sender.getsockopt(socket.IPPROTO_IP, 14) == 1300  # IP_MTU

        await eventually(mtu_is_found)


async def test_a_forged_source_from_the_wire_reaches_no_context(here: World) -> None:
    a1, a2 = await here.guest(1, "a"), await here.guest(2, "a")
    await here.network.apply(state_of(a1, a2))
    await here.n2.ip(f"address add {a2.endpoint.address}/32 dev lo")
    loop = asyncio.get_running_loop()
    with a1.new_socket(socket.SOCK_DGRAM) as receiver, here.n2.new_socket(socket.SOCK_DGRAM) as thief:
        receiver.bind(("0.0.0.0", 99))
        thief.bind((a2.endpoint.address, 0))
        await loop.sock_sendto(thief, b"forged", (a1.endpoint.address, 99))
        with a2.new_socket(socket.SOCK_DGRAM) as member:
            await loop.sock_sendto(member, b"mine", (a1.endpoint.address, 99))
        assert await asyncio.wait_for(loop.sock_recv(receiver, 10), PATIENCE_S) == b"mine"


async def test_a_broken_vmm_cannot_use_the_nodes_network(here: World) -> None:
    await here.network.apply(NetworkState())
    attempt = (
        "import encodings.idna, os, socket, sys; os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))\n"
        "socket.create_connection(('10.77.0.1', 9000), 1)"
    )
    async with echo(here.n1, 9000):
        for uid, works in ((65534, True), (FIRST_OWNER_ID + 5, False)):
            done = await command.run([sys.executable, "-c", attempt, str(uid)], check=False, netns=here.n1.fd)
            assert (done.status == 0) == works, done.stderr


async def test_egress_reaches_the_world_and_no_address_of_host_or_soup() -> None:
    async with world(with_uplink=True) as here:
        out, kept = await here.guest(1, "a", egress=True), await here.guest(2, "b")
        await here.network.apply(state_of(out, kept))
        async with echo(here.beyond, 80), echo(here.host, 80), echo(here.host, 53), echo(here.n2, 80):
            assert await out.reach(WORLD, 80) == "open"
            assert await kept.reach(WORLD, 80) == "denied"
            closed = (HOST_OUTSIDE, "198.18.77.2", "198.18.77.3", "198.18.77.100", "10.77.0.1", "10.77.0.2", "10.128.77.7")
            for address in (*closed, "192.168.99.255", "127.0.0.1", "169.254.169.254", "224.0.0.1"):
                for port in (80, 53):
                    assert await out.reach(address, port, timeout_s=0.5) != "open", address
            await here.network.apply(state_of(kept))
            assert await out.reach(WORLD, 80, timeout_s=0.5) == "silence"


async def test_an_address_that_the_host_gets_later_is_closed_as_well() -> None:
    async with world(with_uplink=True) as here:
        out = await here.guest(1, "a", egress=True)
        await here.network.apply(state_of(out))
        async with echo(here.host, 80):
            await here.host.ip("address add 192.168.77.1/24 dev out0")

            async def is_closed() -> bool:
                return await out.reach("192.168.77.1", 80) == "denied"

            await eventually(is_closed)


async def test_egress_comes_back_with_an_uplink_that_was_restarted() -> None:
    async with world(with_uplink=True) as here:
        out = await here.guest(1, "a", egress=True)
        await here.network.apply(state_of(out))
        async with echo(here.beyond, 80), echo(here.host, 80):
            assert await out.reach(WORLD, 80) == "open"
            here.end_uplink()
            await here.start_uplink()

            async def works_again() -> bool:
                return await out.reach(WORLD, 80) == "open"

            await eventually(works_again)
            listed = await command.run(["nft", "list", "set", "inet", "primordia", "forbidden"])
            assert "198.18.77.0/24" in listed.text()
            assert await out.reach("198.18.77.2", 80, timeout_s=0.5) == "denied"
            assert await out.reach(HOST_OUTSIDE, 80, timeout_s=0.5) == "denied"


async def test_one_source_cannot_fill_the_connection_table(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ruleset, "MOST_CONNECTIONS", 5)
    greedy, modest, server = await here.guest(1, "a"), await here.guest(2, "a"), await here.guest(3, "a")
    await here.network.close()
    here.network = here.another_network()  # whose first table is a whole one, with that limit
    await here.network.start()
    await here.network.apply(state_of(greedy, modest, server))
    loop = asyncio.get_running_loop()
    async with echo(server, 80):
        with contextlib.ExitStack() as opened:
            for _ in range(5):
                client = opened.enter_context(greedy.new_socket())
                await loop.sock_connect(client, (server.endpoint.address, 80))
            assert await greedy.reach(server.endpoint.address, 80, timeout_s=0.7) == "silence"
            assert await modest.reach(server.endpoint.address, 80) == "open"


async def test_the_hosts_resolver_is_asked_from_the_hosts_namespace(here: World) -> None:
    question = dns.message.make_query("example.org", "A").question[0]
    with here.host.new_socket(socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.0.0.53", 53))

        async def answer_once() -> None:
            loop = asyncio.get_running_loop()
            data, client = await loop.sock_recvfrom(resolver, 4096)
            response = dns.message.make_response(dns.message.from_wire(data))
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", "203.0.113.7"))
            await loop.sock_sendto(resolver, response.to_wire(), client)

        answering = asyncio.create_task(answer_once())
        found = await Resolvers(here.host.fd, lambda: (("127.0.0.53", 53),)).ask(question)
        assert found.answer[0][0].to_text() == "203.0.113.7"
        await answering

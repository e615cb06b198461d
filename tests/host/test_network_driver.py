"""Published ports, restarts of the daemon, and what is left behind: with real kernel objects."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator

import pytest

from primordia.domain.addresses import mac_of
from primordia.drivers.net_linux import driver, taps
from primordia.drivers.net_linux.netlink import Netlink
from primordia.host import namespaces
from primordia.kit import command, netns
from primordia.kit.errors import PermanentError, TemporaryError
from primordia.ports.network import Endpoint, NetworkState, Publication
from primordia.testing.network import HOST_ADDRESS, PATIENCE_S, POD_CIDR, SOUP_CIDR, Guest, World, echo, eventually, world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces and TAPs, which needs root")


@pytest.fixture
async def here() -> AsyncIterator[World]:
    async with world() as built:
        yield built


def published(*pairs: tuple[int, Guest], endpoints: tuple[Guest, ...] = ()) -> NetworkState:
    publications = tuple(Publication(port, guest.endpoint.address, 80, guest.endpoint.uid) for port, guest in pairs)
    guests = endpoints or tuple(guest for _, guest in pairs)
    return NetworkState(tuple(guest.endpoint for guest in guests), (), publications)


async def connected(here: World, port: int) -> socket.socket:
    client = here.host.new_socket()
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(client, (HOST_ADDRESS, port)), PATIENCE_S)
    except BaseException:
        client.close()
        raise
    return client


async def read_all(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    pieces = []
    async with asyncio.timeout(PATIENCE_S):
        while piece := await loop.sock_recv(connection, 1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


async def test_a_published_port_carries_both_ways_and_half_closes(here: World) -> None:
    guest = await here.guest(1, "a")
    assert await here.network.apply(published((6379, guest))) == ()
    payload = os.urandom(3 << 20)
    async with echo(guest, 80):
        with await connected(here, 6379) as client:

            async def send() -> None:
                await asyncio.get_running_loop().sock_sendall(client, payload)
                client.shutdown(socket.SHUT_WR)

            sending = asyncio.create_task(send())
            assert await read_all(client) == payload
            await sending


async def test_a_context_that_does_not_listen_resets_the_client(here: World) -> None:
    guest = await here.guest(1, "a")
    await here.network.apply(published((6379, guest)))
    with await connected(here, 6379) as client, pytest.raises(ConnectionResetError):
        await read_all(client)


async def test_a_taken_port_is_a_fault_that_names_port_and_holder_and_is_tried_again(here: World) -> None:
    guest = await here.guest(1, "a")
    taken = here.host.listener(6379)
    (fault,) = await here.network.apply(published((6379, guest), (6380, guest)))
    assert fault.publication.port == 6379
    assert f"{HOST_ADDRESS}:6379 is taken by" in fault.message
    assert f"(pid {os.getpid()})" in fault.message
    assert await here.host.reach(HOST_ADDRESS, 6380) == "open"
    taken.close()
    assert await here.network.apply(published((6379, guest), (6380, guest))) == ()
    assert await here.host.reach(HOST_ADDRESS, 6379) == "open"


async def test_a_port_that_is_no_longer_published_loses_its_connections(here: World) -> None:
    guest, other = await here.guest(1, "a"), await here.guest(2, "b")
    await here.network.apply(published((6379, guest), (6380, other)))
    loop = asyncio.get_running_loop()
    async with echo(guest, 80), echo(other, 80):
        with await connected(here, 6379) as client, await connected(here, 6380) as neighbour:
            for connection in (client, neighbour):
                await loop.sock_sendall(connection, b"x")
                assert await loop.sock_recv(connection, 1) == b"x"
            await here.network.apply(published((6380, other), endpoints=(guest, other)))
            with pytest.raises(ConnectionResetError):
                await read_all(client)
            await loop.sock_sendall(neighbour, b"y")
            assert await loop.sock_recv(neighbour, 1) == b"y"
    assert await here.host.reach(HOST_ADDRESS, 6379) == "refused"


async def test_a_port_follows_to_another_context(here: World) -> None:
    old, new = await here.guest(1, "a"), await here.guest(2, "b")
    await here.network.apply(published((6379, old), endpoints=(old, new)))
    await here.network.apply(published((6379, new), endpoints=(old, new)))
    async with echo(new, 80):
        with await connected(here, 6379) as client:
            await asyncio.get_running_loop().sock_sendall(client, b"x")
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b"x"


async def test_a_slow_reader_holds_the_sender_back_and_not_its_neighbours(here: World) -> None:
    guest = await here.guest(1, "a")
    await here.network.apply(published((6379, guest)))
    loop = asyncio.get_running_loop()
    async with echo(guest, 80):
        with await connected(here, 6379) as lazy, await connected(here, 6379) as quick:
            sent = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    while sent < 1 << 28:  # it must block long before a quarter of a gigabyte
                        await loop.sock_sendall(lazy, bytes(1 << 16))
                        sent += 1 << 16
            await loop.sock_sendall(quick, b"x")
            assert await asyncio.wait_for(loop.sock_recv(quick, 1), PATIENCE_S) == b"x"


async def test_the_next_daemon_finds_connections_alive_and_publishes_again(here: World) -> None:
    a1, a2 = await here.guest(1, "a"), await here.guest(2, "a")
    wanted = published((6379, a1), endpoints=(a1, a2))
    await here.network.apply(wanted)
    loop = asyncio.get_running_loop()
    async with echo(a1, 80):
        with a2.new_socket() as between:
            await loop.sock_connect(between, (a1.endpoint.address, 80))
            await here.network.close()
            assert await here.host.reach(HOST_ADDRESS, 6379) == "refused"
            here.network = here.another_network()
            await here.network.start()
            for phase in (b"before apply", b"after apply"):
                await loop.sock_sendall(between, phase)
                assert await asyncio.wait_for(loop.sock_recv(between, 20), PATIENCE_S) == phase
                assert await here.network.apply(wanted) == ()
        assert await here.host.reach(HOST_ADDRESS, 6379) == "open"


async def test_apply_mends_routes_links_and_a_table_that_somebody_removed(here: World) -> None:
    a1, a2 = await here.guest(1, "a"), await here.guest(2, "a")
    wanted = published(endpoints=(a1, a2))
    await here.network.apply(wanted)
    await here.n1.ip(f"link set {a1.tap.name} down")
    await here.n1.ip(f"route delete {a2.endpoint.address}/32")
    await command.run(["nft", "delete", "table", "inet", "primordia"], netns=here.n1.fd)
    # What is wanted changes too, so that the difference cannot be applied to the table that is gone.
    await here.network.apply(published(endpoints=(a1,)))
    await here.network.apply(wanted)
    async with echo(a1, 80):
        assert await a2.reach(a1.endpoint.address, 80) == "open"


async def test_a_held_tap_is_refused_naming_its_holder_and_is_gone_after_it(here: World) -> None:
    guest = await here.guest(1, "a")
    uid, address = guest.endpoint.uid, guest.endpoint.address
    with pytest.raises(TemporaryError, match=rf"TAP {guest.tap.name} is in use by .*\(pid {os.getpid()}\)"):
        await here.network.open_tap(uid, address, "02:50:0a:80:00:01")
    guest.end()

    async def can_be_made() -> bool:
        tap = await here.network.open_tap(uid, address, "02:50:0a:80:00:01")
        os.close(tap.fd)
        return True

    await eventually(can_be_made)


async def test_a_waiting_tap_leads_to_the_last_address_it_was_given_and_to_no_other(here: World) -> None:
    guest = await here.guest(1, "a")
    uid, moved = guest.endpoint.uid, "10.128.0.77"
    await here.network.attach_tap(uid, moved, mac_of(moved))
    netlink = Netlink()
    try:
        assert [(route.address, route.source) for route in netlink.routes()] == [(moved, "10.77.0.1")]
    finally:
        netlink.close()
    await here.network.apply(NetworkState((Endpoint("context", moved, "a", link=uid),)))
    listed = await command.run(["nft", "list", "set", "inet", "primordia", "sources"], netns=here.n1.fd)
    assert f'"{guest.tap.name}" . {moved}' in listed.text()


async def test_a_namespace_that_is_not_the_nodes_is_refused(here: World) -> None:
    stranger = driver.LinuxNetwork(here.host.fd, HOST_ADDRESS, "10.77.0.9", SOUP_CIDR, POD_CIDR, None)
    with pytest.raises(PermanentError, match=r"10\.77\.0\.9 is no address"):
        await stranger.start()


async def test_nothing_is_left_when_the_microvms_have_ended(here: World) -> None:
    guests = [await here.guest(number, f"g{number}") for number in range(1, 6)]
    await here.network.apply(published(*((6000 + number, guest) for number, guest in enumerate(guests))))
    await here.network.apply(NetworkState())
    for guest in guests:
        guest.end()
    netlink = Netlink()
    assert [link.name for link in netlink.links() if link.group == taps.GROUP] == []
    assert netlink.routes() == []
    netlink.close()
    listed = await command.run(["nft", "-j", "list", "set", "inet", "primordia", "sources"], netns=here.n1.fd)
    assert '"elem"' not in listed.text()
    for number in range(5):
        assert await here.host.reach(HOST_ADDRESS, 6000 + number) == "refused"


async def test_the_address_of_a_context_that_is_gone_is_refused_and_not_looked_for_on_the_uplink(here: World) -> None:
    await here.start_uplink()
    with here.n1.new_socket() as client:
        client.setblocking(True)
        client.settimeout(PATIENCE_S)
        with pytest.raises(OSError) as refused:
            client.connect(("10.128.0.77", 80))
    assert refused.value.errno == errno.EHOSTUNREACH


async def test_a_second_build_does_nothing_and_half_a_build_is_finished() -> None:
    soup, nodes = f"ptestns{os.getpid()}", [("n1", 1), ("n2", 2), ("n3", 3)]
    layout = namespaces.Layout(soup, tuple(nodes), POD_CIDR)
    damages = (
        netns.argv_in(f"primordia-{soup}-n1", ["ip", "link", "delete", "wire0"]),
        netns.argv_in(f"primordia-{soup}-switch", ["ip", "link", "delete", "bridge0"]),
        netns.argv_in(f"primordia-{soup}-n2", ["ip", "address", "flush", "dev", "wire0"]),
        netns.argv_in(f"primordia-{soup}-n3", ["ip", "link", "set", "wire0", "down"]),
        ["ip", "netns", "delete", f"primordia-{soup}-n2"],
        ["umount", f"/run/netns/primordia-{soup}-n1"],
    )
    try:
        await namespaces.ensure(soup, nodes, pod_cidr=POD_CIDR)
        for damage in damages:
            await command.run(damage)
            await namespaces.ensure(soup, nodes, pod_cidr=POD_CIDR)
            seen = {name: await namespaces.look(name) for name in layout.namespaces()}
            assert namespaces.plan(layout, seen) == [], damage
        assert not set(layout.namespaces()) & set(namespaces.leftovers([soup]))
        assert set(layout.namespaces()) <= set(namespaces.leftovers([]))
    finally:
        await namespaces.remove(soup)
    assert not set(layout.namespaces()) & set(namespaces.leftovers([]))
    await namespaces.remove(soup)


async def test_a_namespace_in_use_is_not_removed_and_its_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    soup = f"ptestuse{os.getpid()}"
    monkeypatch.setattr(namespaces, "_EMPTY_WITHIN_S", 0.2)
    await namespaces.ensure(soup, [("n1", 1)])
    sleeper = await asyncio.create_subprocess_exec("ip", "netns", "exec", f"primordia-{soup}-n1", "sleep", "600")
    try:

        async def is_inside() -> bool:
            return sleeper.pid in namespaces.occupants([f"primordia-{soup}-n1"])

        await eventually(is_inside)
        with pytest.raises(TemporaryError, match=rf"primordia-{soup}-n1 is still in use by .* \(pid {sleeper.pid}\)"):
            await namespaces.remove(soup)
    finally:
        sleeper.kill()
        await sleeper.wait()
        await namespaces.remove(soup)


async def test_five_hundred_endpoints_are_applied_and_one_more_costs_little(here: World) -> None:
    endpoints = tuple(Endpoint(f"u{n}", f"10.128.{4 + n // 250}.{1 + n % 250}", f"g{n // 2}") for n in range(500))
    guest = await here.guest(1, "g0")
    clock = asyncio.get_running_loop().time
    for what, wanted in (("500 endpoints", endpoints), ("one more", (*endpoints, guest.endpoint))):
        begun = clock()
        await here.network.apply(NetworkState(wanted))
        print(f"apply, {what}: {(clock() - begun) * 1000:.1f} ms")
    listed = await command.run(["nft", "list", "set", "inet", "primordia", "sources"], netns=here.n1.fd)
    assert listed.text().count(" . ") == 502  # 501 elements and the set's type

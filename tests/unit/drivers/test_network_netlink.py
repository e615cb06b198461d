"""Netlink messages and /proc tables: what is built is what is read, and what others wrote is read as they meant it."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Interface

from hypothesis import given
from hypothesis import strategies as st

from primordia.drivers.net_linux import netlink
from primordia.drivers.net_linux.driver import own_addresses
from primordia.drivers.net_linux.listeners import describe_bind_failure, listening_inode
from primordia.drivers.net_linux.netlink import Address, Link, Route
from primordia.drivers.net_linux.routes import repairs
from primordia.drivers.net_linux.taps import GROUP, tap_name
from primordia.ports.network import Endpoint

TCP_TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 00000000:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0000000000000000 100 0 0 10 0
   2: 01004D7F:18EC 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 333 1 0000000000000000 100 0 0 10 0
   3: 01004D7F:18EC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 444 1 0000000000000000 100 0 0 10 0
"""


def test_a_route_that_is_built_is_read_back() -> None:
    route = Route("10.128.0.7", 12, "10.77.0.1")
    assert netlink.parse_route(netlink.host_route(route)) == route


def test_the_routes_of_others_are_not_ours() -> None:
    body = bytearray(netlink.host_route(Route("10.128.0.7", 12, "10.77.0.1")))
    body[5] = 4  # made by a person
    assert netlink.parse_route(bytes(body)) is None


def test_attributes_are_padded_and_read_back() -> None:
    data = netlink.attribute(3, b"abcde") + netlink.attribute(4, b"")
    assert len(data) == 16
    assert netlink.attributes(data) == {3: b"abcde", 4: b""}


@given(st.binary(max_size=64))
def test_attributes_of_any_bytes_end(data: bytes) -> None:
    assert all(len(payload) <= len(data) for payload in netlink.attributes(data).values())


def test_a_link_and_an_address_are_read() -> None:
    link = (
        struct.pack("=BxHiII", 0, 1, 7, 1, 0) + netlink.attribute(3, b"t0\0") + netlink.attribute(27, struct.pack("=I", GROUP))
    )
    assert netlink.parse_link(link) == Link(7, "t0", GROUP, up=True)
    address = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 7)
    assert netlink.parse_address(address) is None
    address += netlink.attribute(2, bytes([192, 0, 2, 9])) + netlink.attribute(4, bytes([192, 0, 2, 255]))
    assert netlink.parse_address(address) == Address(7, IPv4Interface("192.0.2.9/24"), "192.0.2.255")


def test_own_addresses_are_those_it_answers_to_and_the_uplinks_whole_network() -> None:
    addresses = [
        Address(1, IPv4Interface("127.0.0.1/8")),
        Address(2, IPv4Interface("192.0.2.9/24"), "192.0.2.255"),
        Address(3, IPv4Interface("198.18.77.100/24"), "198.18.77.255"),
    ]
    plain = {"127.0.0.1", "192.0.2.9", "192.0.2.255", "198.18.77.100", "198.18.77.255"}
    assert own_addresses(addresses, 0) == plain
    assert own_addresses(addresses, 3) == {*plain, "198.18.77.0/24"}


def test_only_what_lacks_is_mended_and_only_where_there_is_a_tap() -> None:
    fine, down, unrouted, moved, absent = (Endpoint(f"u{n}", f"10.128.0.{n}", "g") for n in range(1, 6))
    links = [Link(n, tap_name(f"u{n}"), GROUP, up=n != 2) for n in range(1, 5)]
    routes = [Route("10.128.0.1", 1, "10.77.0.1"), Route("10.128.0.2", 2, "10.77.0.1"), Route("10.128.0.4", 9, "10.77.0.1")]
    found = repairs((fine, down, unrouted, moved, absent), links, routes, "10.77.0.1")
    assert [(one.endpoint.uid, one.index, one.link, one.route) for one in found] == [
        ("u2", 2, True, False),
        ("u3", 3, False, True),
        ("u4", 4, False, True),
    ]


def test_the_listener_on_a_port_is_found_by_its_address_or_by_all_addresses() -> None:
    assert listening_inode(TCP_TABLE, "127.0.0.1", 8080) == 111
    assert listening_inode(TCP_TABLE, "127.77.0.1", 8080) == 0
    assert listening_inode(TCP_TABLE, "127.77.0.1", 6379) == 222
    assert listening_inode(TCP_TABLE, "127.77.0.1", 6380) == 444
    assert listening_inode("", "127.77.0.1", 6380) == 0


def test_a_failed_bind_is_a_sentence_that_names_the_port() -> None:
    for number, words in ((errno.EADDRNOTAVAIL, "no address of this machine"), (errno.EACCES, "Permission denied")):
        said = describe_bind_failure("127.77.0.1", 6379, OSError(number, ""))
        assert "127.77.0.1:6379" in said
        assert words in said

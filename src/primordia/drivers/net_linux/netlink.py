"""The little of rtnetlink that a node needs: links, addresses, routes and permanent neighbours, of IPv4 only.

Why not the `ip` program: a TAP takes four changes, and starting a process for them costs a hundred times what the kernel
needs to make them. Builders and parsers are pure; `Netlink` is one socket that sends and waits. The kernel answers in the
same system call, so nothing here blocks.

Formats: rtnetlink(7), and linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from primordia.kit.errors import PrimordiaError

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH = 28
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _CREATE = 0x100, 0x400
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_GROUP = 1, 3, 4, 27
_IFA_LOCAL, _IFA_BROADCAST, _IFA_ADDRESS = 2, 4, 1
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 6, 7
_NDA_DST, _NDA_LLADDR = 1, 2
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_RT_TABLE_MAIN, _RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RTN_UNICAST, _RTN_UNREACHABLE = 254, 0, 253, 1, 7
_LAST_RESORT = 0xFFFFFFF0
_NUD_PERMANENT = 0x80
_ADDRESS_CHANGES = 0x10  # RTMGRP_IPV4_IFADDR
_LARGEST_ANSWER = 1 << 17

OUR_ROUTES = 80
"""Protocol number of the routes we make (the upper half of a byte is free for programs), to tell them from others'."""

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")


class NetlinkError(PrimordiaError):
    """The kernel refused a change of links or routes; `number` is its errno."""

    reason = "NetworkRefused"

    def __init__(self, doing: str, number: int) -> None:
        super().__init__(f"The kernel refused to {doing}: {os.strerror(number)}.")
        self.number = number


@dataclass(frozen=True)
class Link:
    """An interface; `group` is the kernel's interface group number."""

    index: int
    name: str
    group: int
    up: bool


@dataclass(frozen=True)
class Address:
    """An address of the interface with that index, with its prefix length and broadcast address (or empty)."""

    index: int
    interface: IPv4Interface
    broadcast: str = ""


@dataclass(frozen=True)
class Route:
    """A /32 route of ours, to `address` by the interface with index `index`."""

    address: str
    index: int
    source: str


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data`; a length that does not fit ends it."""
    found: dict[int, bytes] = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            break
        found[kind & 0x3FFF] = data[_ATTRIBUTE.size : length]
        data = data[length + (-length % 4) :]
    return found


def link_change(index: int, mac: str, mtu: int, group: int) -> bytes:
    """Body of RTM_NEWLINK: MAC, MTU and group of an existing link, ARP off (its only neighbour is known), link up."""
    head = _IFINFO.pack(socket.AF_UNSPEC, 0, index, _IFF_UP | _IFF_NOARP, _IFF_UP | _IFF_NOARP)
    return (
        head
        + attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
        + attribute(_IFLA_MTU, struct.pack("=I", mtu))
        + attribute(_IFLA_GROUP, struct.pack("=I", group))
    )


def host_route(route: Route) -> bytes:
    """Body of RTM_NEWROUTE: a /32 on the link itself, in the main table."""
    head = _ROUTE.pack(socket.AF_INET, 32, 0, 0, _RT_TABLE_MAIN, OUR_ROUTES, _RT_SCOPE_LINK, _RTN_UNICAST, 0)
    return (
        head
        + attribute(_RTA_DST, IPv4Address(route.address).packed)
        + attribute(_RTA_OIF, struct.pack("=i", route.index))
        + attribute(_RTA_PREFSRC, IPv4Address(route.source).packed)
    )


def unreachable_route(network: IPv4Network) -> bytes:
    """Body of RTM_NEWROUTE: what no other route leads to is refused, instead of following the default route."""
    head = _ROUTE.pack(
        socket.AF_INET, network.prefixlen, 0, 0, _RT_TABLE_MAIN, OUR_ROUTES, _RT_SCOPE_UNIVERSE, _RTN_UNREACHABLE, 0
    )
    return (
        head + attribute(_RTA_DST, network.network_address.packed) + attribute(_RTA_PRIORITY, struct.pack("=I", _LAST_RESORT))
    )


def permanent_neighbour(index: int, address: str, mac: str) -> bytes:
    """Body of RTM_NEWNEIGH: an entry that is never asked for and never expires."""
    head = _NEIGHBOUR.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, _RTN_UNICAST)
    return head + attribute(_NDA_DST, IPv4Address(address).packed) + attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))


def parse_link(body: bytes) -> Link:
    """The link of an RTM_NEWLINK answer."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body[_IFINFO.size :])
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    (group,) = struct.unpack("=I", found.get(_IFLA_GROUP, bytes(4)))
    return Link(index, name, group, bool(flags & _IFF_UP))


def parse_address(body: bytes) -> Address | None:
    """The address of an RTM_NEWADDR answer; None when it has none."""
    _, prefix_length, _, _, index = _IFADDR.unpack_from(body)
    found = attributes(body[_IFADDR.size :])
    own = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if own is None:
        return None
    broadcast = found.get(_IFA_BROADCAST)
    return Address(
        index,
        IPv4Interface((IPv4Address(own), prefix_length)),
        str(IPv4Address(broadcast)) if broadcast else "",
    )


def parse_route(body: bytes) -> Route | None:
    """Our route of an RTM_NEWROUTE answer; None for the routes of others."""
    family, length, _, _, table, protocol, *_ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])
    if (family, length, table, protocol) != (socket.AF_INET, 32, _RT_TABLE_MAIN, OUR_ROUTES) or _RTA_OIF not in found:
        return None
    (index,) = struct.unpack("=i", found[_RTA_OIF])
    source = found.get(_RTA_PREFSRC)
    return Route(str(IPv4Address(found[_RTA_DST])), index, str(IPv4Address(source)) if source else "")


class Netlink:
    """A socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = itertools.count(1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def links(self) -> list[Link]:
        """Every interface."""
        return [parse_link(body) for body in self._dump(RTM_GETLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0))]

    def addresses(self) -> list[Address]:
        """Every IPv4 address."""
        bodies = self._dump(RTM_GETADDR, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0))
        return [address for body in bodies if (address := parse_address(body)) is not None]

    def routes(self) -> list[Route]:
        """The routes that we made."""
        bodies = self._dump(RTM_GETROUTE, _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))
        return [route for body in bodies if (route := parse_route(body)) is not None]

    def set_up_link(self, index: int, *, mac: str, mtu: int, group: int) -> None:
        """Give an interface its MAC, MTU and group, and bring it up."""
        # A MAC is changed while the link is down, and the group must be there before the first packet: one message
        # carries all, and the kernel applies the flags last.
        self._change(RTM_NEWLINK, 0, link_change(index, mac, mtu, group), f"set up interface {index}")

    def replace_route(self, route: Route) -> None:
        """Make the route, in place of any other to that address."""
        doing = f"route {route.address} from {route.source} by interface {route.index}"
        self._change(RTM_NEWROUTE, _CREATE | _REPLACE, host_route(route), doing)

    def remove_route(self, route: Route) -> None:
        """Remove a route of ours."""
        self._change(RTM_DELROUTE, 0, host_route(route), f"remove the route to {route.address}")

    def close_off(self, network: IPv4Network) -> None:
        """Refuse what goes to that network and has no route of its own."""
        self._change(RTM_NEWROUTE, _CREATE | _REPLACE, unreachable_route(network), f"close {network} off")

    def replace_neighbour(self, index: int, address: str, mac: str) -> None:
        """Make the permanent neighbour entry."""
        body = permanent_neighbour(index, address, mac)
        self._change(RTM_NEWNEIGH, _CREATE | _REPLACE, body, f"set the neighbour {address} of interface {index}")

    def _change(self, kind: int, flags: int, body: bytes, doing: str) -> None:
        for _ in self._exchange(kind, _REQUEST | _ACK | flags, body, doing):
            pass

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        return list(self._exchange(kind, _REQUEST | _DUMP, body, "list its network configuration"))

    def _exchange(self, kind: int, flags: int, body: bytes, doing: str) -> Iterator[bytes]:
        """Send one request and yield the bodies of its answers, until the kernel says that it is done."""
        sequence = next(self._sequence)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body)
        while True:
            data = self._socket.recv(_LARGEST_ANSWER)
            while data:
                length, answer, _, number, _ = _HEADER.unpack_from(data)
                payload, data = data[_HEADER.size : length], data[length + (-length % 4) :]
                if number != sequence:
                    continue
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    (error,) = struct.unpack_from("=i", payload)
                    if error:
                        raise NetlinkError(doing, -error)
                    return
                yield payload


def address_monitor() -> socket.socket:
    """A non-blocking socket that becomes readable when an IPv4 address comes or goes in this thread's namespace."""
    monitor = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    monitor.bind((0, _ADDRESS_CHANGES))
    return monitor

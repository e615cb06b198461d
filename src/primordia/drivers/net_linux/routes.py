"""A context's way to its node: one interface, one /32 route by it, one permanent neighbour.

Nothing on the link is asked for or learnt: ARP is off, both sides know the other's MAC beforehand. So there is nothing to
poison, and the first packet of a fork is not held up by a question.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from primordia.domain.addresses import mac_of
from primordia.drivers.net_linux import taps
from primordia.drivers.net_linux.netlink import Link, Netlink, Route
from primordia.ports.network import Endpoint

MTU = 1500


@dataclass(frozen=True)
class Repair:
    """What an endpoint's TAP lacks: `link` that it is set up, `route` that it is routed to."""

    endpoint: Endpoint
    index: int
    link: bool
    route: bool


def set_up(netlink: Netlink, index: int, name: str, *, gateway_mac: str) -> None:
    """Set a TAP up; it leads nowhere yet. Harmless when that has been done. Raises NetlinkError."""
    taps.harden(name)
    netlink.set_up_link(index, mac=gateway_mac, mtu=MTU, group=taps.GROUP)


def move(netlink: Netlink, index: int, address: str, mac: str, node_address: str) -> None:
    """Route the address by that interface, and no other address any more. Raises NetlinkError."""
    route(netlink, index, address, mac, node_address)
    for stale in netlink.routes():
        if stale.index == index and stale.address != address:
            netlink.remove_route(stale)


def route(netlink: Netlink, index: int, address: str, mac: str, node_address: str) -> None:
    """Route the address by that interface; the node speaks to it from its own address. Raises NetlinkError."""
    netlink.replace_neighbour(index, address, mac)
    netlink.replace_route(Route(address, index, node_address))


def repairs(endpoints: Iterable[Endpoint], links: Iterable[Link], routes: Iterable[Route], node_address: str) -> list[Repair]:
    """What is to be mended, for those endpoints that have a TAP; the others get theirs with their microVM. Pure."""
    link_of = {link.name: link for link in links}
    routed = set(routes)
    found = []
    for endpoint in endpoints:
        link = link_of.get(taps.tap_name(endpoint.tap))
        if link is None:
            continue
        lacks_link = not link.up or link.group != taps.GROUP
        lacks_route = Route(endpoint.address, link.index, node_address) not in routed
        if lacks_link or lacks_route:
            found.append(Repair(endpoint, link.index, lacks_link, lacks_route))
    return found


def mend(netlink: Netlink, repair: Repair, *, gateway_mac: str, node_address: str) -> None:
    """Carry one repair out. Raises NetlinkError."""
    endpoint = repair.endpoint
    if repair.link:
        set_up(netlink, repair.index, taps.tap_name(endpoint.tap), gateway_mac=gateway_mac)
    route(netlink, repair.index, endpoint.address, mac_of(endpoint.address), node_address)

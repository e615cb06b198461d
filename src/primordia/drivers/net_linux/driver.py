"""The network of one node by the kernel's own means: TAPs, /32 routes, one nftables table, listeners for published ports.

The daemon lives in the node's namespace; of the host's it has a descriptor, for two things: to listen on published ports,
and to know the host's addresses, which no guest may reach by way of the uplink.

Safe at every instant: a TAP without an element in the table can send nothing, forwarding is switched on only behind the
table, and a table that an earlier daemon left holds until the first `apply` of this one. A change is one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from primordia.drivers.net_linux import routes, taps
from primordia.drivers.net_linux.netlink import Address, Link, Netlink, address_monitor
from primordia.drivers.net_linux.publish import Publisher
from primordia.drivers.net_linux.ruleset import Place, Ruleset, elements_of, render, render_change
from primordia.kit import command, netns
from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet
from primordia.ports.network import NetworkState, PublicationFault, Tap

_RETRY_S = 5.0
_SETTLE_S = 0.05

log = logging.getLogger(__name__)


class LinuxNetwork:
    """The network port's body on Linux."""

    GATEWAY = "169.254.1.1"
    GATEWAY_MAC = "02:00:00:00:00:01"

    def __init__(
        self,
        host_netns_fd: int | None,
        host_address: str,
        node_address: str,
        soup_cidr: str,
        pod_cidr: str,
        uplink: str | None,
    ) -> None:
        """`host_netns_fd` is None on metal, where the node's namespace is the host's; it stays the caller's.

        Published ports listen on `host_address`. `soup_cidr` holds the nodes' addresses, `pod_cidr` the contexts' of the
        whole soup. `uplink` is the interface of egress; None, or one that is not there, is no egress.
        """
        self._host_netns_fd = host_netns_fd
        self._node_address = node_address
        self._soup_cidr = soup_cidr
        self._pod_cidr = pod_cidr
        self._uplink = uplink
        self._publisher = Publisher(host_address, host_netns_fd)
        self._netlink: Netlink | None = None
        self._loaded: Ruleset | None = None
        self._state: NetworkState | None = None
        self._lock = asyncio.Lock()
        self._tasks = TaskSet("network")
        self._monitors: list[socket.socket] = []
        self._addresses_changed = asyncio.Event()

    async def start(self) -> None:
        """Prepare the node's namespace; harmless when it is prepared.

        Raises PermanentError when the namespace is not the node's, TemporaryError when the filter cannot be made.
        """
        if self._netlink is not None:
            return
        netlink = Netlink()
        try:
            own = {str(address.interface.ip) for address in netlink.addresses()}
            if self._node_address not in own:
                raise PermanentError(
                    f"{self._node_address} is no address of this network namespace.",
                    remedy="Run `primordia up` again: it builds the node's links.",
                    reason="NoNodeAddress",
                )
            # The address of a context that has just died must not be looked for on the uplink, in somebody else's network.
            netlink.close_off(IPv4Network(self._pod_cidr))
            tables = await _nft(["list", "tables", "inet"])
            self._loaded = None  # whatever an earlier daemon left is not known in detail
            if "table inet primordia" not in tables.splitlines():
                await self._load(Ruleset(self._place([], netlink.addresses())))
        except BaseException:
            netlink.close()
            raise
        self._netlink = netlink
        # Only now: before, a packet could have been forwarded unjudged.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._watch_addresses()

    async def open_tap(self, uid: str, address: str = "", mac: str = "") -> Tap:
        """A TAP for the context, up, and routed if it has an address; nothing passes until `apply` knows the endpoint.

        Raises TemporaryError naming the holder when the context's TAP is still held.
        """
        netlink = self._started()
        name = taps.tap_name(uid)
        descriptor = taps.create(name)
        try:
            index = socket.if_nametoindex(name)
            routes.set_up(netlink, index, name, gateway_mac=self.GATEWAY_MAC)
            if address:
                routes.route(netlink, index, address, mac, self._node_address)
        except BaseException:
            os.close(descriptor)
            raise
        return Tap(descriptor, name)

    async def attach_tap(self, uid: str, address: str, mac: str) -> None:
        """Route the address by the TAP that is there, instead of any it had. What else the port says."""
        netlink, name = self._started(), taps.tap_name(uid)
        try:
            index = socket.if_nametoindex(name)
        except OSError as error:
            raise NotFoundError(f"There is no TAP {name}: its microVM has ended.") from error
        routes.move(netlink, index, address, mac, self._node_address)

    async def apply(self, state: NetworkState) -> tuple[PublicationFault, ...]:
        """Make the kernel equal to `state`: filter in one transaction, then routes of TAPs that are there, then ports.

        Raises TemporaryError when the filter cannot be changed; the one before holds then.
        """
        netlink = self._started()
        async with self._lock:
            links = netlink.links()
            await self._load(Ruleset(self._place(links, netlink.addresses()), elements_of(state)))
            self._state = state
            for repair in routes.repairs(state.endpoints, links, netlink.routes(), self._node_address):
                try:
                    routes.mend(netlink, repair, gateway_mac=self.GATEWAY_MAC, node_address=self._node_address)
                except (PrimordiaError, OSError) as error:  # its microVM is just ending: the TAP goes with it
                    log.info("the route to %s is not mended: %s", repair.endpoint.address, error)
            return await self._publisher.apply(state.publications)

    async def close(self) -> None:
        """Stop the published ports; addresses, routes and filter stay for the running microVMs."""
        loop = asyncio.get_running_loop()
        for monitor in self._monitors:
            loop.remove_reader(monitor)
            monitor.close()
        self._monitors.clear()
        await self._tasks.close()
        await self._publisher.close()
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def _started(self) -> Netlink:
        if self._netlink is None:
            raise TemporaryError("The node's network is not started.", reason="NetworkNotStarted")
        return self._netlink

    def _place(self, links: Iterable[Link], addresses: Iterable[Address]) -> Place:
        local_soup = self._host_netns_fd is not None
        # In a local soup nobody is on the uplink's own network but the program that is the uplink.
        uplink_index = next((link.index for link in links if local_soup and link.name == self._uplink), 0)
        forbidden = own_addresses(addresses, uplink_index)
        if self._host_netns_fd is not None:
            forbidden |= own_addresses(netns.call_in(self._host_netns_fd, _list_addresses), 0)
        return Place(self._soup_cidr, self._pod_cidr, self._uplink, forbidden)

    async def _load(self, wanted: Ruleset) -> None:
        """Bring the kernel's table to `wanted`, by the difference if we know what is loaded."""
        change = render_change(self._loaded, wanted) if self._loaded is not None else None
        if change == "":
            return
        if change is not None:
            with contextlib.suppress(TemporaryError):  # somebody else changed the table: replace it whole
                await _nft(["-f", "-"], change)
                self._loaded = wanted
                return
        self._loaded = None
        await _nft(["-f", "-"], render(wanted))
        self._loaded = wanted

    def _watch_addresses(self) -> None:
        self._monitors.append(address_monitor())
        if self._host_netns_fd is not None:
            self._monitors.append(netns.call_in(self._host_netns_fd, address_monitor))
        for monitor in self._monitors:
            asyncio.get_running_loop().add_reader(monitor, self._drain, monitor)
        self._tasks.start(self._follow_addresses(), name="follow addresses")

    def _drain(self, monitor: socket.socket) -> None:
        """What changed does not matter, only that something did; a lost message (ENOBUFS) says so as well."""
        with contextlib.suppress(OSError):
            while True:
                monitor.recv(65536)
        self._addresses_changed.set()

    async def _follow_addresses(self) -> None:
        """Keep the forbidden addresses those that the node and the host have."""
        while True:
            await self._addresses_changed.wait()
            await asyncio.sleep(_SETTLE_S)
            self._addresses_changed.clear()
            try:
                async with self._lock:
                    if self._state is not None:
                        netlink = self._started()
                        place = self._place(netlink.links(), netlink.addresses())
                        await self._load(Ruleset(place, elements_of(self._state)))
            except PrimordiaError as error:
                log.warning("the node's or host's addresses changed, and the filter could not follow yet: %s", error)
                await asyncio.sleep(_RETRY_S)
                self._addresses_changed.set()


def own_addresses(addresses: Iterable[Address], uplink_index: int) -> frozenset[str]:
    """What a machine with these addresses answers to; of the interface with `uplink_index`, its whole network. Pure."""
    found = set()
    for address in addresses:
        found.add(str(address.interface.ip))
        if address.broadcast:
            found.add(str(IPv4Address(address.broadcast)))
        if address.index == uplink_index:
            found.add(str(address.interface.network))
    return frozenset(found)


def _list_addresses() -> list[Address]:
    with contextlib.closing(Netlink()) as netlink:
        return netlink.addresses()


async def _nft(arguments: list[str], text: str = "") -> str:
    try:
        return (await command.run(["nft", *arguments], stdin=text.encode(), timeout_s=30)).text()
    except command.CommandError as error:
        raise TemporaryError(
            f"The node's packet filter could not be changed: {error.message}",
            remedy="`primordia doctor` says what is missing.",
            reason="FilterFailed",
        ) from error

"""A small world of real kernel objects for network tests: a soup's namespaces, a host, the world beyond it, and guests.

A guest is a network namespace whose interface is joined to the TAP under test by a thread that copies packets, as a VMM
does. So what a guest can and cannot do is tried with ordinary sockets made inside it. Nothing here touches the machine's
own network: also the "host" is a namespace.

    guest eth0 == copying thread == TAP | node n1: wire0 -- switch -- wire0 :node n2
                                          egress0 == slirp4netns | host: out0 -- out0 :world
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from primordia.domain.addresses import mac_of
from primordia.drivers.net_linux.driver import LinuxNetwork
from primordia.host import namespaces, toolchain
from primordia.host.soup import netns_name
from primordia.kit import command, netns
from primordia.kit.paths import cache_dir
from primordia.ports.network import Endpoint, Tap
from primordia.supervisor import uplink

T = TypeVar("T")

SOUP_CIDR, POD_CIDR = "10.77.0.0/16", "10.128.0.0/9"
HOST_OUTSIDE, WORLD = "192.168.99.1", "192.168.99.2"
HOST_ADDRESS = "127.77.0.1"
PATIENCE_S = 20.0

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TCP segmentation over IPv4 and IPv6
_numbers = itertools.count(1)


@contextlib.contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """Be in that namespace: the calling thread, and whatever it starts meanwhile."""
    before = netns.open_current()
    try:
        netns.enter(descriptor)
        yield
    finally:
        netns.enter(before)
        os.close(before)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds; fails when it does not for long."""
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110 - the kernel sends no event for what is waited for
            await asyncio.sleep(0.05)


class Space:
    """A network namespace of the test's own, or one that exists."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = netns.open_named(name)

    @classmethod
    async def create(cls) -> Self:
        """A new one, with `lo` up."""
        name = f"ptest-{os.getpid()}-{next(_numbers)}"
        await command.run(["ip", "netns", "add", name])
        await command.run(netns.argv_in(name, ["ip", "link", "set", "lo", "up"]))
        return cls(name)

    async def remove(self) -> None:
        """Delete the namespace."""
        self.close()
        await command.run(["ip", "netns", "delete", self.name])

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def call(self, function: Callable[[], T]) -> T:
        """The function's result, called in the namespace."""
        return netns.call_in(self.fd, function)

    async def ip(self, words: str) -> None:
        """Run `ip` on the namespace."""
        await command.run(netns.argv_in(self.name, ["ip", *words.split()]))

    def new_socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A non-blocking IPv4 socket that lives in the namespace."""
        return self.call(lambda: socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK))

    def listener(self, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A listening socket."""
        made = self.new_socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(64)
        return made

    async def reach(self, address: str, port: int, *, timeout_s: float = 2.0) -> str:
        """What becomes of a connection attempt: open, refused, denied (an ICMP error), or silence."""
        with self.new_socket() as client:
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.get_running_loop().sock_connect(client, (address, port))
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "silence"
            except OSError as error:
                if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES):
                    return "denied"
                raise
        return "open"


@contextlib.asynccontextmanager
async def echo(space: Space, port: int, address: str = "0.0.0.0") -> AsyncIterator[None]:
    """A server in the namespace that sends back what it gets, and ends its side when the client has ended its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, sock=space.listener(port, address))
    try:
        yield
    finally:
        server.close()


class Guest(Space):
    """The far side of a TAP."""

    endpoint: Endpoint
    tap: Tap

    async def attach(self, tap: Tap, endpoint: Endpoint) -> None:
        """Join the TAP, and configure the inside as the agent does."""
        self.tap, self.endpoint = tap, endpoint
        self._inner = self.call(_inner_tap)
        for descriptor in (tap.fd, self._inner):
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=_copy_packets, args=(tap.fd, self._inner, self._stop_read), daemon=True)
        self._thread.start()
        self.call(lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1"))
        gateway, mac = LinuxNetwork.GATEWAY, LinuxNetwork.GATEWAY_MAC
        await self.ip(f"link set eth0 address {mac_of(endpoint.address)} arp off up")
        await self.ip(f"address add {endpoint.address}/32 dev eth0")
        await self.ip(f"route add {gateway} dev eth0 scope link")
        await self.ip(f"route add default via {gateway} dev eth0")
        await self.ip(f"neighbour add {gateway} lladdr {mac} dev eth0 nud permanent")

    def end(self) -> None:
        """What the end of a VMM does: the TAP loses its last holder."""
        if self._thread.is_alive():
            os.write(self._stop_write, b"x")
            self._thread.join()
            for descriptor in (self.tap.fd, self._inner, self._stop_read, self._stop_write):
                os.close(descriptor)

    async def remove(self) -> None:
        """End, then delete the namespace."""
        self.end()
        await super().remove()


def _inner_tap() -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("=16sH22x", b"eth0", _TAP_NO_PI_VNET_HDR))
    return descriptor


def _copy_packets(one: int, other: int, stop: int) -> None:
    poll = select.poll()
    for descriptor in (one, other, stop):
        poll.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == stop:
                return
            # EAGAIN, EIO, EINVAL, ENOBUFS: a packet is lost, as on any wire.
            with contextlib.suppress(OSError):
                while True:
                    packet = os.read(descriptor, 1 << 17)
                    with contextlib.suppress(OSError):
                        os.write(other if descriptor == one else one, packet)


@dataclass
class World:
    """Two nodes, a host, and the world beyond. The test itself is in node n1's namespace."""

    n1: Space
    n2: Space
    host: Space
    beyond: Space
    network: LinuxNetwork
    uplink: subprocess.Popen[bytes] | None = None
    guests: list[Guest] = field(default_factory=list)

    async def guest(self, number: int, group: str, *, egress: bool = False) -> Guest:
        """A new guest behind a new TAP; it can reach nothing before `apply`."""
        endpoint = Endpoint(f"uid-{number}", f"10.128.0.{number}", group, egress)
        guest = await Guest.create()
        tap = await self.network.open_tap(endpoint.uid, endpoint.address, mac_of(endpoint.address))
        self.guests.append(guest)
        await guest.attach(tap, endpoint)
        return guest

    async def start_uplink(self) -> None:
        """Start node n1's uplink as its supervisor does, and wait until its interface is there."""
        tools = await toolchain.ensure(cache_dir(), lambda step: None)
        argv = uplink.slirp4netns_argv(tools.slirp4netns, self.n1.name)
        nowhere = subprocess.DEVNULL
        self.uplink = self.host.call(lambda: subprocess.Popen(argv, stdin=nowhere, stdout=nowhere, stderr=nowhere))
        await eventually(lambda: _has_uplink(self.n1))

    def end_uplink(self) -> None:
        """Kill the uplink."""
        if self.uplink is not None:
            self.uplink.kill()
            self.uplink.wait()
            self.uplink = None

    def another_network(self) -> LinuxNetwork:
        """A driver for the same node, as the next daemon makes it."""
        return make_network(self.host.fd)


def make_network(host_fd: int) -> LinuxNetwork:
    """The driver of node n1."""
    return LinuxNetwork(host_fd, HOST_ADDRESS, "10.77.0.1", SOUP_CIDR, POD_CIDR, uplink.INTERFACE)


@contextlib.asynccontextmanager
async def world(*, with_uplink: bool = False) -> AsyncIterator[World]:
    """Build it all, be in node n1, and take all away again."""
    soup = f"ptest{os.getpid()}x{next(_numbers)}"
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(namespaces.remove, soup)
        await namespaces.ensure(soup, [("n1", 1), ("n2", 2)], pod_cidr=POD_CIDR)
        n1, n2 = Space(netns_name(soup, "n1")), Space(netns_name(soup, "n2"))
        stack.callback(n1.close)
        stack.callback(n2.close)
        host, beyond = await Space.create(), await Space.create()
        stack.push_async_callback(host.remove)
        stack.push_async_callback(beyond.remove)
        await host.ip(f"link add out0 type veth peer name out0 netns {beyond.name}")
        for space, address in ((host, HOST_OUTSIDE), (beyond, WORLD)):
            await space.ip(f"address add {address}/24 dev out0")
            await space.ip("link set out0 up")
        built = World(n1, n2, host, beyond, make_network(host.fd))
        stack.callback(built.end_uplink)
        n1.call(_without_reverse_path_check)
        if with_uplink:
            await built.start_uplink()
        stack.enter_context(inside(n1.fd))
        stack.push_async_callback(_end_world, built)
        await built.network.start()
        yield built


def _without_reverse_path_check() -> None:
    """So that what the driver sets counts, and not what this machine's kernel gives to new namespaces."""
    for which in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{which}/rp_filter").write_text("0")


async def _has_uplink(node: Space) -> bool:
    found = (await namespaces.look(node.name)).interfaces.get(uplink.INTERFACE)
    return found is not None and bool(found.addresses)


async def _end_world(built: World) -> None:
    await built.network.close()
    for guest in built.guests:
        await guest.remove()

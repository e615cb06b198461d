"""The network of a local soup on this machine: one namespace for each node, joined to a switch by a wire that can be cut.

    primordia-S-switch   bridge0 with port1, port2, ...
    primordia-S-NODE     wire0 (the other end of portI): 10.77.x.y/16

Built by looking first and doing only what lacks, so that any half-made state leads to the whole one, and a second run does
nothing. `plan` is pure: what was seen becomes the commands that are still needed. Only namespaces are ours: whatever is in
them goes with them, and nothing of the host's own network is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primordia.host.soup import netns_name, node_address, node_pod_cidr
from primordia.kit import command, netns
from primordia.kit.errors import InvalidError, TemporaryError

SWITCH = "switch"
WIRE, BRIDGE = "wire0", "bridge0"
SOUP_PREFIX_LENGTH = 16
_NAMES = Path("/run/netns")
_EMPTY_WITHIN_S = 5.0
_ATTEMPTS, _PAUSE_S = 20, 0.1


@dataclass(frozen=True)
class Interface:
    """An interface as `ip -j address` shows it; `peer` is the index of a wire's other end."""

    index: int
    up: bool = False
    peer: int = 0
    master: str = ""
    addresses: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Seen:
    """What a namespace has: interfaces by name, and its routes as (destination, gateway)."""

    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    routes: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Layout:
    """What the soup's network is to be. `nodes` are names and indexes; `pod_cidr` empty means: no routes to contexts."""

    soup: str
    nodes: tuple[tuple[str, int], ...]
    pod_cidr: str = ""

    @property
    def switch(self) -> str:
        return netns_name(self.soup, SWITCH)

    def namespaces(self) -> list[str]:
        """Every namespace, the switch first."""
        return [self.switch, *(netns_name(self.soup, name) for name, _ in self.nodes)]


async def ensure(soup: str, nodes: Sequence[tuple[str, int]], *, pod_cidr: str = "") -> None:
    """Build the namespaces, wires, addresses and routes that lack. Raises CommandError, InvalidError for a bad node name."""
    if any(name == SWITCH for name, _ in nodes):
        raise InvalidError("nodes", f"a node cannot be named {SWITCH!r}: that is the soup's switch.")
    layout = Layout(soup, tuple(nodes), pod_cidr)
    for name in layout.namespaces():
        await _ensure_namespace(name)
    for attempt in range(_ATTEMPTS):
        steps = plan(layout, {name: await look(name) for name in layout.namespaces()})
        try:
            for argv in steps:
                await command.run(argv, timeout_s=20)
        except command.CommandError:
            # The kernel takes a deleted namespace apart in the background: a wire that was seen may be gone by now.
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(_PAUSE_S)
        else:
            return


def plan(layout: Layout, seen: Mapping[str, Seen]) -> list[list[str]]:
    """The commands that lead from what was seen to the layout, in order. Pure; empty when all is there."""
    switch = seen[layout.switch]
    steps = _up(layout.switch, "lo", switch)
    if BRIDGE not in switch.interfaces:
        steps.append(_ip(layout.switch, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"))
    steps += _up(layout.switch, BRIDGE, switch)
    for name, index in layout.nodes:
        steps += _plan_wire(layout, switch, seen[netns_name(layout.soup, name)], name, index)
    for name, index in layout.nodes:
        steps += _plan_routes(layout, seen[netns_name(layout.soup, name)], name, index)
    return steps


def _plan_wire(layout: Layout, switch: Seen, node: Seen, name: str, index: int) -> list[list[str]]:
    namespace, port = netns_name(layout.soup, name), f"port{index}"
    here, there = node.interfaces.get(WIRE), switch.interfaces.get(port)
    steps = _up(namespace, "lo", node)
    whole = here is not None and there is not None and here.peer == there.index and there.peer == here.index
    if not whole:
        # Deleting one end deletes both: an end without its partner is of another wire.
        steps += [_ip(namespace, "link", "delete", WIRE)] if here else []
        steps += [_ip(layout.switch, "link", "delete", port)] if there else []
        steps.append(_ip(layout.switch, "link", "add", port, "type", "veth", "peer", "name", WIRE, "netns", namespace))
        here = there = None
    if there is None or there.master != BRIDGE:
        steps.append(_ip(layout.switch, "link", "set", port, "master", BRIDGE))
    if there is None or not there.up:
        steps.append(_ip(layout.switch, "link", "set", port, "up"))
    address = f"{node_address(index)}/{SOUP_PREFIX_LENGTH}"
    if here is None or address not in here.addresses:
        steps.append(_ip(namespace, "address", "add", address, "dev", WIRE))
    if here is None or not here.up:
        steps.append(_ip(namespace, "link", "set", WIRE, "up"))
    return steps


def _plan_routes(layout: Layout, node: Seen, name: str, index: int) -> list[list[str]]:
    """The contexts of the other nodes are reached by way of those nodes."""
    if not layout.pod_cidr:
        return []
    wanted = [(node_pod_cidr(layout.pod_cidr, other), node_address(other)) for _, other in layout.nodes if other != index]
    namespace = netns_name(layout.soup, name)
    return [
        _ip(namespace, "route", "replace", destination, "via", gateway, "dev", WIRE)
        for destination, gateway in wanted
        if (destination, gateway) not in node.routes
    ]


def _up(namespace: str, interface: str, seen: Seen) -> list[list[str]]:
    known = seen.interfaces.get(interface)
    return [] if known is not None and known.up else [_ip(namespace, "link", "set", interface, "up")]


def _ip(namespace: str, *words: str) -> list[str]:
    return netns.argv_in(namespace, ["ip", *words])


async def look(namespace: str) -> Seen:
    """What the namespace has. Raises CommandError when there is no such namespace."""
    addresses = await command.run(_ip(namespace, "-j", "address"), timeout_s=20)
    routes = await command.run(_ip(namespace, "-j", "-4", "route"), timeout_s=20)
    return parse(addresses.text(), routes.text())


def parse(addresses: str, routes: str) -> Seen:
    """What `ip -j address` and `ip -j route` said. Pure."""
    listed: list[dict[str, Any]] = json.loads(addresses or "[]")
    interfaces = {
        one["ifname"]: Interface(
            index=one["ifindex"],
            up="UP" in one["flags"],
            peer=one.get("link_index", 0),
            master=one.get("master", ""),
            addresses=frozenset(f"{own['local']}/{own['prefixlen']}" for own in one.get("addr_info", ()) if "local" in own),
        )
        for one in listed
        if "ifname" in one
    }
    routed = frozenset((one["dst"], one["gateway"]) for one in json.loads(routes or "[]") if "gateway" in one)
    return Seen(interfaces, routed)


async def _ensure_namespace(name: str) -> None:
    path = _NAMES / name
    if path.exists() and not _is_namespace(path):
        path.unlink()  # the name of one that a reboot, or somebody's unmount, took away
    if not path.exists():
        await command.run(["ip", "netns", "add", name], timeout_s=20)
    descriptor = netns.open_named(name)
    try:
        netns.call_in(descriptor, _without_ipv6)
    finally:
        os.close(descriptor)


def _is_namespace(path: Path) -> bool:
    return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev


def _without_ipv6() -> None:
    """The soup's network is IPv4: without this the kernel gives every link an IPv6 address of its own."""
    for which in ("all", "default"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")


async def remove(soup: str, nodes: Iterable[str] | None = None) -> None:
    """Remove exactly the soup's namespaces and what is in them; harmless when there are none.

    `nodes` None stands for nodes named n1, n2, ... Raises TemporaryError naming the process that still is in one.
    """
    names = _names_of(soup, nodes)
    deadline = time.monotonic() + _EMPTY_WITHIN_S
    while inhabitants := occupants(names):
        if time.monotonic() > deadline:
            pid, name = next(iter(inhabitants.items()))
            raise TemporaryError(
                f"Network namespace {name} is still in use by {_process_name(pid)} (pid {pid}).",
                remedy="End that process, then run the command again.",
                reason="NamespaceInUse",
            )
        await asyncio.sleep(0.05)
    for name in names:
        if _is_namespace(_NAMES / name):
            await command.run(["ip", "netns", "delete", name], timeout_s=20)
        else:
            (_NAMES / name).unlink(missing_ok=True)


def exists(name: str) -> bool:
    """Whether there is such a namespace."""
    return (_NAMES / name).exists() and _is_namespace(_NAMES / name)


def leftovers(soups: Iterable[str]) -> list[str]:
    """Namespaces named as ours that belong to none of `soups`."""
    known = {name for soup in soups for name in _names_of(soup, None)}
    return [name for name in _existing() if name.startswith("primordia-") and name not in known]


def occupants(names: Collection[str]) -> dict[int, str]:
    """The processes that are in these namespaces, by pid."""
    spaces = {(_NAMES / name).stat().st_ino: name for name in names if _is_namespace(_NAMES / name)}
    found = {}
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            name = spaces.get(entry.stat().st_ino)
            if name is not None:
                found[int(entry.parts[2])] = name
    return found


def _names_of(soup: str, nodes: Iterable[str] | None) -> list[str]:
    """The soup's namespaces that exist. A soup `a` must not take those of a soup `a-b` for its own."""
    if nodes is not None:
        wanted = {netns_name(soup, name) for name in (SWITCH, *nodes)}
        return [name for name in _existing() if name in wanted]
    pattern = re.compile(re.escape(netns_name(soup, "")) + rf"(?:{SWITCH}|n[0-9]+)")
    return [name for name in _existing() if pattern.fullmatch(name)]


def _existing() -> list[str]:
    try:
        return sorted(entry.name for entry in _NAMES.iterdir())
    except FileNotFoundError:
        return []


def _process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process"

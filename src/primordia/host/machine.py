"""A real machine as a node: it is one whole, without namespaces, and reaches others by an address of its own.

Local soups follow from their identity file at every `up`. A real machine is told once what it is, when it founds a soup or
joins one, and its node.json is the truth from then on; `up` starts it again after a reboot, `down` stops it. The machine
that founded the soup keeps the authorities' keys and lets the others in.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from dataclasses import dataclass
from typing import Any

import msgspec

from primordia import __version__
from primordia.host.soup import SoupFile, SoupNode, node_config, read_soup, write_config, write_soup
from primordia.host.up import require_root, soup_lock
from primordia.kit import command, ids
from primordia.kit.errors import AlreadyExistsError, InvalidError
from primordia.kit.paths import SoupPaths, cache_dir
from primordia.wire.checks import is_label
from primordia.wire.nodeconfig import NodeConfig, Tools

NO_SLOT = -1
"""Of soups that use no loopback addresses."""


@dataclass(frozen=True)
class Site:
    """Where a machine is: its address, the network around it, and the interface to the outside (empty: none)."""

    address: str
    network: str
    uplink: str


@dataclass(frozen=True)
class FoundOptions:
    """The first machine of a soup. An empty name is the machine's own."""

    soup: str
    address: str
    name: str = ""
    rack: str = "r1"
    segment: str = "s1"
    pod_cidr: str = "10.128.0.0/9"


async def found(options: FoundOptions) -> None:
    """Make this machine the first node of a new soup; `up` then starts it. Harmless when it is that already.

    Raises InvalidError for an address that is not this machine's or a bad name, AlreadyExistsError for another soup.
    """
    require_root()
    paths = SoupPaths.of(options.soup)
    site = await find_site(options.address, options.pod_cidr)
    node = SoupNode(
        name=checked("--name", options.name or machine_name()),
        index=1,
        rack=checked("--rack", options.rack),
        segment=checked("--segment", options.segment),
        engine=True,
        address=site.address,
    )
    async with soup_lock(paths):
        known = read_soup(paths)
        if known is not None and known.nodes != (node,):
            raise AlreadyExistsError(
                f"This machine has a soup {options.soup} already, and it is another one.",
                remedy="Start it with `primordia up` without --address, or delete it with `primordia down --destroy`.",
            )
        soup = known or SoupFile(
            name=options.soup,
            uid=ids.new_uid(),
            slot=NO_SLOT,
            pod_cidr=options.pod_cidr,
            nodes=(node,),
            created_by_version=__version__,
        )
        write_soup(paths, soup)
        place = paths.node(node.name)
        if not place.config.exists():
            config = node_config(soup, node, paths, cache_dir(), Tools())
            place.state.mkdir(parents=True, exist_ok=True)
            write_config(place.config, settled(config, site, authority_dir=str(paths.state / "pki")))


def settled(config: NodeConfig, site: Site, *, authority_dir: str = "") -> NodeConfig:
    """A node's settings with what its place adds. Pure."""
    return msgspec.structs.replace(config, soup_cidr=site.network, uplink=site.uplink, authority_dir=authority_dir)


def machine_name() -> str:
    """The machine's own name, as a node may have it."""
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-") or "node"


def checked(flag: str, value: str) -> str:
    """The value, if it is a label. Raises InvalidError."""
    if not is_label(value):
        raise InvalidError(flag, f"{value[:80]!r} is not a lower-case label.", remedy="Use a-z, 0-9 and dashes.")
    return value


async def find_site(address: str, pod_cidr: str) -> Site:
    """The place of that address of this machine. Raises InvalidError."""
    addresses = await command.run(["ip", "-j", "-4", "address"], timeout_s=20)
    routes = await command.run(["ip", "-j", "-4", "route", "show", "default"], timeout_s=20)
    return parse_site(address, pod_cidr, json.loads(addresses.text() or "[]"), json.loads(routes.text() or "[]"))


def parse_site(address: str, pod_cidr: str, links: list[dict[str, Any]], defaults: list[dict[str, Any]]) -> Site:
    """The same from what `ip -j` said. Pure. Raises InvalidError."""
    own = {entry["local"]: entry["prefixlen"] for link in links for entry in link.get("addr_info", ()) if "local" in entry}
    if address not in own:
        others = ", ".join(each for each in own if not ipaddress.IPv4Address(each).is_loopback) or "none"
        raise InvalidError("--address", f"{address[:40]!r} is no address of this machine; it has {others}.")
    if ipaddress.IPv4Address(address).is_loopback:
        raise InvalidError("--address", f"{address} cannot be reached from other machines.")
    network = ipaddress.IPv4Network(f"{address}/{own[address]}", strict=False)
    if network.overlaps(ipaddress.IPv4Network(pod_cidr)):
        raise InvalidError(
            "--address", f"{network} lies within {pod_cidr}, the addresses of contexts.", remedy="Choose another podCIDR."
        )
    return Site(address, str(network), next((route["dev"] for route in defaults if "dev" in route), ""))


def source_address(towards: str) -> str:
    """The address that this machine has for those who are at `towards`. Sends nothing. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))
        return str(probe.getsockname()[0])

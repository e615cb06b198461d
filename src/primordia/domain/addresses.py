"""Addresses of contexts, and what is derived from them.

A context keeps its address as long as it exists. Allocation goes round the range (next fit), so that an address that
became free is the last to be given again: a peer that still remembers it reaches nobody rather than a stranger.
"""

from __future__ import annotations

from collections.abc import Container
from ipaddress import IPv4Address, IPv4Network

from primordia.kit.errors import CapacityError

FIRST_OWNER_ID = 1_700_000_000
NODE_PREFIX_LENGTH = 19


def allocate(cidr: str, used: Container[str], after: str = "") -> str:
    """The first free address of `cidr` behind `after`, going round.

    The network's own address and the broadcast address are never given. Raises CapacityError when all are in use.
    """
    network = IPv4Network(cidr)
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    size = last - first + 1
    start = int(IPv4Address(after)) + 1 if after else first
    for step in range(size):
        candidate = str(IPv4Address(first + (start - first + step) % size))
        if candidate not in used:
            return candidate
    raise CapacityError(
        f"All {max(size, 0)} addresses of {cidr} are in use.",
        remedy="Delete contexts, or give the node a larger podCIDR.",
        reason="NoFreeAddress",
    )


def node_share(pod_cidr: str, index: int) -> str:
    """The part of the soup's context addresses that belongs to its node number `index`, from 1 on: 8,190 addresses.

    Raises CapacityError when the range is too small for so many nodes.
    """
    network = IPv4Network(pod_cidr)
    if not 1 <= index <= most_nodes(pod_cidr):
        raise CapacityError(
            f"{pod_cidr} has addresses for {most_nodes(pod_cidr)} nodes.", remedy="Found a soup with a larger podCIDR."
        )
    first = int(network.network_address) + ((index - 1) << (32 - NODE_PREFIX_LENGTH))
    return f"{IPv4Address(first)}/{NODE_PREFIX_LENGTH}"


def most_nodes(pod_cidr: str) -> int:
    """How many nodes the soup's range can be divided among."""
    return 1 << max(0, NODE_PREFIX_LENGTH - IPv4Network(pod_cidr).prefixlen)


def mac_of(address: str) -> str:
    """The MAC of a context: locally administered `02:50` and the four bytes of its address."""
    return "02:50:" + ":".join(f"{byte:02x}" for byte in IPv4Address(address).packed)


def owner_id_of(address: str, soup_pod_cidr: str) -> int:
    """The uid and gid its VMM runs as: distinct for every address of the soup, and no account of the machine."""
    offset = int(IPv4Address(address)) - int(IPv4Network(soup_pod_cidr).network_address)
    if offset < 0:
        raise ValueError(f"{address} is not in {soup_pod_cidr}")
    return FIRST_OWNER_ID + offset

"""On real machines the contexts of another node are reached by way of that node: one route for each, from the Node objects.

A local soup has these routes from `up`, which knows all its nodes; here machines come and go. Routes that were made are
remembered by the kernel alone: what lies in the soup's range and leads to no node any more is taken away.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from primordia.kit import command
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.registry.codec import Change
from primordia.registry.informer import Informer
from primordia.wire.resources import Node

log = logging.getLogger("routes")

_AGAIN_S = 60.0
_RETRY_S = 5.0


def wanted_routes(nodes: Iterable[Node], own: str, pod_cidr: str) -> dict[str, str]:
    """From the other nodes' shares of the contexts' addresses to those nodes' addresses; what is no such thing is left out."""
    soup, found = IPv4Network(pod_cidr), {}
    for node in nodes:
        if node.metadata.name == own:
            continue
        try:
            share, address = IPv4Network(node.spec.pod_cidr), IPv4Address(node.status.address)
        except ValueError:  # a node that has not said where it is
            continue
        if share.subnet_of(soup) and share != soup:
            found[str(share)] = str(address)
    return found


def route_commands(wanted: Mapping[str, str], listed: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """What leads from the routes that `ip -j route` listed within the soup's range to the wanted ones. Pure."""
    here = {str(each["dst"]): str(each["gateway"]) for each in listed if "gateway" in each}
    stale = [["ip", "route", "delete", share, "via", here[share]] for share in here if share not in wanted]
    lacking = [share for share in wanted if here.get(share) != wanted[share]]
    return stale + [["ip", "route", "replace", share, "via", wanted[share]] for share in lacking]


class PeerRoutes:
    """One node's. `nodes` is an informer that somebody runs."""

    def __init__(self, nodes: Informer[Node], own: str, pod_cidr: str, clock: Clock) -> None:
        self._nodes = nodes
        self._own = own
        self._pod_cidr = pod_cidr
        self._clock = clock
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Keep the routes until cancelled; also looks by itself now and then, for links come and go."""
        await self._nodes.synced()
        self._nodes.subscribe(self._on_node)
        while True:
            self._wake.clear()
            pause_s = _AGAIN_S
            try:
                await self._settle()
            except PrimordiaError as error:
                log.warning("a route to another node's contexts is missing: %s", error)
                pause_s = _RETRY_S
            await wait_event(self._clock, self._wake, pause_s)

    async def _settle(self) -> None:
        listed = await command.run(["ip", "-j", "-4", "route", "show", "root", self._pod_cidr], timeout_s=20)
        wanted = wanted_routes(self._nodes.items(), self._own, self._pod_cidr)
        for argv in route_commands(wanted, json.loads(listed.text() or "[]")):
            await command.run(argv, timeout_s=20)

    def _on_node(self, change: Change[Node]) -> None:
        if _place(change.old) != _place(change.new):
            self._wake.set()


def _place(node: Node | None) -> object:
    return (node.spec.pod_cidr, node.status.address) if node is not None else None

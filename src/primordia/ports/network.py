"""The network port: addresses, isolation and reach of a node's contexts. Bodies: linux (TAP, routes, nftables), memory.

Every context has one address, point to point with its node; nothing is bridged, so nothing can be spoofed on a shared
link. What may talk to what is one value, `NetworkState`, computed by pure code from the resources and applied as a whole:
the driver makes the kernel equal to it, at once and again after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Endpoint:
    """One context on this node. `group` is its lifeform's uid: members of a group may always talk to each other.

    `link` names the TAP's uid where that is another: a fork that waited had its TAP before it had its context.
    """

    uid: str
    address: str
    group: str
    egress: bool = False
    link: str = ""

    @property
    def tap(self) -> str:
        """The uid by which its TAP was opened."""
        return self.link or self.uid


@dataclass(frozen=True)
class Flow:
    """Addresses in `sources` may open connections to `destination` (all are contexts' addresses, of any node)."""

    destination: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Publication:
    """A port of the node's published addresses that leads to a context; `port` 0 never occurs."""

    port: int
    address: str
    target_port: int
    uid: str


@dataclass(frozen=True)
class NetworkState:
    """All a node's network must be."""

    endpoints: tuple[Endpoint, ...] = ()
    flows: tuple[Flow, ...] = ()
    publications: tuple[Publication, ...] = ()


@dataclass(frozen=True)
class Tap:
    """An open TAP for the VMM; the descriptor belongs to the caller."""

    fd: int
    name: str


@dataclass(frozen=True)
class PublicationFault:
    """A publication that could not be made, and why (as: the port is taken on the host)."""

    publication: Publication
    message: str


class Network(Protocol):
    """The node's network."""

    GATEWAY: str
    GATEWAY_MAC: str

    async def start(self) -> None:
        """Prepare the node's namespace; harmless when it is prepared."""

    async def open_tap(self, uid: str, address: str = "", mac: str = "") -> Tap:
        """A TAP for the context; it vanishes when its last holder (the VMM) closes it.

        Without an address it is up and leads nowhere.
        """

    async def attach_tap(self, uid: str, address: str, mac: str) -> None:
        """Let the TAP lead to this address, and to no other any more. Raises NotFoundError when there is no such TAP."""

    async def apply(self, state: NetworkState) -> tuple[PublicationFault, ...]:
        """Make the kernel equal to `state`, all or nothing for the filter; the faults are of publications only."""

    async def close(self) -> None:
        """Stop the publications of this process; addresses, routes and filters stay for the running microVMs."""

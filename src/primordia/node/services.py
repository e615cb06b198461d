"""What the node's parts share: its configuration and the ports it acts through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from primordia.kit.clock import Clock
from primordia.kit.paths import NodePaths
from primordia.node.addresses import AddressBook
from primordia.node.facts import Host
from primordia.node.images import ImageKeeper
from primordia.node.live import Live
from primordia.node.network import NetworkKeeper
from primordia.node.own_lease import OwnLease
from primordia.node.probes import Prober
from primordia.node.records import Offload, Records
from primordia.node.settings import NodeSettings
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.node.volumes.owned import OwnedVolume
from primordia.ports.guest import Guest, InboundHandler, SecretFile
from primordia.ports.images import Images, RootImage
from primordia.ports.network import Network
from primordia.ports.vmm import Machine, Vmm
from primordia.registry.events import EventRecorder
from primordia.registry.ownership import StartGuard
from primordia.registry.registry import Registry
from primordia.wire.data import SyncResult
from primordia.wire.nodeconfig import NodeConfig
from primordia.wire.resources import Context

Connect = Callable[[Machine], Awaitable[Guest]]
"""Connects to the agent in a machine: opens its channel and says hello. Raises GuestGoneError while it does not answer."""

NamesHandler = Callable[[Live], InboundHandler]
"""Gives the server of a context's `dns` streams."""


@dataclass(frozen=True)
class Way:
    """How a context starts as a fork: its microVM's name, the address that its VMM's user is named by, the name of its
    image's folder, and whether it has waited. `goes_on` says that the image is its own memory: its program runs in it.
    `hand` is the maker's own."""

    machine: str
    slot: str
    frozen: str
    warm: bool
    hand: object
    goes_on: bool = False


GiveAddress = Callable[[Live], None]
"""Gives a context an address of the node's range, if it has none. Raises CapacityError."""


class ForkStarts(Protocol):
    """How a lifeform's context starts as a fork of a template."""

    async def way(self, live: Live, context: Context, root: RootImage) -> Way | None:
        """A way for the context to start, taken for it alone; None where there is no template yet.

        `live` may hold a warm fork then, which its record has to name. Never raises PrimordiaError.
        """

    async def way_on(self, live: Live, root: RootImage) -> Way | str:
        """A way to go on from the memory that was kept of it; else why there is none, as a clause."""

    async def bring_up(self, live: Live, way: Way, files: tuple[SecretFile, ...]) -> None:
        """The microVM, held by `live`, its identity confirmed. Raises PrimordiaError or OSError; `live` may hold it then."""

    async def prepare(self, context: Context, root: RootImage) -> None:
        """Have a template for a context that is to come, if one can be had. Never raises PrimordiaError."""

    def booted(self, context: Context, root: RootImage) -> None:
        """A context had to boot: have a template made for the next one."""


class Memories(Protocol):
    """Keeps the memory of contexts while they are suspended."""

    async def keep(self, live: Live) -> str:
        """Freeze the running context and keep its image; says what was kept. Its microVM stands then, and is to be killed.

        Raises PrimordiaError naming why it could not be kept; it runs then as before.
        """

    async def forget(self, uid: str) -> None:
        """Delete what is kept of a context, if anything."""


SyncVolume = Callable[[OwnedVolume, float], Awaitable[SyncResult]]
"""Returns when the volume is on other racks, or raises PrimordiaError after so many seconds."""


@dataclass
class Services:
    """One node's."""

    config: NodeConfig
    settings: NodeSettings
    paths: NodePaths
    registry: Registry
    vmm: Vmm
    connect: Connect
    network: Network
    network_keeper: NetworkKeeper
    images: Images
    image_keeper: ImageKeeper
    records: Records
    offload: Offload
    addresses: AddressBook
    events: EventRecorder
    clock: Clock
    host: Host
    prober: Prober
    names: NamesHandler | None
    give_address: GiveAddress
    lease: OwnLease | None
    start_guard: StartGuard | None
    fork_starts: ForkStarts | None
    memories: Memories | None
    volumes: VolumeKeeper | None
    no_pool: str
    """Why there are no volumes."""
    start_gate: asyncio.Semaphore
    adopt_gate: asyncio.Semaphore
    sync: SyncVolume | None = None
    """Syncs a volume of this node's; None where nobody copies volumes."""

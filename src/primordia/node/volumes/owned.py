"""A volume that this node writes, as the node's parts share it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from primordia.domain.snapshots import Manifest
from primordia.node.live import Live
from primordia.wire.resources import Volume


@dataclass
class OwnedVolume:
    """`volume` is the object as last seen, `here` whether its disk is in the pool, `newest` the newest snapshot's manifest.

    `lock` is held by whatever must not overlap with anything else about the volume: a cut, a restore, growing. Whoever
    replaces the disk holds it and looks at `is_open` first. Each of `on_cut` is told of every new snapshot, within the loop,
    by whoever cut it.
    """

    uid: str
    volume: Volume
    users: list[Live]
    """Contexts of this node that have it as their data."""
    here: bool = False
    newest: Manifest | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    on_cut: list[Callable[[Manifest], None]] = field(default_factory=list)
    opening: Live | None = None
    """The context that is being started with it."""
    measured_s: float = 0.0
    """When it was seen last what it takes of the pool, in boot-time seconds."""
    suspect: bool = False
    """Whether a guest could not mount it."""
    guest_bytes: int = 0
    """The size that the running guest was told; 0 when that is not known."""

    @property
    def live(self) -> Live | None:
        """The context whose microVM has the disk open; None when nothing has."""
        return next((live for live in self.users if live.machine is not None), None)

    @property
    def is_open(self) -> bool:
        """Whether a microVM has the disk open, or is about to."""
        return self.opening is not None or self.live is not None

    @property
    def is_handed_over(self) -> bool:
        """Whether another node is to have it: nothing opens it here any more."""
        handover = self.volume.status.handover
        return handover is not None and handover.epoch == self.epoch

    @property
    def title(self) -> str:
        """How logs and errors name it."""
        return f"{self.volume.metadata.namespace}/{self.volume.metadata.name}"

    @property
    def epoch(self) -> int:
        """The one in which it may be written."""
        return self.volume.status.epoch

"""What every handler works with, and the limits that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from primordia.api.hosts import Boxes, VolumeHosts
from primordia.kit.clock import Clock
from primordia.kit.metrics import Metrics
from primordia.ports.contexts import Contexts
from primordia.registry.informer import Informer
from primordia.registry.registry import Registry
from primordia.wire.resources import Lifeform


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    body_bytes: int = 1024 * 1024
    """A JSON body, or a patch."""
    yaml_bytes: int = 256 * 1024
    """A YAML body: reading it costs ten times as much."""
    request_s: float = 30.0
    """A request that is no stream."""
    fork_s: float = 120.0
    """A claim or fork: an empty pool may mean a boot, and many children take their time."""
    watch_bytes: int = 4 * 1024 * 1024
    """What may wait for a slow watcher before it is dropped."""
    bookmark_s: float = 15.0
    """At most one bookmark in this time, and only where nothing else was told."""
    stream_frame_bytes: int = 4 * 1024 * 1024
    """One WebSocket message."""
    ping_s: float = 15.0
    """Between pings to the client of an exec or port-forward, so that one that vanished is noticed."""


@dataclass(frozen=True)
class Services:
    """The API's collaborators. `contexts` are this node's; `on_node` gives those of any node, by its name.

    Without `boxes` claims and forks are refused, without `volumes` whatever is asked of a volume's content.
    """

    registry: Registry
    contexts: Contexts
    on_node: Callable[[str], Contexts]
    lifeforms: Informer[Lifeform]
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    boxes: Boxes | None = None
    volumes: VolumeHosts | None = None

    @property
    def clock(self) -> Clock:
        """The registry's clock."""
        return self.registry.clock

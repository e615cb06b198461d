"""Who makes boxes and forks, and who has volumes: every node's body of those ports, and which is asked first for a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from primordia.domain.claiming import Host, order
from primordia.kit.errors import UnsupportedError
from primordia.ports.data import VolumeService
from primordia.ports.forks import Forks
from primordia.registry.informer import Informer
from primordia.wire.conditions import holds
from primordia.wire.demand import demand_of_capacity
from primordia.wire.resources import Node, Template, TemplateNode, Volume


class Boxes:
    """How this server reaches every node's forks, and what it knows of nodes and templates (informers that somebody runs)."""

    def __init__(
        self, local: Forks, on_node: Callable[[str], Forks], nodes: Informer[Node], templates: Informer[Template]
    ) -> None:
        self.local = local
        self.on_node = on_node
        self.nodes = nodes
        self.templates = templates
        self._asking: Counter[tuple[str, str]] = Counter()

    def candidates(self, template: Template) -> tuple[str, ...]:
        """The nodes to ask for a box of the template, best first."""
        there = {each.node: each for each in template.status.nodes}
        return order(self._host(node, template.metadata.name, there.get(node.metadata.name)) for node in self.nodes.items())

    @contextmanager
    def asking(self, template: str, node: str) -> Iterator[None]:
        """While a claim is under way there, its fork is no longer one that waits: the status will say so too late."""
        self._asking[template, node] += 1
        try:
            yield
        finally:
            self._asking[template, node] -= 1

    def _host(self, node: Node, template: str, there: TemplateNode | None) -> Host:
        name = node.metadata.name
        return Host(
            name=name,
            takes=holds(node.status.conditions, "Ready")
            and not node.spec.unschedulable
            and node.metadata.deletion_timestamp is None,
            warm=(there.warm if there is not None else 0) - self._asking[template, name],
            frozen=there is not None and bool(there.digest),
            free_share=_free_share(node),
        )


class VolumeHosts:
    """How this server reaches every node's volumes; `nodes` tells where there is room for a new one.

    `local` are this node's, None where it has no pool; `on_node` gives those of any node, and `volumes` who owns which.
    """

    def __init__(
        self,
        local: VolumeService | None,
        on_node: Callable[[str], VolumeService | None],
        nodes: Informer[Node],
        volumes: Informer[Volume] | None = None,
    ) -> None:
        self._local = local
        self._on_node = on_node
        self._volumes = volumes
        self.nodes = nodes

    def likely_owner(self, name: str, namespace: str) -> str:
        """The node that owned the volume when this server last heard of it; empty where it knows of none."""
        known = self._volumes.get(name, namespace) if self._volumes is not None else None
        return known.status.node if known is not None else ""

    def of(self, node: str) -> VolumeService:
        """A node's, with an empty name this node's. Raises UnsupportedError, TemporaryError (its address is not known)."""
        found = self._on_node(node) if node else self._local
        if found is None:
            raise UnsupportedError(
                f"Node {node} has no pool for volumes." if node else "This node has no pool for volumes.",
                remedy="The condition PoolReady in `primordia node describe` says why.",
            )
        return found

    def roomiest(self) -> str:
        """The node with most room in its pool; empty when none has a pool and is Ready."""
        rooms = [
            (node.status.pool.room_bytes, node.metadata.name)
            for node in self.nodes.items()
            if holds(node.status.conditions, "Ready") and not node.spec.unschedulable and node.status.pool.total_bytes
        ]
        return max(rooms, default=(0, ""))[1]


def _free_share(node: Node) -> float:
    try:
        whole, used = (demand_of_capacity(each).memory_bytes for each in (node.status.allocatable, node.status.allocated))
    except ValueError:
        return 0.0
    return (whole - used) / whole if whole > 0 else 0.0

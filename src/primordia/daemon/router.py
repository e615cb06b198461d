"""Which body of a port reaches a node's contexts or forks: our own node's, or the one that asks the node where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from primordia.kit.errors import TemporaryError
from primordia.registry.informer import Informer
from primordia.wire.resources import Node

T = TypeVar("T")


class Router(Generic[T]):
    """Call it with a node's name. `own` is ours, `nodes` an informer that somebody runs; `remote` takes name and address."""

    def __init__(self, own: str, local: T, nodes: Informer[Node], remote: Callable[[str, str], T]) -> None:
        self._own = own
        self._local = local
        self._elsewhere = elsewhere(nodes, remote)

    def __call__(self, node: str) -> T:
        """The body for that node. Raises TemporaryError when nobody knows where it is."""
        return self._local if node == self._own else self._elsewhere(node)


def elsewhere(nodes: Informer[Node], remote: Callable[[str, str], T]) -> Callable[[str], T]:
    """The same for who never asks for our own node."""

    def find(node: str) -> T:
        known = nodes.get(node)
        if known is None or not known.status.address:
            raise TemporaryError(
                f"Node {node} has not told its address.",
                remedy="See `primordia node ls`, and try again.",
                reason="NodeUnreachable",
            )
        return remote(node, known.status.address)

    return find

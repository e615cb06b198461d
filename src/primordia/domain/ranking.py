"""All nodes in the order in which placement wants to see them, kept up to date one change at a time.

A sorted list beats a heap here: nodes go up and down with every promise, a few thousand entries are one short memmove,
and a walk from the top needs no copies. Nodes that take no lifeforms at all are not in the order.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping

from primordia.domain.placement import NodeView, Request, free_share

_NARROW = 8
"""A selector that leaves less than one node in this many is served from the label's own nodes."""

_Rank = tuple[float, str]
_NO_NODES: Mapping[str, None] = {}


class Ranking:
    """Nodes by name, by label, and by free share of memory. It is what `place` takes."""

    def __init__(self, nodes: Iterable[NodeView] = ()) -> None:
        self._views: dict[str, NodeView] = {}
        self._ranks: dict[str, _Rank] = {}
        self._order: list[_Rank] = []
        self._by_label: dict[tuple[str, str], dict[str, None]] = {}
        self.most_memory = 0
        for node in nodes:
            self.put(node)

    def get(self, name: str) -> NodeView | None:
        """One node."""
        return self._views.get(name)

    def put(self, node: NodeView) -> None:
        """Add a node, or renew what is known of it."""
        before = self._views.get(node.name)
        if before is None or before.labels != node.labels:
            self._unlabel(before)
            for label in node.labels.items():
                self._by_label.setdefault(label, {})[node.name] = None
        self._views[node.name] = node
        rank = (-free_share(node), node.name) if node.takes_new else None
        if rank is not None:
            # It only ever grows: too large a figure makes a walk longer and never wrong.
            self.most_memory = max(self.most_memory, node.allocatable.memory_bytes)
        self._rank(node.name, rank)

    def remove(self, name: str) -> None:
        """Forget a node; harmless when it is not known."""
        self._unlabel(self._views.pop(name, None))
        self._rank(name, None)

    def all(self) -> Iterable[NodeView]:
        """Every node."""
        return self._views.values()

    def candidates(self, request: Request) -> Iterator[NodeView]:
        """See `placement.Ranked`."""
        narrow = self._narrowest(request)
        if narrow is None or len(narrow) * _NARROW > len(self._order):
            order: Iterable[_Rank] = self._order
        else:
            order = sorted(self._ranks[name] for name in narrow if name in self._ranks)
        return (self._views[name] for _, name in order)

    def _narrowest(self, request: Request) -> Mapping[str, None] | frozenset[str] | None:
        sets: list[Mapping[str, None] | frozenset[str]] = [
            self._by_label.get(label, _NO_NODES) for label in request.node_selector.items()
        ]
        if request.beside is not None:
            sets.append(request.beside)
        if request.data_on:
            sets.append(frozenset((request.data_on,)))
        return min(sets, key=len, default=None)

    def _rank(self, name: str, rank: _Rank | None) -> None:
        before = self._ranks.get(name)
        if before == rank:
            return
        if before is not None:
            del self._order[bisect.bisect_left(self._order, before)]
            del self._ranks[name]
        if rank is not None:
            bisect.insort(self._order, rank)
            self._ranks[name] = rank

    def _unlabel(self, node: NodeView | None) -> None:
        if node is None:
            return
        for label in node.labels.items():
            names = self._by_label[label]
            del names[node.name]
            if not names:
                del self._by_label[label]

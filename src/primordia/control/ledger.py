"""What is promised to whom: the demand of every placed lifeform, and the sum on each node.

The ledger is written in the same instant as the decision, before the registry knows of it. So two lifeforms decided one
after the other never get the same memory, however late the caches are.
"""

from __future__ import annotations

from collections.abc import Callable

from primordia.domain.placement import Demand

_NOTHING = Demand()


class Ledger:
    """Promises by lifeform uid. Every operation takes constant time.

    `changed` is told the name of a node whose sum has changed, and whether any part of it became less.
    """

    def __init__(self, changed: Callable[[str, bool], None] | None = None) -> None:
        self._changed = changed
        self._promises: dict[str, tuple[str, Demand]] = {}
        self._sums: dict[str, Demand] = {}

    def promise(self, uid: str, node: str, demand: Demand) -> None:
        """Set what the lifeform holds on the node, in place of what it held anywhere."""
        where, before = self._promises.get(uid, (node, _NOTHING))
        if where != node:
            self.withdraw(uid)
            before = _NOTHING
        self._promises[uid] = (node, demand)
        self._add(node, before, demand)

    def withdraw(self, uid: str) -> None:
        """The lifeform holds nothing any more."""
        promise = self._promises.pop(uid, None)
        if promise is not None:
            self._add(promise[0], promise[1], _NOTHING)

    def held(self, uid: str) -> Demand:
        """What the lifeform holds."""
        return self._promises.get(uid, ("", _NOTHING))[1]

    def node_of(self, uid: str) -> str:
        """Where the lifeform holds something; empty for nowhere."""
        return self._promises.get(uid, ("", _NOTHING))[0]

    def used(self, node: str) -> Demand:
        """The sum of all promises on the node."""
        return self._sums.get(node, _NOTHING)

    def used_by_others(self, node: str, uid: str) -> Demand:
        """The sum of all promises on the node except the lifeform's own."""
        where, held = self._promises.get(uid, ("", _NOTHING))
        return self.used(node) - held if where == node else self.used(node)

    def _add(self, node: str, before: Demand, after: Demand) -> None:
        if before == after:
            return
        self._sums[node] = self.used(node) - before + after
        if self._changed is not None:
            self._changed(node, shrank(before, after))


def shrank(before: Demand, after: Demand) -> bool:
    """Whether anything became free."""
    return after.cpu_milli < before.cpu_milli or after.memory_bytes < before.memory_bytes or after.contexts < before.contexts

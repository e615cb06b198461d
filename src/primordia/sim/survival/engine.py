"""The engine as nodes meet it: a store whose servers may be without a leader, and whose leases have a life of their own.

While there is no leader nothing is answered and no lease ends; the one that comes gives every lease its whole time again.
A remaining time is told in whole seconds, rounded down, and a lease that is being renewed may be revoked all the same: all
three are what etcd was seen to do.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from primordia.domain.lease import LEASES
from primordia.drivers.store_memory import KeyChange, MemoryStore
from primordia.kit.clock import Clock


class SimEngine(MemoryStore):
    """`leaderless` counts the reasons for which there is no leader."""

    def __init__(self, clock: Clock, *, observe: Callable[[int, Sequence[KeyChange]], None]) -> None:
        super().__init__(clock, observe=observe)
        self.leaderless = 0
        self.revoked: set[tuple[str, int]] = set()
        """Nodes, and the lives of theirs that ended while they were renewed."""

    def lose_leader(self) -> None:
        """Nothing is decided any more."""
        self._settle()
        self.leaderless += 1

    def find_leader(self) -> None:
        """One reason less; with the last, every lease begins anew."""
        self.leaderless -= 1
        if not self.leaderless:
            for lease in self._leases.values():
                lease.deadline = self._clock.boottime() + lease.ttl_s

    async def time_to_live(self, lease: int) -> float:
        return float(math.floor(await super().time_to_live(lease)))

    def revoke_early(self, node: str) -> None:
        """End the lease of a node that renews it."""
        item = self._current.get(LEASES + node)
        if item is not None and item.lease:
            self.revoked.add((node, item.create_revision))
            self._end_lease(item.lease)

    def has_lease(self, node: str) -> bool:
        """Whether the node's key is there."""
        return LEASES + node in self._current

    def _settle(self) -> None:
        if not self.leaderless:
            super()._settle()

    async def _expire(self, number: int) -> None:
        while (lease := self._leases.get(number)) is not None:
            left = lease.deadline - self._clock.boottime()
            if self.leaderless:
                await asyncio.sleep(1.0)
            elif left <= 0:
                lease.task = None
                self._end_lease(number)
                return
            else:
                await self._clock.sleep(left)

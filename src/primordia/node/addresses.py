"""The node's addresses: who has which. A context keeps its own as long as it exists.

A fork that waits for a claim holds one, too: its VMM's user is named by it, and its TAP leads to it, so that a claim needs
no change of the network. A box takes it over; a lifeform's context keeps its own, and the fork's stays held beside it.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from primordia.domain.addresses import allocate


class AddressBook:
    """Addresses by uid, of contexts and of forks."""

    def __init__(self, cidr: str) -> None:
        self._cidr = cidr
        self._of: dict[str, str] = {}
        self._last = ""

    def all(self) -> dict[str, str]:
        """Every address, by uid, as it is now."""
        return dict(self._of)

    def hold(self, uid: str, address: str) -> None:
        """What a record says."""
        self._of[uid] = address
        self._last = max(self._last, address, key=lambda each: int(IPv4Address(each)) if each else 0)

    def give(self, uid: str) -> str:
        """The uid's address, a new one if it has none. Raises CapacityError."""
        if uid not in self._of:
            self._of[uid] = self._last = allocate(self._cidr, set(self._of.values()), self._last)
        return self._of[uid]

    def hand_over(self, source: str, target: str) -> str:
        """Give `target` the address of `source`, which has none then; returns it."""
        self._of[target] = self._of.pop(source)
        return self._of[target]

    def free(self, uid: str) -> None:
        """The uid needs none any more."""
        self._of.pop(uid, None)

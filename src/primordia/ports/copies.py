"""The copies port: what one node asks of another about a volume. Bodies: the node itself, and a peer.

Chunks are those of `wire/deltas.py`. Every method raises PrimordiaError: ConflictError where the other's view differs (a stale
epoch, another base, a volume it does not know yet: read again, try again), NodeUnreachable where it does not answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from primordia.wire.copies import Current, Holding, Seed, Taken
from primordia.wire.data import ScrubbedCopy


class CopyPeer(Protocol):
    """Another node, as it answers us."""

    async def holding(self, uid: str, *, wait_s: float = 0.0) -> Holding:
        """What it has of a volume. While it fetches the whole it may take so long to answer: until it has ended."""

    async def deliver(self, uid: str, chunks: AsyncIterator[bytes], *, aside: bool) -> Taken:
        """Send it a delta; once this returns it is durable there. `aside`: it puts aside first what it has beyond the base."""

    def fetch(self, uid: str, root: str, begin: int) -> AsyncIterator[bytes]:
        """The whole content of that root but for the first `begin` bytes of its ranges, as a delta without base."""

    async def seed(self, uid: str, seed: Seed) -> None:
        """Have it fetch the whole; returns at once. `holding` tells how far it is."""

    async def current(self, uid: str, current: Current) -> None:
        """Tell it that its newest snapshot is all there is, as of the stamp it gave. ConflictError where it has another."""

    async def scrub(self, uid: str) -> ScrubbedCopy:
        """Have it read back all it has of the volume, and put aside what is damaged."""


class CopyHolder(Protocol):
    """This node, for the others: the same with `asker`, the node whose certificate the request came with."""

    async def holding(self, asker: str, uid: str, *, wait_s: float = 0.0) -> Holding:
        """See CopyPeer."""

    async def deliver(self, asker: str, uid: str, chunks: AsyncIterator[bytes], *, aside: bool) -> Taken:
        """See CopyPeer. Only from the volume's owner, and only where this node is to hold a copy."""

    def fetch(self, asker: str, uid: str, root: str, begin: int) -> AsyncIterator[bytes]:
        """See CopyPeer. Only for the owner and those who are to hold a copy."""

    async def seed(self, asker: str, uid: str, seed: Seed) -> None:
        """See CopyPeer. Only from the owner."""

    async def current(self, asker: str, uid: str, current: Current) -> None:
        """See CopyPeer. Only from the owner."""

    async def scrub(self, asker: str, uid: str) -> ScrubbedCopy:
        """See CopyPeer. Only from the owner."""

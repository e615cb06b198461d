"""The data port: what the API asks of the node that owns a volume. Bodies: the node itself, and a peer.

A volume is named as its object is. What returned is durable, and whatever fails leaves nothing half done. Every method
raises PrimordiaError with a reason and a remedy: NotFoundError for a volume or snapshot that is not there, ConflictError
(`NotOwner`) where this node does not own it (any more), CapacityError where the pool has no room.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from primordia.wire import data as wire


class VolumeService(Protocol):
    """One node's volumes."""

    async def snapshot(self, namespace: str, name: str, request: wire.SnapshotRequest) -> wire.SnapshotTaken:
        """Cut now. Without a checkpoint's name an unchanged volume answers with its newest snapshot."""

    async def snapshots(self, namespace: str, name: str) -> wire.SnapshotList:
        """What there is, oldest first."""

    async def restore(self, namespace: str, name: str, request: wire.RestoreRequest) -> wire.Restored:
        """Give the disk an old snapshot's content, in a new epoch. What runs with it is stopped meanwhile."""

    async def clone(self, namespace: str, name: str, request: wire.CloneRequest) -> wire.Cloned:
        """A new volume on this node with the same content, in constant time. AlreadyExistsError.

        Of an orphan any node makes one that keeps it, whoever owns the volume.
        """

    async def orphans(self) -> wire.OrphanList:
        """What this node keeps of any volume, and the volume's owner never had; and disks of volumes that are no more."""

    def export(self, namespace: str, name: str, source: str = "") -> AsyncIterator[bytes]:
        """A snapshot's content (`source`: a number or checkpoint; empty: of now), as `wire/imagestream.py` says.

        What is wrong is raised before the first byte.
        """

    async def import_(self, namespace: str, request: wire.ImportRequest, chunks: AsyncIterator[bytes]) -> wire.Imported:
        """A new volume on this node with the content of such a stream. It is seen once its content has been verified."""

    async def sync(self, namespace: str, name: str, request: wire.SyncRequest) -> wire.SyncResult:
        """Return once everything written so far is durable on as many copies as the volume wants.

        At the deadline raises TemporaryError (`SyncTimeout`), naming the nodes that did not answer.
        """

    async def scrub(self, namespace: str, name: str) -> wire.ScrubResult:
        """Read every holder's snapshots back, put aside what is damaged, and have it healed."""

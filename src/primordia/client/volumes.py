"""What a client does with a volume's content: snapshots, checkpoints, restores, clones, and images in files of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from primordia.client.answers import decode
from primordia.client.errors import BrokenAnswerError
from primordia.client.inside import ContextAccess
from primordia.kit.errors import InvalidError
from primordia.wire import data as wire
from primordia.wire.resources import Node, Volume

if TYPE_CHECKING:
    from primordia.client.disk_images import ImageReader, ImageWriter

_MOMENT_S = 150.0
_RESTORE_S = 330.0
_MORE_S = 30.0
_SCRUB_S = 24 * 3600.0

T = TypeVar("T")

Told = Callable[[int, int], None]
"""Told of progress: bytes done, of so many."""


def _quietly(done: int, of: int) -> None:
    return


class VolumeAccess(ContextAccess):
    """The part of the client that works with volumes' content. `source` and `to` are a snapshot's number or a checkpoint."""

    async def snapshot(
        self, name: str, *, checkpoint: str = "", quiesce: bool = False, namespace: str = ""
    ) -> wire.SnapshotTaken:
        """Cut a volume now; with `checkpoint`, under a name that keeps it."""
        body = wire.SnapshotRequest(checkpoint=checkpoint, quiesce=quiesce)
        return await self._ask(name, wire.SNAPSHOTS, body, wire.SnapshotTaken, _MOMENT_S, namespace)

    async def snapshots(self, name: str, *, namespace: str = "") -> tuple[wire.Snapshot, ...]:
        """A volume's snapshots, oldest first."""
        answer = await self.transport.request("GET", self._path(Volume, namespace, name, wire.SNAPSHOTS), timeout_s=_MOMENT_S)
        return decode(wire.SnapshotList, answer).items

    async def restore(self, name: str, to: str, *, namespace: str = "") -> wire.Restored:
        """Give a volume an old snapshot's content. What runs with it is stopped for it, and started again."""
        return await self._ask(name, wire.RESTORE, wire.RestoreRequest(to=to), wire.Restored, _RESTORE_S, namespace)

    async def clone(self, name: str, into: str, *, source: str = "", orphan: str = "", namespace: str = "") -> wire.Cloned:
        """A new volume with the same content (of now, or of `source`), on the same node, in constant time.

        `orphan` (NODE/NUMBER): with what that node keeps of the volume, and its owner never had.
        """
        body = wire.CloneRequest(name=into, source=source, orphan=orphan)
        return await self._ask(name, wire.CLONE, body, wire.Cloned, _MOMENT_S, namespace)

    async def orphans(self, node: str) -> tuple[wire.Orphan, ...]:
        """What a node keeps of volumes, and their owners never had."""
        answer = await self.transport.request("GET", self._path(Node, "", node, wire.ORPHANS), timeout_s=_MOMENT_S)
        return decode(wire.OrphanList, answer).items

    async def sync(self, name: str, *, timeout_s: float = 30.0, namespace: str = "") -> wire.SyncResult:
        """Return once everything written so far is durable on as many copies as the volume wants."""
        body = wire.SyncRequest(timeout_seconds=timeout_s)
        return await self._ask(name, wire.SYNC, body, wire.SyncResult, timeout_s + _MORE_S, namespace)

    async def scrub(self, name: str, *, namespace: str = "") -> wire.ScrubResult:
        """Read every copy back, put aside what is damaged, and have it healed."""
        return await self._ask(name, wire.SCRUB, None, wire.ScrubResult, _SCRUB_S, namespace)

    async def export(
        self, name: str, file: Path, *, source: str = "", namespace: str = "", told: Told = _quietly
    ) -> wire.Snapshot:
        """Write a volume's content into a file: raw, or packed where its name ends in .gz or .zst.

        It is there when it is whole and verified, and not before. Raises DamagedImageError.
        """
        from primordia.client.disk_images import ImageWriter  # slow to import, and rarely needed
        from primordia.wire.deltas import DeltaReader

        path = self._path(Volume, namespace, name, wire.EXPORT)
        params = {"source": source} if source else None
        reader = DeltaReader()
        writer: ImageWriter | None = None
        size = 0
        try:
            async with self.transport.stream("GET", path, params=params, accept="*/*") as content:
                async for chunk in content.iter_any():
                    parts = list(reader.feed(chunk))
                    if writer is None and reader.header is not None:
                        size = reader.header.delta.manifest.size_bytes
                        writer = await asyncio.to_thread(ImageWriter, file, size)
                    for part in parts:
                        assert writer is not None
                        await asyncio.to_thread(writer.put, part)
                        told(part.range.end, size)
            if writer is None or reader.header is None:
                raise BrokenAnswerError("The image ended before it began.", remedy="Try again.")
            reader.close()
            said = reader.header.delta.manifest
            await asyncio.to_thread(writer.finish, said.root)
        except InvalidError as error:
            raise BrokenAnswerError(f"The image arrived damaged ({error.problem}).", remedy="Try again.") from error
        finally:
            if writer is not None:
                await asyncio.to_thread(writer.close)
        return wire.Snapshot(
            number=said.number,
            epoch=said.epoch,
            root=said.root,
            size_bytes=said.size_bytes,
            changed_bytes=0,
            at="",
            checkpoint=said.checkpoint,
        )

    async def import_volume(
        self,
        file: Path,
        name: str,
        *,
        size_bytes: int = 0,
        filesystem: str = "ext4",
        node: str = "",
        namespace: str = "",
        told: Told = _quietly,
    ) -> wire.Imported:
        """A new volume with a file's content (raw, .gz, .zst); `size_bytes` 0 is the file's own size."""
        from primordia.client.disk_images import ImageReader

        image = await asyncio.to_thread(ImageReader, file)
        params = {"size": str(size_bytes), "filesystem": filesystem} | ({"node": node} if node else {})
        path = self._path(Volume, namespace, name, wire.IMPORT)
        async with self.transport.stream("POST", path, params=params, body=_encoded(image, told)) as content:
            return decode(wire.Imported, await content.read())

    async def _ask(
        self, name: str, subresource: str, body: msgspec.Struct | None, kind: type[T], timeout_s: float, namespace: str
    ) -> T:
        path = self._path(Volume, namespace, name, subresource)
        content = msgspec.json.encode(body) if body is not None else b"{}"
        return decode(kind, await self.transport.request("POST", path, body=content, timeout_s=timeout_s))


async def _encoded(image: ImageReader, told: Told) -> AsyncIterator[bytes]:
    """The image as the soup takes it."""
    from primordia.wire.deltas import DeltaWriter

    writer, size = DeltaWriter(), image.delta.manifest.size_bytes
    yield writer.header(image.delta)
    parts = image.parts()
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield await asyncio.to_thread(writer.part, part)
        told(part.range.end, size)
    yield writer.end()

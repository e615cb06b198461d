"""The volumes of another node: its own body of the data port, over its API's paths for nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar
from urllib.parse import quote

import msgspec

from primordia.drivers.contexts_remote.peer import Peer
from primordia.kit.errors import TemporaryError
from primordia.wire import data as wire

ANSWER_WITHIN_S = 130.0
_RESTORE_S = 300.0
_SCRUB_S = 24 * 3600.0
_MORE_S = 10.0
"""The node's own words at its deadline are the better ones."""

T = TypeVar("T")


class RemoteVolumes:
    """The data port's body for one other node.

    Beside what the node itself raises, every method raises NodeUnreachableError when it does not answer.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def snapshot(self, namespace: str, name: str, request: wire.SnapshotRequest) -> wire.SnapshotTaken:
        """See the port."""
        return await self._ask(_path(namespace, name, wire.SNAPSHOTS), request, wire.SnapshotTaken, ANSWER_WITHIN_S)

    async def snapshots(self, namespace: str, name: str) -> wire.SnapshotList:
        """See the port."""
        async with self._peer.download_from(_path(namespace, name, wire.SNAPSHOTS), []) as pieces:
            return self._decoded(b"".join([piece async for piece in pieces]), wire.SnapshotList)

    async def restore(self, namespace: str, name: str, request: wire.RestoreRequest) -> wire.Restored:
        """See the port."""
        return await self._ask(_path(namespace, name, wire.RESTORE), request, wire.Restored, _RESTORE_S)

    async def clone(self, namespace: str, name: str, request: wire.CloneRequest) -> wire.Cloned:
        """See the port."""
        return await self._ask(_path(namespace, name, wire.CLONE), request, wire.Cloned, ANSWER_WITHIN_S)

    async def orphans(self) -> wire.OrphanList:
        """See the port."""
        async with self._peer.download_from(wire.INTERNAL_ORPHANS, []) as pieces:
            return self._decoded(b"".join([piece async for piece in pieces]), wire.OrphanList)

    async def export(self, namespace: str, name: str, source: str = "") -> AsyncIterator[bytes]:
        """See the port."""
        path = _path(namespace, name, wire.EXPORT)
        async with self._peer.download_from(path, [("source", source)]) as pieces:
            async for piece in pieces:
                yield piece

    async def import_(self, namespace: str, request: wire.ImportRequest, chunks: AsyncIterator[bytes]) -> wire.Imported:
        """See the port."""
        params = [("size", str(request.size_bytes)), ("filesystem", request.filesystem)]
        answer = await self._peer.upload_to("POST", _path(namespace, request.name, wire.IMPORT), params, chunks)
        return self._decoded(answer, wire.Imported)

    async def sync(self, namespace: str, name: str, request: wire.SyncRequest) -> wire.SyncResult:
        """See the port."""
        path, within_s = _path(namespace, name, wire.SYNC), request.timeout_seconds + _MORE_S
        return self._decoded(await self._peer.ask(path, msgspec.json.encode(request), within_s), wire.SyncResult)

    async def scrub(self, namespace: str, name: str) -> wire.ScrubResult:
        """See the port."""
        return await self._ask(_path(namespace, name, wire.SCRUB), None, wire.ScrubResult, _SCRUB_S)

    async def _ask(self, path: str, body: msgspec.Struct | None, kind: type[T], within_s: float) -> T:
        content = await self._peer.post(path, msgspec.json.encode(body) if body is not None else b"{}", within_s)
        return self._decoded(content, kind)

    def _decoded(self, content: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise TemporaryError(
                f"Node {self._peer.node} answered in a way that this version does not understand ({error}).",
                remedy="Compare the versions in `primordia get nodes -o wide`.",
                reason="BrokenAnswer",
            ) from error


def _path(namespace: str, name: str, subresource: str) -> str:
    return f"{wire.INTERNAL_VOLUMES}/{quote(namespace, safe='')}/{quote(name, safe='')}/{subresource}"

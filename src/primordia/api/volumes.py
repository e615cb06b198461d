"""What is asked of a volume's content: of any API server, done by the node that owns the volume.

A request that comes by way of another node is for what is here, and is never passed on: two nodes that disagree about whose
a volume is cannot send a request around in circles.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from aiohttp import web

from primordia.api import bodies
from primordia.api.answers import document_answer
from primordia.api.errors import RequestError
from primordia.api.hosts import VolumeHosts
from primordia.api.paths import Target, number
from primordia.api.services import Services
from primordia.api.transfer import send
from primordia.kit.errors import PermanentError, TemporaryError, UnsupportedError
from primordia.ports.data import VolumeService
from primordia.registry import keys
from primordia.wire import data as wire
from primordia.wire.deltas import CONTENT_TYPE
from primordia.wire.problems import InvalidResourceError, Problems
from primordia.wire.resources import Node, Volume

_LARGEST_BYTES = 16 * 1024
_CHUNK = 256 * 1024
_NOT_THERE = ("NotOwner", "NotFound", "NodeUnreachable")
"""What a node says, or is said of it, that has not got the volume; nothing was done then."""
T = TypeVar("T", bound=msgspec.Struct)


async def act(request: web.BaseRequest, target: Target, services: Services) -> web.Response:
    """What takes a moment: snapshots, clones."""
    where = (target.namespace, target.name)
    if target.subresource == wire.CLONE:
        asked = await _read(request, wire.CloneRequest)
        _refuse(wire.problems_of_clone(asked), asked.name)
        place = wire.orphan_place(asked.orphan)
        volumes = await _owner(target, services) if place is None or target.here else _hosts(services).of(place[0])
        return document_answer(await volumes.clone(*where, asked), code=201)
    volumes = await _owner(target, services)
    if request.method == "GET":
        return document_answer(await volumes.snapshots(*where))
    snapshot = await _read(request, wire.SnapshotRequest)
    _refuse(wire.problems_of_snapshot(snapshot), target.name)
    return document_answer(await volumes.snapshot(*where, snapshot), code=201)


async def orphans(target: Target, services: Services) -> web.Response:
    """What one node keeps of volumes that their owners never had."""
    if not target.here:
        await services.registry.get(Node, target.name)
    return document_answer(await _hosts(services).of("" if target.here else target.name).orphans())


async def stream(request: web.BaseRequest, target: Target, services: Services) -> web.StreamResponse:
    """What may take any time; who asked and leaves ends it, but for a restore, which is ended once it was begun."""
    if target.subresource == wire.IMPORT:
        return await _import(request, target, services)
    if target.subresource == wire.SYNC:
        return await _sync(request, target, services)
    volumes = await _owner(target, services)
    where = (target.namespace, target.name)
    match target.subresource:
        case wire.EXPORT:
            return await send(request, volumes.export(*where, request.query.get("source", "")), CONTENT_TYPE)
        case wire.RESTORE:
            restore = await _read(request, wire.RestoreRequest)
            _refuse(wire.problems_of_restore(restore), target.name)
            return document_answer(await volumes.restore(*where, restore))
    return document_answer(await volumes.scrub(*where))


async def _sync(request: web.BaseRequest, target: Target, services: Services) -> web.Response:
    """A sync asks whom the cache takes for the owner, and the engine only where that is not so any more.

    It can do nothing wrong there: what it promises is recorded by a transaction that only the volume's owner passes.
    """
    sync = await _read(request, wire.SyncRequest)
    _refuse(wire.problems_of_sync(sync), target.name)
    likely = "" if target.here else _hosts(services).likely_owner(target.name, target.namespace)
    if likely:
        try:
            return document_answer(await _hosts(services).of(likely).sync(target.namespace, target.name, sync))
        except (TemporaryError, PermanentError) as error:
            if error.reason not in _NOT_THERE:
                raise
    volumes = await _owner(target, services)
    return document_answer(await volumes.sync(target.namespace, target.name, sync))


async def _import(request: web.BaseRequest, target: Target, services: Services) -> web.Response:
    hosts = _hosts(services)
    query = request.query
    asked = wire.ImportRequest(
        name=target.name,
        size_bytes=number(query, "size", most=wire.LARGEST_DISK),
        filesystem=query.get("filesystem", "ext4"),
        node=query.get("node", ""),
    )
    _refuse(wire.problems_of_import(asked), asked.name)
    node = asked.node or hosts.roomiest()
    if not target.here and not node:
        raise TemporaryError("No node has a pool for volumes now.", remedy="See `primordia node ls`.")
    volumes = hosts.of("" if target.here else node)
    chunks = request.content.iter_chunked(_CHUNK)
    done = await volumes.import_(target.namespace, asked, _whole(chunks))
    return document_answer(done, code=201)


async def _whole(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk


async def _owner(target: Target, services: Services) -> VolumeService:
    """The node that owns the volume. Raises NotFoundError, TemporaryError before it has one."""
    hosts = _hosts(services)
    if target.here:
        return hosts.of("")
    volume = await services.registry.get(Volume, target.name, target.namespace)
    if not volume.status.node:
        raise TemporaryError(
            f"{keys.describe(Volume, target.name, target.namespace)} is on no node yet.",
            remedy="It is made where its lifeform first starts.",
        )
    return hosts.of(volume.status.node)


def _hosts(services: Services) -> VolumeHosts:
    if services.volumes is None:
        raise UnsupportedError("This server reaches no volumes.", remedy="Ask another node of the soup.")
    return services.volumes


async def _read(request: web.BaseRequest, kind: type[T]) -> T:
    content = await bodies.read(request, _LARGEST_BYTES)
    try:
        return msgspec.json.decode(content or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RequestError(400, f"The body is not as it should be: {error}.") from error


def _refuse(problems: Problems, name: str) -> None:
    if problems.found:
        raise InvalidResourceError(Volume.KIND, name, problems.found)

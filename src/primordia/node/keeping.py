"""What of the soup this node keeps on its own disk, so that the soup can be made again when all of the engine's data is gone.

That is the soup itself, its nodes, images, templates and secrets, the lifeforms and contexts of this node, those that have no
node, and every volume of which there is data here. Invariant: a file is one object as the engine had it at some moment, whole;
nothing here is read while there is an engine. What changes all the time (phases, lags, the last sync) is no reason to write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.files import write_atomic
from primordia.node.records import Offload
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.resources import (
    BY_PLURAL,
    Context,
    Image,
    Lifeform,
    Node,
    Resource,
    Secret,
    Soup,
    Template,
    Volume,
)

log = logging.getLogger(__name__)

KEPT: tuple[type[Resource], ...] = (Soup, Node, Image, Template, Secret, Lifeform, Context, Volume)
_GATHER_S = 1.0


class Keeping:
    """One node's. `folder` is its own; `offload` runs what blocks."""

    def __init__(self, folder: Path, informers: Informers, clock: Clock, node: str, offload: Offload) -> None:
        self._folder = folder
        self._informers = [informers.of(kind) for kind in KEPT]
        self._synced = informers.synced
        self._clock = clock
        self._node = node
        self._offload = offload
        self._changed: dict[Path, Resource | None] = {}
        self._written: dict[Path, object] = {}
        self._wake = asyncio.Event()

    async def run(self) -> NoReturn:
        """Keep until cancelled."""
        await self._synced()
        for informer in self._informers:
            informer.subscribe(self._on_change)
        try:
            await self._forget_others()
            while True:
                await self._wake.wait()
                await self._clock.sleep(_GATHER_S)
                self._wake.clear()
                changed, self._changed = self._changed, {}
                try:
                    await self._offload(lambda found=changed: self._write(found))  # type: ignore[misc]
                except OSError as error:
                    log.warning("what the soup would be made again from is not kept: %s", error)
                    self._changed = changed | self._changed
        finally:
            for informer in self._informers:
                informer.unsubscribe(self._on_change)

    def _on_change(self, change: Change[Any]) -> None:
        about = change.new or change.old
        if about is None:
            return
        path = place_of(self._folder, about)
        wanted = change.new if change.new is not None and is_kept(change.new, self._node) else None
        gist = gist_of(wanted) if wanted is not None else None
        if path in self._written and self._written[path] == gist:
            return
        self._written[path] = gist
        self._changed[path] = wanted
        self._wake.set()

    def _write(self, changed: dict[Path, Resource | None]) -> None:
        for path, obj in changed.items():
            if obj is None:
                path.unlink(missing_ok=True)
                self._written.pop(path, None)
                continue
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, msgspec.json.encode(obj))

    async def _forget_others(self) -> None:
        """Files of objects that are no more, or that other nodes keep by now."""
        wanted = {path for path, gist in self._written.items() if gist is not None}

        def sweep() -> None:
            for path in self._folder.glob("*/*.json"):
                if path not in wanted:
                    path.unlink(missing_ok=True)

        await self._offload(sweep)


def place_of(folder: Path, obj: Resource) -> Path:
    """The file of an object: by kind and uid."""
    return folder / obj.PLURAL / f"{obj.metadata.uid}.json"


def is_kept(obj: Resource, node: str) -> bool:
    """Whether that node keeps the object."""
    if isinstance(obj, Lifeform):
        return obj.status.node in (node, "")
    if isinstance(obj, Context):
        return obj.spec.node == node
    if isinstance(obj, Volume):
        return node == obj.status.node or node in obj.status.replicas or not obj.status.node
    return True


def gist_of(obj: Resource) -> object:
    """What of an object is worth a write when it changes."""
    meta = msgspec.structs.replace(obj.metadata, resource_version="", managed_fields=None)
    if isinstance(obj, Lifeform):
        return meta, obj.spec, obj.status.node, obj.status.epoch, obj.status.moving, obj.status.moved, obj.status.recovered
    if isinstance(obj, Volume):
        return meta, obj.spec, obj.status.node, obj.status.epoch, obj.status.replicas, obj.status.size_bytes > 0
    if isinstance(obj, Context | Node | Image | Template):
        return meta, obj.spec
    return msgspec.structs.replace(obj, metadata=meta)


def read_kept(folder: Path) -> tuple[list[Resource], list[str]]:
    """Every object that a node kept, and sentences about files that cannot be read."""
    found: list[Resource] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*/*.json")):
        kind = BY_PLURAL.get(path.parent.name)
        try:
            if kind is not None:
                found.append(msgspec.json.decode(path.read_bytes(), type=kind))
        except (OSError, msgspec.MsgspecError) as error:
            problems.append(f"{path} cannot be read: {error}.")
    return found, problems


def kinds_in_order(objects: Iterable[Resource]) -> list[Resource]:
    """Objects in the order of KEPT, then by name."""
    return sorted(objects, key=lambda each: (KEPT.index(type(each)), each.metadata.namespace, each.metadata.name))

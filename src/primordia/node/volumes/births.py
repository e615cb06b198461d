"""New volumes whose content is in the pool before their object exists: clones and imports.

An object without its content would get an empty disk, and nobody would know; content without an object is only room. So the
content comes first, under the uid that the object will have, behind a note on this node's disk that it was begun: whoever finds
such a note later looks whether the object came to be, and deletes what nobody will ever ask for.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from primordia.domain.snapshots import check_volume
from primordia.kit import files
from primordia.kit.errors import AlreadyExistsError, NotFoundError
from primordia.kit.tasks import to_the_end
from primordia.ports.volumes import Volumes
from primordia.registry import keys
from primordia.registry.births import create_with_uid
from primordia.registry.registry import Registry
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Volume
from primordia.wire.volumes import VolumeSpec, VolumeStatus, holder_finalizer, owned_by

log = logging.getLogger(__name__)

_ENDING = ".birth"


class Birth(msgspec.Struct, frozen=True):
    """The note: which object is to be."""

    namespace: str
    name: str


class Births:
    """Those of one node; `notes` is a folder for them, of which what is there now was left by a daemon before this one."""

    def __init__(self, pool: Volumes, registry: Registry, node: str, notes: Path) -> None:
        self._pool = pool
        self._registry = registry
        self._node = node
        self._notes = notes
        self._left = sorted(notes.glob(f"*{_ENDING}"))

    def is_under_way(self, uid: str) -> bool:
        """Whether content of that uid is waiting for its object."""
        return self._place(uid).exists()

    async def want_free(self, namespace: str, name: str) -> None:
        """AlreadyExistsError when there is such a volume: better said before its content is copied."""
        try:
            await self._registry.get(Volume, name, namespace)
        except NotFoundError:
            return
        raise AlreadyExistsError(f"{keys.describe(Volume, name, namespace)} exists already.", remedy="Choose another name.")

    @asynccontextmanager
    async def of(self, namespace: str, name: str) -> AsyncIterator[str]:
        """The uid under which the block makes the content, and then the object; without an object nothing stays."""
        uid = self._registry.new_uid()
        self._notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        note = self._place(uid)
        files.write_atomic(note, msgspec.json.encode(Birth(namespace, name)))
        try:
            yield uid
        except BaseException:
            await to_the_end(self._settle(note))
            raise
        note.unlink(missing_ok=True)

    async def create(self, uid: str, birth: Birth, spec: VolumeSpec, status: VolumeStatus) -> Volume:
        """The object of content that is here, owned by this node."""
        meta = ObjectMeta(name=birth.name, namespace=birth.namespace, uid=uid, finalizers=(holder_finalizer(self._node),))
        fresh = msgspec.structs.replace(owned_by(status, self._node, 1), phase="Available")
        return await create_with_uid(self._registry, Volume(metadata=meta, spec=spec, status=fresh))

    async def clear(self) -> None:
        """Decide what became of every birth whose end the daemon before this one did not live to see."""
        while self._left:
            await self._settle(self._left[-1])
            self._left.pop()

    async def _settle(self, note: Path) -> None:
        """Keep the content whose object exists, and no other."""
        uid = note.name.removesuffix(_ENDING)
        try:
            birth = msgspec.json.decode(note.read_bytes(), type=Birth)
            born = (await self._registry.get(Volume, birth.name, birth.namespace)).metadata.uid == uid
        except (NotFoundError, msgspec.MsgspecError):
            born = False
        if not born:
            await self._pool.destroy(uid)
            log.info("the beginning of a volume, %s, is deleted: it has no object", uid)
        note.unlink(missing_ok=True)

    def _place(self, uid: str) -> Path:
        return self._notes / f"{check_volume(uid)}{_ENDING}"

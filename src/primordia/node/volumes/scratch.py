"""The data of live forks: each child has a clone of its parent's disk, of the moment in which it was frozen.

Such a volume is of this node only. It has no object, no snapshots and no copies, and goes with its fork. In the pool it is
called by the fork's uid; what is cut in the parent's pause, and children are cloned from, by its image, and it goes when they
are made. A clone costs the same whatever the size, so the pause does not grow with the data.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from primordia.kit.errors import PrimordiaError
from primordia.ports.volumes import Volumes

log = logging.getLogger(__name__)

_FORK, _IMAGE = "fork-", "image-"


class ScratchVolumes:
    """Those of one node's pool."""

    def __init__(self, pool: Volumes) -> None:
        self._pool = pool

    def owns(self, volume: str) -> bool:
        """Whether a volume of that name is one of these."""
        return volume.startswith((_FORK, _IMAGE))

    async def of(self, uid: str) -> str:
        """What the volume of that fork is called; empty when it has none."""
        name = f"{_FORK}{uid}"
        return name if await self._pool.find(name) is not None else ""

    async def cut(self, volume: str, image: str) -> None:
        """Keep the disk as it is now, for the children of an image. Raises CapacityError when the pool has no room."""
        await self._pool.clone(volume, f"{_IMAGE}{image}")

    async def give(self, image: str, uid: str) -> Path:
        """A disk for one child. Raises CapacityError."""
        await self._pool.clone(f"{_IMAGE}{image}", f"{_FORK}{uid}")
        return await self._pool.disk(f"{_FORK}{uid}")

    async def drop(self, uid: str) -> None:
        """The fork is gone. Harmless when it had none; what fails is done by the next daemon."""
        await self._destroy(f"{_FORK}{uid}")

    async def drop_image(self, image: str) -> None:
        """All children of it are made."""
        await self._destroy(f"{_IMAGE}{image}")

    async def sweep(self, claimed: Collection[str]) -> None:
        """Delete what an earlier daemon left: of forks that are not `claimed`, and of every image."""
        for info in await self._pool.list():
            if info.name.startswith(_IMAGE) or (info.name.startswith(_FORK) and info.name.removeprefix(_FORK) not in claimed):
                await self._destroy(info.name)

    async def _destroy(self, name: str) -> None:
        try:
            await self._pool.destroy(name)
        except PrimordiaError as error:
            log.error("volume %s cannot be deleted: %s", name, error)

"""The images port without any image: a root is a small file and a digest of its source. For tests of what uses the port."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from pathlib import Path

import msgspec

from primordia.kit.errors import InvalidError, NotFoundError, PrimordiaError
from primordia.ports.images import CachedImage, Progress, RootImage
from primordia.wire.resources import ImageSpec

_CREATED = "2026-01-01T00:00:00Z"


class MemoryImages:
    """Roots are files below `folder`; `builds` counts how many were made, `fail` makes the next builds fail with an error."""

    def __init__(self, folder: Path) -> None:
        self.builds = 0
        self.fail: PrimordiaError | None = None
        self._folder = folder
        self._uses = 0.0
        self._roots: dict[str, CachedImage] = {}
        self._one_at_a_time = asyncio.Lock()

    async def ensure(self, spec: ImageSpec, progress: Progress) -> RootImage:
        """See the port."""
        if (spec.debian is None) == (spec.oci is None):
            raise InvalidError("spec", "exactly one of debian and oci must be given")
        source = msgspec.json.encode((spec.debian, spec.oci)).decode()
        digest = f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
        async with self._one_at_a_time:
            root = await self.find(digest)
            if root is None:
                progress(f"making {source}")
                await asyncio.sleep(0)
                root = self._make(digest, source)
        self._uses += 1
        self._roots[digest] = CachedImage(root, self._uses)
        return dataclasses.replace(root, config=spec.config)

    def _make(self, digest: str, source: str) -> RootImage:
        if self.fail is not None:
            raise self.fail
        self.builds += 1
        path = self._folder / digest.removeprefix("sha256:")
        path.write_bytes(source.encode())
        return RootImage(digest, path, len(source), ImageSpec().config, source, _CREATED)

    async def find(self, digest: str) -> RootImage | None:
        """See the port."""
        known = self._roots.get(digest)
        return known.root if known is not None and known.root.path.exists() else None

    async def scratch(self, path: Path, size_bytes: int) -> None:
        """See the port: a sparse file without a file system."""
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(size_bytes)

    async def list(self) -> tuple[CachedImage, ...]:
        """See the port."""
        return tuple(sorted(self._roots.values(), key=lambda image: image.root.source))

    async def remove(self, digest: str) -> int:
        """See the port."""
        known = self._roots.pop(digest, None)
        if known is None:
            raise NotFoundError(f"The cache has no image {digest}.")
        known.root.path.unlink()
        return known.root.size_bytes

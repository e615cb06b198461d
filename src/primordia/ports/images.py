"""The images port: from a source (Debian packages, OCI) to a read-only root disk that every context shares. Bodies: local.

Content-addressed: a root is named by the digest of its files and of what its source says to run; it is made once, checked,
and never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from primordia.wire.resources import ImageConfig, ImageSpec

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RootImage:
    """A finished root: `digest` is `sha256:...`, `path` a raw ext4 disk, `size_bytes` its blocks in use.

    `config` is what the source says to run; in the answer of `ensure` the spec's own is laid over it.
    """

    digest: str
    path: Path
    size_bytes: int
    config: ImageConfig
    source: str
    created: str


@dataclass(frozen=True)
class CachedImage:
    """A cache entry as `image ls` and `prune` see it; `in_use` is filled in by the caller."""

    root: RootImage
    last_used: float


class Images(Protocol):
    """The machine's image cache, shared by the nodes of a local soup."""

    async def ensure(self, spec: ImageSpec, progress: Progress) -> RootImage:
        """The root for that source, made when it is not there; concurrent calls for one source make it once.

        Raises NotFoundError (package or image unknown), InvalidError, PermanentError (corrupt or hostile layer),
        TemporaryError (registry unreachable), CapacityError (disk). Nothing half-made stays.
        """

    async def find(self, digest: str) -> RootImage | None:
        """A finished root by its digest."""

    async def scratch(self, path: Path, size_bytes: int) -> None:
        """Make an empty ext4 scratch disk at `path`, sparse, in constant time."""

    async def list(self) -> tuple[CachedImage, ...]:
        """Every root in the cache, in order of source."""

    async def remove(self, digest: str) -> int:
        """Delete a root; returns the bytes freed. NotFoundError when it is not there."""

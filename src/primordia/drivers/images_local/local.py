"""The images port on this machine: source -> tree of files -> read-only disk in the cache.

A source that was built before is found by its key, without the network and without a lock. Else its key is locked against
every process of the machine, looked up once more, and built in a workspace that is gone afterwards, whatever happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from primordia.drivers.images_local import debian, oci
from primordia.drivers.images_local.cache import DISK, Cache, Record, hash_file, hash_head
from primordia.drivers.images_local.config import overlay
from primordia.drivers.images_local.disk import explain, fsync_file, make_root, make_scratch, measure
from primordia.drivers.images_local.hostile import Limits
from primordia.drivers.images_local.oci_layout import resolve
from primordia.drivers.images_local.reference import LayoutReference, RegistryReference, parse_reference
from primordia.drivers.images_local.tree import furnish
from primordia.drivers.images_local.worker import digest_tree
from primordia.kit.errors import InvalidError, NotFoundError
from primordia.kit.units import human_bytes
from primordia.ports.images import CachedImage, Progress, RootImage
from primordia.wire.resources import DebianSource, ImageConfig, ImageSpec, OciSource


@dataclasses.dataclass(frozen=True)
class Built:
    """A tree of files, what its source says to run, and the source's name for people."""

    tree: Path
    config: ImageConfig
    source: str


class LocalImages:
    """The port's body over one cache folder. `netns` is a descriptor of the namespace in which builders and pullers run."""

    def __init__(self, cache_dir: Path, netns: int | None = None, *, limits: Limits | None = None) -> None:
        self._cache = Cache(cache_dir)
        self._netns = netns
        self._limits = limits or Limits()
        self._prepared = False

    async def ensure(self, spec: ImageSpec, progress: Progress) -> RootImage:
        """See the port. The answer's `config` is the source's own with the spec's laid over it."""
        await self.prepare()
        with self._full_disk_explained():
            match spec:
                case ImageSpec(debian=None, oci=OciSource() as source):
                    root = await self._ensure_oci(source, progress)
                case ImageSpec(debian=DebianSource() as packages, oci=None):
                    root = await self._ensure_debian(debian.plan(packages, debian.this_distribution()), progress)
                case _:
                    raise InvalidError("spec", "exactly one of debian and oci must be given")
        self._cache.touch(root.digest)
        return dataclasses.replace(root, config=overlay(root.config, spec.config))

    async def find(self, digest: str) -> RootImage | None:
        """See the port. A root that fails the cheap check is put aside and not found."""
        return self._cache.find(digest)

    async def verify(self, digest: str) -> bool:
        """The full check of a root, every byte; one that fails is put aside, and the next `ensure` makes it again."""
        if self._cache.find(digest) is None:
            raise NotFoundError(f"The cache has no image {digest}.")
        intact = await asyncio.to_thread(self._cache.is_intact, digest)
        if not intact:
            self._cache.quarantine(digest)
        return intact

    async def scratch(self, path: Path, size_bytes: int) -> None:
        """See the port. Mode 0600, owned by the caller's user. InvalidError below 8 MiB, CapacityError."""
        await make_scratch(path, size_bytes)

    async def list(self) -> tuple[CachedImage, ...]:
        """See the port."""
        return self._cache.list()

    async def remove(self, digest: str) -> int:
        """See the port."""
        await self.prepare()
        return await self._cache.remove(digest)

    async def prepare(self) -> None:
        """Make the folders and remove what dead builders left, once; `ensure` does it too."""
        if not self._prepared:
            self._cache.prepare()
            await self._cache.reap()
            self._prepared = True

    @contextlib.contextmanager
    def _full_disk_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explain(error, self._cache.folder) from error

    # ------------------------------------------------------------ sources

    async def _ensure_debian(self, plan: debian.DebianPlan, progress: Progress) -> RootImage:
        async def make(work: Path) -> Built:
            progress(f"installing {' '.join(plan.packages)} and what they need ({plan.distribution.codename})")
            return Built(await debian.build(plan, work, self._netns), ImageConfig(), str(plan))

        return await self.build(plan.key, make, progress)

    async def _ensure_oci(self, source: OciSource, progress: Progress) -> RootImage:
        reference = parse_reference(source.reference)
        if isinstance(reference, LayoutReference):
            return await self._from_layout(reference.folder, reference.tag, str(reference), progress)
        key = oci.reference_key(reference)
        if found := self._cache.lookup(key):
            return found
        async with self._cache.exclusive(key, lambda: progress("waiting: another pull of this image runs")):
            return self._cache.lookup(key) or await self._pull(key, reference, source, progress)

    async def _pull(self, key: str, reference: RegistryReference, source: OciSource, progress: Progress) -> RootImage:
        async with self._cache.workspace() as work:
            progress(f"pulling {reference}")
            layout = await oci.pull(reference, work, tls_verify=source.tls_verify, netns=self._netns)
            root = await self._from_layout(layout, oci.PULLED_TAG, str(reference), progress)
        self._cache.remember(key, root.digest)
        return root

    async def _from_layout(self, layout: Path, tag: str, source: str, progress: Progress) -> RootImage:
        image = resolve(layout, tag)

        async def make(work: Path) -> Built:
            progress(f"checking and unpacking {len(image.layers)} layers")
            return Built(await oci.unpack(image, layout, work, self._limits), image.config, source)

        return await self.build(oci.manifest_key(image.manifest.digest), make, progress)

    # ------------------------------------------------------------ tree to disk

    async def build(self, key: str, make: Callable[[Path], Awaitable[Built]], progress: Progress) -> RootImage:
        """The root that `key` names, made by `make` in a workspace when the cache has not got it."""
        await self.prepare()
        if found := self._cache.lookup(key):
            return found
        async with self._cache.exclusive(key, lambda: progress("waiting: another build of this image runs")):
            if found := self._cache.lookup(key):
                return found
            async with self._cache.workspace() as work:
                root = await self._finish(await make(work), work, progress)
            self._cache.remember(key, root.digest)
            return root

    async def _finish(self, built: Built, work: Path, progress: Progress) -> RootImage:
        """Make a tree a root of the cache; an equal one that is there already is used as it is."""
        furnish(built.tree)
        digest = await digest_tree(built.tree, msgspec.json.encode(built.config))
        if found := self._cache.find(digest):
            return found
        size = await asyncio.to_thread(measure, built.tree)
        progress(f"writing the root disk ({size.inodes} files, {human_bytes(size.content_bytes)})")
        entry = work / "entry"
        entry.mkdir()
        disk = entry / DISK
        await make_root(disk, built.tree, digest, size)
        disk_sha256 = await asyncio.to_thread(_hash_durably, disk)
        record = Record(
            digest=digest,
            source=built.source,
            created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            disk_bytes=disk.stat().st_size,
            head_sha256=hash_head(disk),
            disk_sha256=disk_sha256,
            config=built.config,
        )
        return self._cache.publish(entry, record)


def _hash_durably(disk: Path) -> str:
    fsync_file(disk)
    return hash_file(disk)

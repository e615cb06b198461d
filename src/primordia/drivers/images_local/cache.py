"""The cache on disk: whole, checked roots by digest, and nothing half-made.

    images/HEX/root.ext4, image.json   a finished root; HEX names its content, the record's mtime is its last use
    index/KEY                          the digest that a source gave last time
    locks/KEY                          locked by whoever makes that source just now
    work/NAME/                         a build; locked by its maker for as long as that lives
    quarantine/HEX/                    the last entry of that digest that failed a check

A root appears by one rename, after fsync. A dead maker's lock is gone with it, whatever its pid is used for now, so what
it left can be told from work in progress and is removed. Everything is private to root but the finished roots:
a tree under construction holds set-uid programs that no user of the machine should reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from primordia.drivers.images_local.discard import remove_tree
from primordia.kit.errors import NotFoundError
from primordia.kit.files import fsync_dir, tree_bytes, write_atomic
from primordia.kit.ids import suffix
from primordia.ports.images import CachedImage, RootImage
from primordia.wire.resources import ImageConfig

DISK = "root.ext4"
_RECORD = "image.json"
_HEAD_BYTES = 64 * 1024
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LOCK_POLL_S = 0.1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """image.json. `head_sha256` covers the first 64 KiB (superblock and block groups), `disk_sha256` the whole disk."""

    digest: str
    source: str
    created: str
    disk_bytes: int
    head_sha256: str
    disk_sha256: str
    config: ImageConfig


class Cache:
    """The folders above. Every method is short, but those that delete trees, which are awaited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images, self._index = folder / "images", folder / "index"
        self._locks, self._work, self._quarantine = folder / "locks", folder / "work", folder / "quarantine"

    def prepare(self) -> None:
        """Make the folders. Programs of other users read the finished roots, so the way to them is open."""
        for folder, mode in (
            (self.folder, 0o755),
            (self._images, 0o755),
            (self._index, 0o755),
            (self._locks, 0o700),
            (self._work, 0o700),
            (self._quarantine, 0o700),
        ):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)

    # ------------------------------------------------------------ reading

    def find(self, digest: str) -> RootImage | None:
        """The root of that digest, after the cheap check; one that fails it is put into quarantine."""
        match = _DIGEST.fullmatch(digest)
        if match is None:
            return None
        folder = self._images / match[1]
        record = read_record(folder, digest)
        if record is not None:
            return _root(folder, record)
        if folder.exists():
            self.quarantine(digest)
        return None

    def lookup(self, key: str) -> RootImage | None:
        """The root that the source of that key gave last time, if it is still whole."""
        try:
            digest = (self._index / key).read_text().strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return self.find(digest)

    def touch(self, digest: str) -> None:
        """Note that the root was used now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._images / digest.removeprefix("sha256:") / _RECORD)

    def list(self) -> tuple[CachedImage, ...]:
        """Every whole root, in order of source, with the wall clock's time of its last use."""
        found = []
        for folder in self._images.iterdir() if self._images.is_dir() else ():
            root = self.find(f"sha256:{folder.name}")
            if root is not None:
                with contextlib.suppress(FileNotFoundError):
                    found.append(CachedImage(root, (folder / _RECORD).stat().st_mtime))
        return tuple(sorted(found, key=lambda image: (image.root.source, image.root.digest)))

    def is_intact(self, digest: str) -> bool:
        """The full check: every byte of the disk against the record. Reads the whole disk."""
        folder = self._images / digest.removeprefix("sha256:")
        record = read_record(folder, digest)
        return record is not None and hash_file(folder / DISK) == record.disk_sha256

    # ------------------------------------------------------------ changing

    def publish(self, folder: Path, record: Record) -> RootImage:
        """Move a finished folder (its disk written and fsynced) to its place; an equal root that is there is kept."""
        write_atomic(folder / _RECORD, msgspec.json.encode(record), mode=0o644)
        folder.chmod(0o755)
        fsync_dir(folder)
        present = self.find(record.digest)
        if present is not None:
            return present
        place = self._images / record.digest.removeprefix("sha256:")
        try:
            folder.rename(place)
        except OSError:
            # Somebody published the same content between the look and the rename.
            present = self.find(record.digest)
            if present is None:
                raise
            return present
        fsync_dir(self._images)
        return _root(place, record)

    def remember(self, key: str, digest: str) -> None:
        """Note which root a source gives."""
        write_atomic(self._index / key, digest.encode(), mode=0o644)

    def quarantine(self, digest: str) -> None:
        """Put a doubtful root aside; only the latest of each digest is kept."""
        name = digest.removeprefix("sha256:")
        with contextlib.suppress(FileNotFoundError):
            place = self._quarantine / name
            if place.exists():
                remove_tree(place)
            (self._images / name).rename(place)

    async def remove(self, digest: str) -> int:
        """Delete a root and what the index says of it; returns the bytes that it had on disk. NotFoundError."""
        match = _DIGEST.fullmatch(digest)
        folder = self._images / match[1] if match else None
        if folder is None or not folder.is_dir():
            raise NotFoundError(f"The cache has no image {digest}.", remedy="`primordia image ls` shows what it has.")
        freed = tree_bytes(folder)
        async with self.workspace() as work:
            with contextlib.suppress(FileNotFoundError):
                folder.rename(work / "removed")
            for entry in self._index.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if entry.read_text().strip() == digest:
                        entry.unlink()
            with contextlib.suppress(FileNotFoundError):
                (self._quarantine / folder.name).rename(work / "quarantined")
        return freed

    # ------------------------------------------------------------ building

    @contextlib.asynccontextmanager
    async def exclusive(self, key: str, waiting: Callable[[], None]) -> AsyncIterator[None]:
        """Hold the lock of a source, against every process of the machine. `waiting` is called once if it is taken."""
        descriptor = os.open(self._locks / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(descriptor):
                waiting()
                # The holder may be another process, which no event of ours can tell about.
                while not _try_lock(descriptor):  # noqa: ASYNC110
                    await asyncio.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    @contextlib.asynccontextmanager
    async def workspace(self) -> AsyncIterator[Path]:
        """A private folder to build in, on the cache's own file system; gone at the end, however it ends."""
        folder, descriptor = self._new_workspace()
        try:
            yield folder
        finally:
            try:
                await asyncio.shield(asyncio.to_thread(remove_tree, folder))
            finally:
                os.close(descriptor)

    def _new_workspace(self) -> tuple[Path, int]:
        while True:
            folder = self._work / f"{time.strftime('%Y%m%dT%H%M%S')}-{suffix(8)}"
            folder.mkdir(mode=0o700)
            # The reaper may take the folder before it is locked; then there is nothing in it yet, so start again.
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if _try_lock(descriptor) and folder.exists():
                    return folder, descriptor
                os.close(descriptor)

    async def reap(self) -> int:
        """Remove the workspaces whose makers are dead; returns how many there were."""
        count = 0
        for folder in sorted(self._work.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    if _try_lock(descriptor):
                        await asyncio.to_thread(remove_tree, folder)
                        count += 1
                finally:
                    os.close(descriptor)
        return count


def read_record(folder: Path, digest: str) -> Record | None:
    """The record of an entry whose disk has the recorded size and head; None when anything is wrong with it."""
    try:
        record = msgspec.json.decode((folder / _RECORD).read_bytes(), type=Record)
        disk = folder / DISK
        whole = disk.stat().st_size == record.disk_bytes and hash_head(disk) == record.head_sha256
    except (OSError, msgspec.DecodeError):
        return None
    return record if whole and record.digest == digest else None


def hash_head(disk: Path) -> str:
    """SHA-256 of a disk's first 64 KiB."""
    with disk.open("rb") as file:
        return hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _root(folder: Path, record: Record) -> RootImage:
    return RootImage(
        digest=record.digest,
        path=folder / DISK,
        size_bytes=tree_bytes(folder),
        config=record.config,
        source=record.source,
        created=record.created,
    )

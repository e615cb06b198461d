"""The node's templates on its disk: whole or absent, verified before they are believed.

A template is a folder: `memory`, `devices`, `scratch` and `manifest.json`, which has the key (all that must be equal for the
template to be used) and the size and BLAKE2b hash of each file. It is built in a folder of another name, hashed, made
durable and then renamed, so that what has a template's name is one. Its name is a digest of key and hashes: what differs
in anything has another name, and nothing is ever written into one that has been published.

It is read back whole before its first use in a daemon's life. What is not as its manifest says is moved aside, told, and
made again: a fork of a memory image with one wrong bit would be wrong in ways that nobody could find.

BLAKE2b and not BLAKE3: the standard library has it, and 128 MiB take a tenth of a second.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from primordia.kit.errors import CapacityError, PermanentError
from primordia.kit.files import content_hash, fsync_dir, quarantine, tree_bytes, write_atomic
from primordia.kit.ids import short_hash
from primordia.node.records import Offload, in_thread

log = logging.getLogger(__name__)

MEMORY, DEVICES, SCRATCH = "memory", "devices", "scratch"
_FILES = (MEMORY, DEVICES, SCRATCH)
_MANIFEST = "manifest.json"
_UNFINISHED = ".build-"
_NAME_DIGITS = 40

Key = Mapping[str, str]
OnBad = Callable[[Key, str], None]
"""Hears of a template that was moved aside: its key, and a sentence."""


class _File(msgspec.Struct, frozen=True):
    size: int
    blake2b: str


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 1
    key: dict[str, str]
    files: dict[str, _File]


@dataclass(frozen=True)
class Stored:
    """A published template. `size_bytes` is what it takes on the disk."""

    digest: str
    folder: Path
    key: Key
    size_bytes: int

    @property
    def scratch(self) -> Path:
        """The scratch disk as it was when the memory was."""
        return self.folder / SCRATCH


def digest_of(key: Key) -> str:
    """A key's short name."""
    return short_hash(msgspec.json.encode(key, order="sorted").decode(), _NAME_DIGITS)


class TemplateStore:
    """The templates below one folder. `on_bad` hears of those that were moved aside."""

    def __init__(self, root: Path, on_bad: OnBad = lambda key, message: None, offload: Offload = in_thread) -> None:
        self._root = root
        self._offload = offload
        self._on_bad = on_bad
        self._by_key: dict[str, Stored] = {}
        self._verified: set[str] = set()
        self._reading = asyncio.Lock()

    def open(self) -> None:
        """Clear what an unfinished build left, and learn what there is. Blocks; for the start of a daemon."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._by_key.clear()
        for entry in sorted(self._root.iterdir()):
            if entry.name.startswith(_UNFINISHED):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.is_dir() and "quarantined" not in entry.name:
                self._learn(entry)

    def all(self) -> tuple[Stored, ...]:
        """Every template, in order of digest."""
        return tuple(sorted(self._by_key.values(), key=lambda each: each.digest))

    async def find(self, key: Key) -> Stored | None:
        """The template of exactly this key, verified; None when there is none, or it was not what its manifest says."""
        stored = self._by_key.get(digest_of(key))
        if stored is None or stored.digest in self._verified:
            return stored
        async with self._reading:  # who asks for the same meanwhile must not put it aside a second time
            stored = self._by_key.get(digest_of(key))
            if stored is None or stored.digest in self._verified:
                return stored
            return await self._read_back(stored)

    def new_folder(self, uid: str) -> Path:
        """A folder to build in, on the same file system, named after the microVM that is frozen there."""
        folder = self._root / f"{_UNFINISHED}{uid}"
        folder.mkdir(mode=0o700)
        return folder

    async def publish(self, folder: Path, key: Key) -> Stored:
        """Make a template of a folder from `new_folder`: hashed, durable, then under its own name.

        Raises CapacityError when the disk is full; nothing is left then.
        """
        try:
            stored = await self._offload(lambda: self._publish(folder, key))
        except BaseException as error:
            await self.discard(folder)
            if isinstance(error, OSError):
                raise disk_error(error, "The template") from error
            raise
        self._by_key[digest_of(key)] = stored
        self._verified.add(stored.digest)
        return stored

    async def take(self, stored: Stored) -> Path:
        """Have it for one use: where it lies from now on, under a name that is no template's, also after a power cut.

        Whoever takes it deletes it, by `discard`; if not, the next `open` does. Raises OSError.
        """
        place = self._root / f"{_UNFINISHED}{stored.digest}"
        await self._offload(lambda: _move(stored.folder, place))
        if self._by_key.get(digest_of(stored.key)) == stored:
            del self._by_key[digest_of(stored.key)]
        self._verified.discard(stored.digest)
        return place

    async def remove(self, stored: Stored) -> None:
        """Delete a template; forks that run keep the memory they map."""
        if self._by_key.get(digest_of(stored.key)) == stored:
            del self._by_key[digest_of(stored.key)]
        self._verified.discard(stored.digest)
        await self.discard(stored.folder)

    async def distrust(self, stored: Stored, message: str) -> None:
        """A fork of it could not be made, for a reason that may be its own: read it again before its next use."""
        log.warning("template %s is read again, for %s", stored.digest, message)
        self._verified.discard(stored.digest)

    async def discard(self, folder: Path) -> None:
        """Delete a folder with all in it; harmless when it is gone."""
        await self._offload(lambda: shutil.rmtree(folder, ignore_errors=True))

    # ------------------------------------------------------------ inside

    async def _read_back(self, stored: Stored) -> Stored | None:
        try:
            await self._offload(lambda: _verify(stored.folder))
        except PermanentError as error:
            await self._put_aside(stored, error.message)
            return None
        self._verified.add(stored.digest)
        return stored

    def _learn(self, folder: Path) -> None:
        try:
            manifest = _read_manifest(folder)
            if _name_of(manifest) != folder.name:
                raise PermanentError(f"{folder} does not have the name of what it holds.")
        except PermanentError as error:
            log.error("%s moved to %s", error.message, quarantine(folder))
            return
        stored = Stored(folder.name, folder, manifest.key, tree_bytes(folder))
        self._by_key[digest_of(manifest.key)] = stored

    async def _put_aside(self, stored: Stored, message: str) -> None:
        del self._by_key[digest_of(stored.key)]
        place = await self._offload(lambda: quarantine(stored.folder))
        log.error("template %s was moved to %s: %s", stored.digest, place, message)
        self._on_bad(stored.key, f"{message} It was moved to {place} and is made again.")

    def _publish(self, folder: Path, key: Key) -> Stored:
        manifest = _Manifest(key=dict(key), files={name: _entry(folder / name) for name in _FILES if (folder / name).exists()})
        name = _name_of(manifest)
        for file in manifest.files:
            fsync(folder / file)
        write_atomic(folder / _MANIFEST, msgspec.json.encode(manifest))
        fsync_dir(folder)
        place = self._root / name
        if place.exists():  # the very same, made twice
            shutil.rmtree(folder)
        else:
            folder.rename(place)
            fsync_dir(self._root)
        return Stored(name, place, manifest.key, tree_bytes(place))


def disk_error(error: OSError, what: str) -> CapacityError | PermanentError:
    """What could not be written, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(
            f"{what} cannot be written: the disk is full.",
            remedy="Free space on the disk of the node's state folder.",
            reason="DiskPressure",
        )
    return PermanentError(f"{what} cannot be written: {error.strerror or error}.", reason="WriteFailed")


def _name_of(manifest: _Manifest) -> str:
    return short_hash(msgspec.json.encode([manifest.key, manifest.files], order="sorted").decode(), _NAME_DIGITS)


def _read_manifest(folder: Path) -> _Manifest:
    try:
        manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=_Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise PermanentError(f"The manifest of template {folder.name} cannot be read: {error}.") from error
    if manifest.version != 1 or not manifest.files.keys() <= set(_FILES):
        raise PermanentError(f"The manifest of template {folder.name} is of another version.")
    return manifest


def _verify(folder: Path) -> None:
    """Raises PermanentError naming the file that is not what the manifest says."""
    for name, wanted in _read_manifest(folder).files.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != wanted.size:
                raise PermanentError(f"{path} has {found} bytes and not {wanted.size}.", reason="TemplateCorrupt")
            if _entry(path) != wanted:
                raise PermanentError(f"{path} is not what was written: its hash differs.", reason="TemplateCorrupt")
        except OSError as error:
            raise PermanentError(f"{path} cannot be read: {error.strerror}.", reason="TemplateCorrupt") from error


def _entry(path: Path) -> _File:
    return _File(path.stat().st_size, content_hash(path))


def _move(folder: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    folder.rename(place)
    fsync_dir(place.parent)


def fsync(path: Path) -> None:
    """Make the file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

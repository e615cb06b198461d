"""The volumes port on a mounted btrfs pool (`pool.py` makes and mounts it).

Every call runs in a thread of its own, under its volume's lock: a caller that is cancelled leaves the call to end by itself.
One process has the pool at a time (a lock file). Opening it replays what a crash left. The pool stays mounted when it is let
go: microVMs outlive their daemon, and have their disks open.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import itertools
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from primordia.domain import ranges as spans
from primordia.domain import snapshots as rules
from primordia.domain.ranges import Range
from primordia.domain.snapshots import Delta, Manifest
from primordia.drivers.volumes_btrfs import health, ioctl
from primordia.drivers.volumes_btrfs.intake import Intake
from primordia.drivers.volumes_btrfs.journal import is_whole, partial_of
from primordia.drivers.volumes_btrfs.layout import Layout, discard
from primordia.drivers.volumes_btrfs.records import DamagedError, Record
from primordia.drivers.volumes_btrfs.volume import Volume, forget, new_volume, pieces_of
from primordia.kit import files
from primordia.kit.errors import (
    AlreadyExistsError,
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermanentError,
    TemporaryError,
)
from primordia.kit.tasks import InTurn, to_the_end
from primordia.ports.volumes import READ_BYTES, Partial, Piece, PoolStatus, VolumeInfo

_THREADS = 8
_BATCHES_AHEAD = 3
_MAKE_ROOM = "Delete snapshots or volumes, or enlarge the pool."
T = TypeVar("T")
_Whole = dict[str, list[tuple[Delta, Path]]]
"""Journals, by their volume."""


class BtrfsVolumes:
    """The pool mounted at `folder`; use `open`. `now` is wall time in seconds, for manifests."""

    def __init__(self, folder: Path, lock: int, now: Callable[[], float]) -> None:
        self._folder = folder
        self._volumes_folder = folder / "volumes"
        self._incoming = folder / "incoming"
        self._lock_file = lock
        self._now = now
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="volumes")
        self._closed = False
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._known: dict[str, Volume] = {}
        self._damaged: dict[str, str] = {}
        self._partials: dict[str, Partial] = {}
        self._ended: Counter[str] = Counter()
        """How often each volume was deleted here."""

    @classmethod
    async def open(cls, folder: Path, *, now: Callable[[], float] = time.time) -> BtrfsVolumes:
        """Take the pool and bring what is in it to rest. TemporaryError while another process has it."""
        return await asyncio.to_thread(cls._open, folder, now)

    @classmethod
    def _open(cls, folder: Path, now: Callable[[], float]) -> BtrfsVolumes:
        with _telling("the pool"):
            lock = _take_lock(folder / "lock")
            pool = cls(folder, lock, now)
            try:
                pool._recover()
            except BaseException:
                os.close(lock)
                raise
            return pool

    async def close(self) -> None:
        """See the port. Whoever still asks, as a peer whose request came last, is refused."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    async def pool(self) -> PoolStatus:
        """See the port."""
        return await self._plain(self._status)

    async def list(self) -> tuple[VolumeInfo, ...]:
        """See the port."""
        found = [await self.find(name) for name in sorted(self._known)]
        return tuple(each for each in found if each is not None)

    async def find(self, volume: str) -> VolumeInfo | None:
        """See the port."""
        if volume not in self._known:
            return None
        return await self._on(volume, lambda held: held.info())

    async def create(self, volume: str, size_bytes: int, *, epoch: int = 1) -> VolumeInfo:
        """See the port."""
        size = rules.round_up(size_bytes)

        def fill(layout: Layout) -> None:
            ioctl.create_subvolume(layout.live)
            descriptor = os.open(layout.live_disk, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        return await self._plain(lambda: self._make(volume, epoch, size, fill))

    async def disk(self, volume: str, *, epoch: int = 0) -> Path:
        """See the port."""

        def ready(held: Volume) -> Path:
            held.settle()
            if epoch:
                held.enter(epoch)
            return held.live_disk()

        return await self._on(volume, ready)

    async def release(self, volume: str) -> None:
        """See the port."""
        await self._on(volume, lambda held: held.release())

    async def grow(self, volume: str, size_bytes: int) -> VolumeInfo:
        """See the port."""

        def act(held: Volume) -> VolumeInfo:
            status = self._status()
            if size_bytes > status.total_bytes - status.reserve_bytes:
                raise _no_room(volume, size_bytes)
            held.grow(size_bytes)
            return held.info()

        return await self._on(volume, act)

    async def destroy(self, volume: str) -> None:
        """See the port."""
        self._ended[volume] += 1

        def act() -> None:
            with self._lock(volume):
                self._forget_partial(volume)
                if self._known.pop(volume, None) is not None:
                    forget(self._volumes_folder / volume)

        await self._plain(act)

    async def retire(self, volume: str) -> None:
        """See the port."""
        self._ended[volume] += 1

        def act() -> None:
            with self._lock(volume):
                self._forget_partial(volume)
                held = self._known.get(volume)
                if held is not None and held.at.tails():
                    held.retire()
                elif self._known.pop(volume, None) is not None:
                    forget(self._volumes_folder / volume)

        await self._plain(act, volume)

    async def cut(self, volume: str, *, epoch: int, checkpoint: str = "", always: bool = False) -> Manifest:
        """See the port."""

        def act(held: Volume) -> Manifest:
            if not self._status().room_bytes:
                raise self._full(volume, 0)
            return held.cut(epoch, checkpoint, always=always, now_s=self._now())

        return await self._on(volume, act)

    async def touched(self, volumes: Collection[str]) -> frozenset[str]:
        """See the port. It waits for no other call about those volumes: one that is being cut is asked again later."""
        held = {name: self._known.get(name) for name in volumes}
        return await self._plain(lambda: frozenset(name for name, each in held.items() if each is not None and each.touched()))

    async def snapshots(self, volume: str) -> tuple[Manifest, ...]:
        """See the port. It waits for no other call: what is published is known, whatever is being made beside it."""
        return self._get(volume).manifests

    async def label(self, volume: str, number: int, checkpoint: str) -> Manifest:
        """See the port."""
        return await self._on(volume, lambda held: held.label(number, checkpoint))

    async def remove(self, volume: str, number: int) -> None:
        """See the port."""
        await self._on(volume, lambda held: held.remove(number))

    async def changes(self, volume: str, number: int, *, since: int = 0) -> Delta:
        """See the port."""
        return await self._on(volume, lambda held: held.changes(number, since))

    async def read(self, volume: str, number: int, ranges: Sequence[Range]) -> tuple[Piece, ...]:
        """See the port. It waits for no other call: what is published does not change."""
        wanted = spans.merge(ranges)
        if spans.total(wanted) > READ_BYTES:
            raise InvalidError("ranges", f"more than {READ_BYTES} bytes are asked for at once")

        def act() -> tuple[Piece, ...]:
            held = self._get(volume)
            spans.check(wanted, held.numbered(number).size_bytes)
            return pieces_of(held.at.disk(number), wanted)

        return await self._plain(act, volume)

    async def accept(self, delta: Delta, pieces: AsyncIterator[Piece], *, begin: int = 0) -> bool:
        """See the port."""
        volume = rules.check_volume(delta.manifest.volume)
        ended = self._ended[volume]
        intake = await to_the_end(self._plain(lambda: self._begin(delta, begin, ended), volume))
        if intake is None:
            return False
        keep = committed = False
        writing, flushing = InTurn(_BATCHES_AHEAD), InTurn(_BATCHES_AHEAD)

        async def write(batch: Sequence[Piece]) -> None:
            if await self._plain(lambda: intake.write(batch), volume):
                await flushing.add(functools.partial(self._plain, intake.begin_flush, volume))

        try:
            async for piece in pieces:
                if intake.check(piece):  # written, and sent to the disk, beside the arrival of the next: each takes as long
                    await writing.add(functools.partial(write, intake.taken()))
            await writing.done()
            await flushing.done()
            await to_the_end(self._plain(lambda: self._commit(intake, ended), volume))
            committed = True
        except PermanentError:
            raise
        except BaseException:
            keep = True
            raise
        finally:
            if not committed:
                await to_the_end(writing.ended())
                await to_the_end(flushing.ended())
                await to_the_end(self._plain(lambda: self._let_go(intake, ended, keep=keep), volume))
        return True

    async def partial(self, volume: str) -> Partial | None:
        """See the port."""
        return self._partials.get(volume)

    async def note(self, volume: str, content: bytes) -> None:
        """See the port."""
        await self._on(volume, lambda held: files.write_atomic(held.at.notes, content))

    async def notes(self, volume: str) -> bytes:
        """See the port."""
        return await self._on(volume, lambda held: held.at.notes.read_bytes() if held.at.notes.exists() else b"")

    async def settle(self, volume: str) -> Manifest | None:
        """See the port."""
        return await self._on(volume, lambda held: held.settle())

    async def restore(self, volume: str, number: int, *, epoch: int) -> Manifest:
        """See the port."""
        return await self._on(volume, lambda held: held.restore(number, epoch, self._now()))

    async def clone(self, volume: str, into: str, *, number: int = 0, tail: bool = False) -> VolumeInfo:
        """See the port."""

        def act(held: Volume) -> VolumeInfo:
            if tail:
                manifest, source = held.tail(number)
                size = manifest.size_bytes
            elif number:
                source, size = held.at.snapshot(number), held.numbered(number).size_bytes
            else:
                held.settle()
                source, size = held.live_disk().parent, held.live_disk().stat().st_size
            return self._make(into, 1, size, lambda layout: ioctl.snapshot(source, layout.live, readonly=False))

        return await self._on(volume, act)

    async def verify(self, volume: str, number: int) -> tuple[Range, ...]:
        """See the port."""
        return await self._plain(lambda: self._get(volume).verify(number), volume)

    async def quarantine(self, volume: str, number: int, *, tail: bool = False) -> None:
        """See the port."""
        await self._on(volume, lambda held: held.quarantine(number, tail=tail))

    async def tails(self, volume: str) -> tuple[Manifest, ...]:
        """See the port."""
        return await self._on(volume, lambda held: rules.in_order(held.tails()))

    def _recover(self) -> None:
        for folder in (self._volumes_folder, self._incoming):
            folder.mkdir(mode=0o700, exist_ok=True)
        whole = self._recover_journals()
        largest_bytes = self._status().total_bytes
        for folder in sorted(self._volumes_folder.iterdir()):
            if folder.name.startswith("."):
                discard(folder)
                continue
            try:
                held = Volume.recover(Layout(folder))
            except (DamagedError, FileNotFoundError) as error:
                self._damaged[folder.name] = str(error)
                whole.pop(folder.name, None)  # what was acknowledged stays, until somebody has mended it
                continue
            for delta, journal in whole.pop(folder.name, []):
                held.take_again(delta, journal, largest_bytes)
            if not held.is_bare or held.at.tails():
                self._known[folder.name] = held
            else:
                forget(folder)  # its first delta was never acknowledged
        for _, journal in itertools.chain.from_iterable(whole.values()):  # of what is not here any more
            journal.unlink()

    def _recover_journals(self) -> _Whole:
        """What was being received goes on later, as far as it can be read; those that are whole, the newest first."""
        whole: _Whole = {}
        for journal in list(self._incoming.iterdir()):
            try:
                partial = partial_of(journal)
                volume = rules.check_volume(partial.delta.manifest.volume)
            except (DamagedError, InvalidError):
                journal.unlink()
                continue
            if is_whole(journal):
                whole.setdefault(volume, []).append((partial.delta, journal))
                continue
            journal.rename(self._partial_place(volume))
            self._partials[volume] = partial
        for each in whole.values():
            each.sort(key=lambda found: (found[0].manifest.epoch, found[0].manifest.number), reverse=True)
        return whole

    def _partial_place(self, volume: str) -> Path:
        return self._incoming / f"{rules.check_volume(volume)}.partial"

    def _status(self) -> PoolStatus:
        damaged = tuple(f"Volume {name} cannot be opened: {why}" for name, why in sorted(self._damaged.items()))
        return health.status(self._folder, damaged)

    def _full(self, volume: str, size_bytes: int) -> CapacityError:
        """What to raise. What was deleted gives its room back with the next transaction, up to 30 s away: it is made now, for
        whoever asks again."""
        with suppress(OSError):
            ioctl.commit(self._folder)
        return _no_room(volume, size_bytes)

    def _begin(self, delta: Delta, begin: int, ended: int) -> Intake | None:
        """A place for the delta's journal, or (`begin`) the one that was kept; None when the snapshot is here already."""
        said, status = delta.manifest, self._status()
        with self._lock(said.volume):
            self._check_not_ended(said.volume, ended)
            held = self._known.get(said.volume)
            if held is not None:
                held.settle()
            if not self._fits(held, delta, status.total_bytes):
                return None
            if spans.total(delta.ranges) * 2 > status.room_bytes:  # in the journal, then in the snapshot
                raise self._full(said.volume, spans.total(delta.ranges))
            base = held.newest if held is not None else None
            base_disk = held.at.disk(base.number) if held is not None and base is not None else None
            table = held.table(base.number) if held is not None and base is not None else bytearray()
            journal = self._incoming / uuid.uuid4().hex
            if begin:
                self._take_partial(delta, begin, journal)
            else:
                self._forget_partial(said.volume)
        try:
            return Intake(journal, delta, base_disk, table, go_on=begin > 0)
        except PermanentError:
            journal.unlink(missing_ok=True)
            raise

    def _take_partial(self, delta: Delta, begin: int, journal: Path) -> None:
        volume = delta.manifest.volume
        if self._partials.get(volume) != Partial(delta, begin):
            raise ConflictError(f"A delta of volume {volume} cannot go on at {begin} here.", reason="OtherOffset")
        del self._partials[volume]
        self._partial_place(volume).rename(journal)

    def _forget_partial(self, volume: str) -> None:
        if self._partials.pop(volume, None) is not None:
            self._partial_place(volume).unlink(missing_ok=True)

    def _let_go(self, intake: Intake, ended: int, *, keep: bool) -> None:
        """End an intake; what was cut off is kept, unless another one was meanwhile, all of it has just been taken over, or the
        volume was deleted."""
        volume = intake.delta.manifest.volume
        with self._lock(volume):
            if (
                keep
                and self._ended[volume] == ended
                and intake.is_of_use
                and volume not in self._partials
                and intake.journal.exists()
            ):
                intake.keep(self._partial_place(volume))
                self._partials[volume] = Partial(intake.delta, intake.bytes_done)
        intake.discard()

    def _fits(self, held: Volume | None, delta: Delta, largest_bytes: int) -> bool:
        if delta.manifest.volume in self._damaged:
            raise ConflictError(self._damaged[delta.manifest.volume], reason="Damaged")
        return held.check_delta(delta, largest_bytes) if held is not None else rules.check_delta(delta, None, 0, largest_bytes)

    def _check_not_ended(self, volume: str, ended: int) -> None:
        """Whether nothing of it was deleted since: what comes for one that is gone would bring it back, unknown to all."""
        if self._ended[volume] != ended:
            raise ConflictError(f"Volume {volume} was deleted here while a delta of it came.", reason="Destroyed")

    def _commit(self, intake: Intake, ended: int) -> None:
        """Acknowledge it: what is in doubt until here is decided under the volume's lock."""
        self._take(intake, ended)
        intake.discard()

    def _take(self, intake: Intake, ended: int) -> None:
        delta = intake.delta
        intake.finish()
        with self._lock(delta.manifest.volume):
            self._check_not_ended(delta.manifest.volume, ended)
            held = self._known.get(delta.manifest.volume)
            if held is not None:
                held.settle()
            if not self._fits(held, delta, self._status().total_bytes):
                return  # the same delta came twice at once, and the other was first
            if held is not None:
                held.take(delta, intake.journal)
                return
            held = self._found(delta.manifest.volume, delta.manifest.epoch)
            held.take(delta, intake.journal)
            files.fsync_dir(held.at.folder)  # with all that has just been made

    def _found(self, name: str, epoch: int, fill: Callable[[Layout], None] | None = None) -> Volume:
        """Make a volume's folder under a hidden name, and show it whole."""
        hidden = new_volume(self._volumes_folder, Record(name, epoch))
        try:
            if fill is not None:
                fill(Layout(hidden))
            target = self._volumes_folder / name
            hidden.rename(target)
        except BaseException:
            discard(hidden)
            raise
        files.fsync_dir(self._volumes_folder)
        held = self._known[name] = Volume(Layout(target))
        return held

    def _make(self, name: str, epoch: int, size_bytes: int, fill: Callable[[Layout], None]) -> VolumeInfo:
        rules.check_volume(name)
        status = self._status()
        if size_bytes > status.total_bytes - status.reserve_bytes or not status.room_bytes:
            raise self._full(name, size_bytes)
        with self._guard:
            known = self._known.get(name)
            if name in self._damaged or (known is not None and not known.is_bare):
                raise AlreadyExistsError(f"Volume {name} exists on this node.")
        if known is not None:
            with self._lock(name):
                known.begin_anew(epoch, fill)
                return known.info()
        try:
            return self._found(name, epoch, fill).info()
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise AlreadyExistsError(f"Volume {name} exists on this node.") from error
            raise

    def _get(self, volume: str) -> Volume:
        held = self._known.get(volume)
        if held is None:
            raise NotFoundError(f"This node has no volume {volume[:80]}.")
        return held

    def _lock(self, volume: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(volume, threading.Lock())

    async def _on(self, volume: str, act: Callable[[Volume], T]) -> T:
        """Do something with a volume, once nobody else does."""

        def locked() -> T:
            with self._lock(volume):
                return act(self._get(volume))

        self._get(volume)
        return await self._plain(locked, volume)

    async def _plain(self, act: Callable[[], T], volume: str = "") -> T:
        def told() -> T:
            with _telling(f"volume {volume}" if volume else "the pool"):
                return act()

        if self._closed:
            raise TemporaryError("The pool is closed, for this daemon ends.", remedy="Try again.", reason="PoolClosed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, told)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turn what the kernel says into what an operator can use."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(f"The pool is full: {what}.", remedy=_MAKE_ROOM) from error
        if error.errno == errno.EROFS:
            raise TemporaryError(f"The pool is read-only: {what}.", remedy="See dmesg; mount it again.") from error
        if error.errno == errno.EIO:
            raise DamagedError(f"The pool's device cannot be read: {what}.", remedy="Verify it; copies heal it.") from error
        raise


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TemporaryError(f"Another process uses the pool {path.parent}.", remedy="Is another daemon running?") from error
    return descriptor


def _no_room(volume: str, size_bytes: int) -> CapacityError:
    return CapacityError(
        f"The pool has no room above its reserve for volume {volume} ({size_bytes} bytes).",
        remedy=_MAKE_ROOM,
    )

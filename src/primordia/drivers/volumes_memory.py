"""The volumes port without a pool: snapshots are bytes in memory, disks plain files. For tests of what uses the port.

It keeps every rule of the port but the power cut: what a process forgets when it ends, this body forgets too.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, MutableSequence, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from primordia.domain import ranges as spans
from primordia.domain import snapshots as rules
from primordia.domain.ranges import Cover, Range
from primordia.domain.snapshots import CHUNK_BYTES, Delta, Manifest
from primordia.kit import chunk_hash
from primordia.kit.errors import AlreadyExistsError, CapacityError, ConflictError, InvalidError, NotFoundError, PermanentError
from primordia.ports.volumes import PIECE_BYTES, READ_BYTES, Partial, Piece, PoolStatus, VolumeInfo

_BLOCK_BYTES = 4096


@dataclass
class _Snapshot:
    manifest: Manifest
    content: bytearray


@dataclass
class _Volume:
    name: str
    epoch: int
    disk: Path | None = None
    size_bytes: int = 0
    floor: int = 0
    snapshots: list[_Snapshot] = field(default_factory=list)
    pending: _Snapshot | None = None
    aside: list[int] = field(default_factory=list)
    tails: list[_Snapshot] = field(default_factory=list)
    notes: bytes = b""

    @property
    def newest(self) -> Manifest | None:
        return self.snapshots[-1].manifest if self.snapshots else None

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        return tuple(each.manifest for each in self.snapshots)

    def snapshot(self, number: int) -> _Snapshot:
        rules.numbered(self.manifests, number, self.name)
        return next(each for each in self.snapshots if each.manifest.number == number)

    def held(self, number: int, *, tail: bool) -> _Snapshot:
        if not tail:
            return self.snapshot(number)
        found = rules.tail_of([each.manifest for each in self.tails], number, self.name)
        return next(each for each in self.tails if each.manifest is found)

    def info(self) -> VolumeInfo:
        newest = self.newest.number if self.newest else 0
        pending = self.pending.manifest.number if self.pending else 0
        return VolumeInfo(
            self.name,
            self.size_bytes,
            self.epoch,
            self.disk is not None,
            newest,
            pending,
            tuple(sorted(self.aside)),
            tuple(sorted(each.manifest.number for each in self.tails)),
        )

    @property
    def is_bare(self) -> bool:
        return self.disk is None and not self.snapshots and self.pending is None


class MemoryVolumes:
    """Disks are files below `folder`; `total_bytes` is the pool's size, of which a twentieth is its reserve."""

    def __init__(self, folder: Path, *, total_bytes: int = 1 << 30, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._total_bytes = total_bytes
        self._now = now
        self._volumes: dict[str, _Volume] = {}
        self._partials: dict[str, tuple[Delta, MutableSequence[Piece]]] = {}
        self._ended: Counter[str] = Counter()

    async def pool(self) -> PoolStatus:
        """See the port: every snapshot counts in full."""
        used = sum(len(each.content) for volume in self._volumes.values() for each in volume.snapshots)
        used += sum(volume.disk.stat().st_blocks * 512 for volume in self._volumes.values() if volume.disk is not None)
        return PoolStatus(self._total_bytes, used, max(0, self._total_bytes - used), self._total_bytes // 20)

    async def list(self) -> tuple[VolumeInfo, ...]:
        """See the port."""
        return tuple(self._volumes[name].info() for name in sorted(self._volumes))

    async def find(self, volume: str) -> VolumeInfo | None:
        """See the port."""
        known = self._volumes.get(volume)
        return known.info() if known is not None else None

    async def create(self, volume: str, size_bytes: int, *, epoch: int = 1) -> VolumeInfo:
        """See the port."""
        size = rules.round_up(size_bytes)
        await self._want_new(volume, size)
        made = self._volumes.get(volume) or _Volume(volume, epoch)
        made.epoch, made.disk, made.size_bytes = max(made.epoch, epoch), self._folder / f"{volume}.disk", size
        self._write_disk(made, bytearray(), size)
        self._volumes[volume] = made
        return made.info()

    async def disk(self, volume: str, *, epoch: int = 0) -> Path:
        """See the port."""
        await self.settle(volume)
        known = self._get(volume)
        if epoch:
            rules.check_epoch(volume, epoch, known.epoch)
            known.epoch = epoch
        if known.disk is None:
            if not known.snapshots:
                raise NotFoundError(f"Volume {volume} has no snapshot here to make a disk from.")
            known.disk = self._folder / f"{volume}.disk"
            self._write_disk(known, known.snapshots[-1].content, known.size_bytes)
        return known.disk

    async def release(self, volume: str) -> None:
        """See the port."""
        known = self._get(volume)
        if not known.snapshots:
            raise ConflictError(f"Volume {volume} has no snapshot: without its disk nothing would be left.")
        if known.disk is not None:
            known.disk.unlink()
            known.disk = None
            known.size_bytes = known.snapshots[-1].manifest.size_bytes

    async def grow(self, volume: str, size_bytes: int) -> VolumeInfo:
        """See the port."""
        known = self._get(volume)
        size = rules.round_up(size_bytes)
        if size < known.size_bytes:
            raise InvalidError("size", f"volume {volume} has {known.size_bytes} bytes and does not shrink")
        os.truncate(await self.disk(volume), size)
        known.size_bytes = size
        return known.info()

    async def destroy(self, volume: str) -> None:
        """See the port."""
        self._ended[volume] += 1
        self._partials.pop(volume, None)
        known = self._volumes.pop(volume, None)
        if known is not None and known.disk is not None:
            known.disk.unlink()

    async def retire(self, volume: str) -> None:
        """See the port."""
        known = self._volumes.get(volume)
        if known is None or not known.tails:
            await self.destroy(volume)
            return
        self._ended[volume] += 1
        self._partials.pop(volume, None)
        if known.disk is not None:
            known.disk.unlink()
        known.disk, known.snapshots, known.pending, known.size_bytes = None, [], None, 0

    async def cut(self, volume: str, *, epoch: int, checkpoint: str = "", always: bool = False) -> Manifest:
        """See the port."""
        rules.check_checkpoint(checkpoint)
        known = self._written(volume)
        rules.check_epoch(volume, epoch, known.epoch)
        assert known.disk is not None
        content, last = bytearray(known.disk.read_bytes()), known.snapshots[-1] if known.snapshots else None
        changed = _differing(last.content if last else bytearray(), content)
        if last and not changed and len(content) == len(last.content) and not (always or checkpoint):
            return last.manifest
        return self._publish(known, epoch, content, changed, checkpoint)

    async def touched(self, volumes: Collection[str]) -> frozenset[str]:
        """See the port: by content, which is small here."""
        return frozenset(name for name in volumes if (known := self._volumes.get(name)) is not None and _is_touched(known))

    async def snapshots(self, volume: str) -> tuple[Manifest, ...]:
        """See the port."""
        return self._get(volume).manifests

    async def label(self, volume: str, number: int, checkpoint: str) -> Manifest:
        """See the port."""
        held = self._get(volume).snapshot(number)
        held.manifest = replace(held.manifest, checkpoint=rules.check_checkpoint(checkpoint))
        return held.manifest

    async def remove(self, volume: str, number: int) -> None:
        """See the port."""
        known = self._get(volume)
        held = known.snapshot(number)
        if held is known.snapshots[-1]:
            raise ConflictError(
                f"Snapshot {number} is the newest of volume {volume}.", remedy="Destroy the volume to delete all."
            )
        known.snapshots.remove(held)

    async def changes(self, volume: str, number: int, *, since: int = 0) -> Delta:
        """See the port."""
        known = self._get(volume)
        wanted = known.snapshot(number)
        base = known.snapshot(since) if since else None
        differing = _differing(base.content if base else bytearray(), wanted.content)
        return Delta(wanted.manifest, base.manifest.root if base else "", differing)

    async def read(self, volume: str, number: int, ranges: Sequence[Range]) -> tuple[Piece, ...]:
        """See the port."""
        content = self._get(volume).snapshot(number).content
        if spans.total(ranges) > READ_BYTES:
            raise InvalidError("ranges", f"more than {READ_BYTES} bytes are asked for at once")
        spans.check(ranges, len(content))
        pieces = []
        for each in ranges:
            for offset in range(each.offset, each.end, PIECE_BYTES):
                data = bytes(content[offset : min(each.end, offset + PIECE_BYTES)])
                pieces.append(Piece(Range(offset, len(data)), data if any(data) else b""))
        return tuple(pieces)

    async def accept(self, delta: Delta, pieces: AsyncIterator[Piece], *, begin: int = 0) -> bool:
        """See the port."""
        said = delta.manifest
        rules.check_volume(said.volume)
        known, ended = self._volumes.get(said.volume), self._ended[said.volume]
        if known is not None:
            await self.settle(said.volume)
        if known is not None and known.disk is not None:
            raise _written_here(said.volume)
        if not rules.check_delta(delta, known.newest if known else None, known.epoch if known else 0, self._total_bytes):
            return False
        await self._want_room(delta)
        content = bytearray(known.snapshots[-1].content if known and known.snapshots else b"")
        _resize(content, said.size_bytes)
        came = await self._come(delta, pieces, begin, ended)
        for piece in came:
            content[piece.range.offset : piece.range.end] = piece.data or bytes(piece.range.length)
        if chunk_hash.root_of(len(content), _table(content)) != said.root:
            raise InvalidError("root", f"snapshot {said.number} of {said.volume} does not have the content it names")
        if known is None:
            known = self._volumes.setdefault(said.volume, _Volume(said.volume, said.epoch, size_bytes=said.size_bytes))
        known.epoch = said.epoch
        known.pending = _Snapshot(said, content)
        return True

    async def _come(self, delta: Delta, pieces: AsyncIterator[Piece], begin: int, ended: int) -> MutableSequence[Piece]:
        """All of its pieces, with those from before; what is cut off is kept, unless the volume was deleted meanwhile."""
        volume, cover = delta.manifest.volume, Cover(delta.ranges)
        came = self._taken(delta, begin)
        for piece in came:
            cover.take(piece.range, len(piece.data))
        try:
            async for piece in pieces:
                cover.take(piece.range, len(piece.data))
                came.append(piece)
        except PermanentError:
            raise
        except BaseException:
            if came and self._ended[volume] == ended:
                self._partials[volume] = (delta, came)
            raise
        if self._ended[volume] != ended:
            raise ConflictError(f"Volume {volume} was deleted here while a delta of it came.", reason="Destroyed")
        cover.finish()
        return came

    async def partial(self, volume: str) -> Partial | None:
        """See the port."""
        delta, came = self._partials.get(volume, (None, []))
        return Partial(delta, sum(each.range.length for each in came)) if delta is not None else None

    async def note(self, volume: str, content: bytes) -> None:
        """See the port."""
        self._get(volume).notes = content

    async def notes(self, volume: str) -> bytes:
        """See the port."""
        return self._get(volume).notes

    async def settle(self, volume: str) -> Manifest | None:
        """See the port."""
        known = self._get(volume)
        if known.pending is None:
            return None
        built, known.pending = known.pending, None
        known.snapshots.append(built)
        known.size_bytes = built.manifest.size_bytes
        return built.manifest

    async def restore(self, volume: str, number: int, *, epoch: int) -> Manifest:
        """See the port."""
        known = self._written(volume)
        rules.check_epoch(volume, epoch, known.epoch)
        content = bytearray(known.snapshot(number).content)
        changed = _differing(known.snapshots[-1].content, content)
        known.size_bytes = len(content)
        self._write_disk(known, content, len(content))
        return self._publish(known, epoch, content, changed, "")

    async def clone(self, volume: str, into: str, *, number: int = 0, tail: bool = False) -> VolumeInfo:
        """See the port."""
        known = self._get(volume)
        disk = await self.disk(volume) if not number else None
        content = bytearray(disk.read_bytes()) if disk is not None else known.held(number, tail=tail).content
        await self._want_new(into, len(content))
        made = _Volume(into, 1, self._folder / f"{into}.disk", len(content))
        self._write_disk(made, content, len(content))
        self._volumes[into] = made
        return made.info()

    async def verify(self, volume: str, number: int) -> tuple[Range, ...]:
        """See the port. Without a table of its own to trust, all is damaged or nothing."""
        held = self._get(volume).snapshot(number)
        good = chunk_hash.root_of(len(held.content), _table(held.content)) == held.manifest.root
        return () if good else (Range(0, len(held.content)),)

    async def quarantine(self, volume: str, number: int, *, tail: bool = False) -> None:
        """See the port."""
        known = self._get(volume)
        held = known.snapshot(number)
        known.snapshots.remove(held)
        known.aside.append(number)
        known.floor = max(known.floor, number)
        if tail:
            known.tails.append(held)

    async def tails(self, volume: str) -> tuple[Manifest, ...]:
        """See the port."""
        return rules.in_order(each.manifest for each in self._get(volume).tails)

    async def close(self) -> None:
        """See the port."""

    def corrupt(self, volume: str, number: int, offset: int) -> None:
        """Flip a bit of a snapshot, as a bad disk would: for tests."""
        self._get(volume).snapshot(number).content[offset] ^= 1

    def _taken(self, delta: Delta, begin: int) -> MutableSequence[Piece]:
        """The pieces that came before, if that is where it goes on."""
        before, came = self._partials.pop(delta.manifest.volume, (None, []))
        if not begin:
            return []
        if before != delta or sum(each.range.length for each in came) != begin:
            raise ConflictError(
                f"A delta of volume {delta.manifest.volume} cannot go on at {begin} here.", reason="OtherOffset"
            )
        return came

    def _get(self, volume: str) -> _Volume:
        known = self._volumes.get(volume)
        if known is None:
            raise NotFoundError(f"This node has no volume {volume[:80]}.")
        return known

    def _written(self, volume: str) -> _Volume:
        known = self._get(volume)
        if known.disk is None:
            raise ConflictError(f"Volume {volume} is only held here, nothing writes it.", reason="NotWrittenHere")
        return known

    async def _want_room(self, delta: Delta) -> None:
        size = spans.total(delta.ranges)
        if size > (await self.pool()).room_bytes:
            raise CapacityError(f"The pool has no room for {size} bytes of volume {delta.manifest.volume}.")

    async def _want_new(self, volume: str, size_bytes: int) -> None:
        rules.check_volume(volume)
        if volume in self._volumes and not self._volumes[volume].is_bare:
            raise AlreadyExistsError(f"Volume {volume} exists on this node.")
        status = await self.pool()
        if size_bytes > status.total_bytes - status.reserve_bytes or not status.room_bytes:
            raise CapacityError(f"The pool has no room for volume {volume} of {size_bytes} bytes.")

    def _write_disk(self, volume: _Volume, content: bytearray, size_bytes: int) -> None:
        assert volume.disk is not None
        volume.disk.unlink(missing_ok=True)
        with volume.disk.open("wb") as file:
            for chunk in range(len(content) // CHUNK_BYTES):
                data = content[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
                if any(data):
                    file.seek(chunk * CHUNK_BYTES)
                    file.write(data)
            file.truncate(size_bytes)

    def _publish(self, known: _Volume, epoch: int, content: bytearray, changed: tuple[Range, ...], checkpoint: str) -> Manifest:
        parent = known.newest.root if known.newest else ""
        number = rules.next_number((each.number for each in known.manifests), known.floor)
        root = chunk_hash.root_of(len(content), _table(content))
        made = Manifest(known.name, epoch, number, parent, len(content), self._now(), changed, root, checkpoint)
        known.epoch = epoch
        known.snapshots.append(_Snapshot(made, content))
        return made


def _is_touched(volume: _Volume) -> bool:
    if volume.disk is None:
        return False
    return not volume.snapshots or volume.disk.read_bytes() != volume.snapshots[-1].content


def _written_here(volume: str) -> ConflictError:
    return ConflictError(
        f"Volume {volume} is written here and takes no deltas.", reason="WrittenHere", remedy="Release it first."
    )


def _resize(content: bytearray, size_bytes: int) -> None:
    del content[size_bytes:]
    content.extend(bytes(size_bytes - len(content)))


def _table(content: bytearray) -> bytearray:
    table = chunk_hash.new_table(len(content))
    for chunk in range(len(content) // CHUNK_BYTES):
        entry = chunk_hash.entry_of(bytes(content[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]))
        chunk_hash.set_entry(table, chunk, entry)
    return table


def _differing(old: bytearray, new: bytearray) -> tuple[Range, ...]:
    """The blocks of `new` that are not as in `old`, which counts as zeros beyond its end."""
    found = []
    for offset in range(0, len(new), _BLOCK_BYTES):
        here = new[offset : offset + _BLOCK_BYTES]
        before = old[offset : offset + _BLOCK_BYTES]
        before.extend(bytes(len(here) - len(before)))
        if here != before:
            found.append(Range(offset, len(here)))
    return spans.merge(found)

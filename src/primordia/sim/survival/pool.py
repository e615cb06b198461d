"""The pool of a simulated machine: the volumes port, with numbers for contents. What it holds outlives every process.

A cut takes a moment and then is there or not; what is accepted is durable when the call returns. Where the pool is full
nothing is taken, and a snapshot that rots is found out by whoever reads it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from primordia.domain import snapshots as rules
from primordia.domain.ranges import Range
from primordia.domain.snapshots import Delta, Manifest
from primordia.kit.errors import AlreadyExistsError, CapacityError, ConflictError, NotFoundError, PermanentError
from primordia.ports.volumes import Partial, Piece, PoolStatus, VolumeInfo
from primordia.sim.survival.contents import Content, Contents
from primordia.sim.survival.process import Process, true_s

TOTAL_BYTES = 64 << 30


@dataclass
class SimVolume:
    """A volume on one machine. `head` is the content of its disk at the last cut, None where there is no disk.

    `written_s` is the true time of the last write to the disk, in `writer_epoch`, `dirty_s` that of the first one since the
    last cut, None where there was none; `bad` are the numbers of rotten snapshots, `rotted` of all that ever were.
    """

    name: str
    epoch: int
    size_bytes: int
    head: Content | None = None
    written_s: float = 0.0
    writer_epoch: int = 0
    dirty_s: float | None = None
    floor: int = 0
    snapshots: list[Manifest] = field(default_factory=list)
    pending: Manifest | None = None
    aside: list[Manifest] = field(default_factory=list)
    tails: list[Manifest] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)
    rotted: set[int] = field(default_factory=set)
    notes: bytes = b""

    @property
    def newest(self) -> Manifest | None:
        """The newest snapshot, published."""
        return self.snapshots[-1] if self.snapshots else None

    def rot(self) -> None:
        """The newest snapshot can no longer be read."""
        if self.snapshots:
            self.bad.add(self.snapshots[-1].number)
            self.rotted.add(self.snapshots[-1].number)

    @property
    def is_touched(self) -> bool:
        """Whether something was written since the last cut."""
        return self.head is not None and (self.written_s > self.head.at_s or not self.snapshots)

    def numbers(self) -> list[int]:
        """All that were ever used here."""
        return [each.number for each in (*self.snapshots, *self.aside, *([self.pending] if self.pending else []))]

    def kept(self, *, rotten: bool) -> list[Manifest]:
        """All snapshots here, shown or put aside; with the `rotten` or without."""
        pending = [self.pending] if self.pending else []
        return [each for each in (*self.aside, *self.snapshots, *pending) if rotten or each.number not in self.bad]

    @property
    def is_bare(self) -> bool:
        """Whether nothing but what was put aside is here."""
        return self.head is None and not self.snapshots and self.pending is None


@dataclass
class Shelf:
    """What lies in a machine's pool, and how the machine tells what its microVMs write."""

    node: str
    contents: Contents
    file: Path
    volumes: dict[str, SimVolume] = field(default_factory=dict)
    full: int = 0
    settle: Callable[[], None] = lambda: None
    """Brings `written_s` of every disk up to now."""
    on_cut: Callable[[str, Manifest], None] = lambda uid, manifest: None
    on_accept: Callable[[str, Manifest], None] = lambda uid, manifest: None

    def wipe(self) -> None:
        """The disk of the machine is gone."""
        self.volumes.clear()


class SimPool:
    """The shelf as one process has it."""

    def __init__(self, shelf: Shelf, process: Process, rng: random.Random) -> None:
        self._shelf = shelf
        self._process = process
        self._rng = rng

    @property
    def _volumes(self) -> dict[str, SimVolume]:
        return self._shelf.volumes

    # ------------------------------------------------------------ the pool

    async def pool(self) -> PoolStatus:
        """See the port."""
        used = len(self._volumes) << 20
        free = TOTAL_BYTES // 50 if self._shelf.full else TOTAL_BYTES - used
        return PoolStatus(TOTAL_BYTES, TOTAL_BYTES - free, free, TOTAL_BYTES // 20)

    async def list(self) -> tuple[VolumeInfo, ...]:
        """See the port."""
        return tuple(_info(self._volumes[name]) for name in sorted(self._volumes))

    async def find(self, volume: str) -> VolumeInfo | None:
        """See the port."""
        known = self._volumes.get(volume)
        return _info(known) if known is not None else None

    # ------------------------------------------------------------ disks

    async def create(self, volume: str, size_bytes: int, *, epoch: int = 1) -> VolumeInfo:
        """See the port."""
        rules.check_volume(volume)
        await self._work()
        self._want_new(volume)
        made = self._volumes.get(volume) or SimVolume(volume, epoch, rules.round_up(size_bytes))
        made.epoch = max(made.epoch, epoch)
        made.head = self._shelf.contents.write(None, true_s(), true_s(), epoch, self._shelf.node)
        self._volumes[volume] = made
        return _info(made)

    async def disk(self, volume: str, *, epoch: int = 0) -> Path:
        """See the port."""
        await self.settle(volume)
        known = self._get(volume)
        if epoch:
            rules.check_epoch(volume, epoch, known.epoch)
            known.epoch = epoch
        if known.head is None:
            if known.newest is None:
                raise NotFoundError(f"Volume {volume} has no snapshot here to make a disk from.")
            if known.newest.number in known.bad:
                raise PermanentError(f"Snapshot {known.newest.number} of volume {volume} cannot be read.")
            known.head = self._shelf.contents.of(known.newest.root)
            known.written_s, known.dirty_s = 0.0, None
        return self._shelf.file

    async def release(self, volume: str) -> None:
        """See the port."""
        known = self._get(volume)
        if not known.snapshots:
            raise ConflictError(f"Volume {volume} has no snapshot: without its disk nothing would be left.")
        self._shelf.settle()
        known.head = None

    async def grow(self, volume: str, size_bytes: int) -> VolumeInfo:
        """See the port."""
        known = self._get(volume)
        known.size_bytes = rules.round_up(size_bytes)
        return _info(known)

    async def destroy(self, volume: str) -> None:
        """See the port."""
        await self._process.passes()
        self._volumes.pop(volume, None)

    async def retire(self, volume: str) -> None:
        """See the port."""
        await self._process.passes()
        known = self._volumes.get(volume)
        if known is not None and known.tails:
            known.head, known.snapshots, known.pending = None, [], None
        else:
            self._volumes.pop(volume, None)

    # ------------------------------------------------------------ snapshots

    async def cut(self, volume: str, *, epoch: int, checkpoint: str = "", always: bool = False) -> Manifest:
        """See the port."""
        await self._work()
        self._want_room()
        known = self._written(volume)
        rules.check_epoch(volume, epoch, known.epoch)
        self._shelf.settle()
        newest = known.newest
        if newest is not None and not known.is_touched and not (always or checkpoint):
            return newest
        return self._publish(known, epoch, checkpoint)

    async def touched(self, volumes: Collection[str]) -> frozenset[str]:
        """See the port."""
        await self._process.passes()
        self._shelf.settle()
        return frozenset(name for name in volumes if name in self._volumes and self._volumes[name].is_touched)

    async def snapshots(self, volume: str) -> tuple[Manifest, ...]:
        """See the port."""
        return tuple(self._get(volume).snapshots)

    async def label(self, volume: str, number: int, checkpoint: str) -> Manifest:
        """See the port."""
        known = self._get(volume)
        held = rules.numbered(known.snapshots, number, volume)
        named = replace(held, checkpoint=rules.check_checkpoint(checkpoint))
        known.snapshots[known.snapshots.index(held)] = named
        return named

    async def remove(self, volume: str, number: int) -> None:
        """See the port."""
        known = self._get(volume)
        held = rules.numbered(known.snapshots, number, volume)
        if held is known.newest:
            raise ConflictError(f"Snapshot {number} is the newest of volume {volume}.")
        known.snapshots.remove(held)

    async def changes(self, volume: str, number: int, *, since: int = 0) -> Delta:
        """See the port."""
        known = self._get(volume)
        wanted = rules.numbered(known.snapshots, number, volume)
        if number in known.bad:
            raise PermanentError(f"Snapshot {number} of volume {volume} cannot be read.")
        base = rules.numbered(known.snapshots, since, volume).root if since else ""
        return Delta(wanted, base, ())

    async def read(self, volume: str, number: int, ranges: Sequence[Range]) -> tuple[Piece, ...]:
        """See the port: no delta has bytes here."""
        return ()

    async def accept(self, delta: Delta, pieces: AsyncIterator[Piece], *, begin: int = 0) -> bool:
        """See the port."""
        said = delta.manifest
        rules.check_volume(said.volume)
        async for _ in pieces:
            pass
        await self._work()
        self._want_room()
        known = self._volumes.get(said.volume)
        if known is not None:
            _settle(known)
            if known.head is not None:
                raise ConflictError(f"Volume {said.volume} is written here.", reason="WrittenHere")
        newest, epoch = (known.newest, known.epoch) if known is not None else (None, 0)
        if not rules.check_delta(delta, newest, epoch, TOTAL_BYTES):
            return False
        if known is None:
            known = self._volumes.setdefault(said.volume, SimVolume(said.volume, said.epoch, said.size_bytes))
        known.epoch = said.epoch
        known.pending = said
        self._shelf.on_accept(said.volume, said)
        return True

    async def partial(self, volume: str) -> Partial | None:
        """See the port: a delta without bytes is not cut off."""
        return None

    async def settle(self, volume: str) -> Manifest | None:
        """See the port."""
        await self._process.passes()
        return _settle(self._get(volume))

    async def restore(self, volume: str, number: int, *, epoch: int) -> Manifest:
        """See the port."""
        await self._work()
        known = self._written(volume)
        rules.check_epoch(volume, epoch, known.epoch)
        known.head = self._shelf.contents.of(rules.numbered(known.snapshots, number, volume).root)
        known.written_s, known.dirty_s = 0.0, None
        return self._publish(known, epoch, "")

    async def clone(self, volume: str, into: str, *, number: int = 0, tail: bool = False) -> VolumeInfo:
        """See the port."""
        self._want_new(into)
        known = self._get(volume)
        shown = known.tails if tail else known.snapshots
        held = rules.numbered(shown, number, volume) if number else known.newest
        made = SimVolume(into, 1, known.size_bytes)
        made.head = known.head if held is None else self._shelf.contents.of(held.root)
        self._volumes[into] = made
        return _info(made)

    async def verify(self, volume: str, number: int) -> tuple[Range, ...]:
        """See the port."""
        known = self._get(volume)
        return (Range(0, known.size_bytes),) if number in known.bad else ()

    async def quarantine(self, volume: str, number: int, *, tail: bool = False) -> None:
        """See the port."""
        await self._process.passes()
        known = self._get(volume)
        held = rules.numbered(known.snapshots, number, volume)
        known.snapshots.remove(held)
        known.floor = max(known.floor, number)
        if number in known.bad:
            known.bad.discard(number)  # it may come again, whole
            return
        known.aside.append(held)
        if tail:
            known.tails.append(held)

    async def tails(self, volume: str) -> tuple[Manifest, ...]:
        """See the port."""
        return rules.in_order(self._get(volume).tails)

    async def note(self, volume: str, content: bytes) -> None:
        """See the port."""
        self._get(volume).notes = content

    async def notes(self, volume: str) -> bytes:
        """See the port."""
        return self._get(volume).notes

    async def close(self) -> None:
        """See the port."""

    # ------------------------------------------------------------ inside

    async def _work(self) -> None:
        """What touches the disk takes a moment; who is dead does nothing."""
        await self._process.clock.sleep(self._rng.uniform(0.002, 0.03))
        await self._process.passes()

    def _get(self, volume: str) -> SimVolume:
        known = self._volumes.get(volume)
        if known is None:
            raise NotFoundError(f"This node has no volume {volume[:80]}.")
        return known

    def _written(self, volume: str) -> SimVolume:
        known = self._get(volume)
        if known.head is None:
            raise ConflictError(f"Volume {volume} is only held here, nothing writes it.", reason="NotWrittenHere")
        return known

    def _want_new(self, volume: str) -> None:
        if volume in self._volumes and not self._volumes[volume].is_bare:
            raise AlreadyExistsError(f"Volume {volume} exists on this node.")
        self._want_room()

    def _want_room(self) -> None:
        if self._shelf.full:
            raise CapacityError("The pool has no room.")

    def _publish(self, known: SimVolume, epoch: int, checkpoint: str) -> Manifest:
        """The next snapshot, of all that is written by now."""
        assert known.head is not None
        if known.written_s > known.head.at_s:
            since_s = known.dirty_s if known.dirty_s is not None else known.head.at_s
            known.head = self._shelf.contents.write(known.head, since_s, known.written_s, known.writer_epoch, self._shelf.node)
        known.dirty_s = None
        made = Manifest(
            volume=known.name,
            epoch=epoch,
            number=rules.next_number(known.numbers(), known.floor),
            parent=known.newest.root if known.newest else "",
            size_bytes=known.size_bytes,
            time_s=self._process.clock.wall().timestamp(),
            changed=(),
            root=known.head.root,
            checkpoint=checkpoint,
        )
        known.epoch = epoch
        known.floor = made.number
        known.snapshots.append(made)
        self._shelf.on_cut(known.name, made)
        return made


def _settle(known: SimVolume) -> Manifest | None:
    built, known.pending = known.pending, None
    if built is not None:
        known.snapshots.append(built)
        known.floor = max(known.floor, built.number)
        known.size_bytes = built.size_bytes
    return built


def _info(known: SimVolume) -> VolumeInfo:
    newest = known.newest.number if known.newest else 0
    pending = known.pending.number if known.pending else 0
    aside = tuple(sorted(each.number for each in known.aside))
    tails = tuple(sorted(each.number for each in known.tails))
    return VolumeInfo(known.name, known.size_bytes, known.epoch, known.head is not None, newest, pending, aside, tails)

"""The volumes port: disks in this node's pool, their snapshots, and copies of other nodes' disks. Bodies: btrfs, memory.

A volume is either *written here* (it has a disk) or *held here* (snapshots only, which deltas bring). Snapshots are whole,
verified and immutable; one becomes visible at once or not at all. What returned is durable. Volumes do not wait for each
other; calls about one volume follow one another. Every method raises PrimordiaError, and NotFoundError for what is not here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from primordia.domain.ranges import Range
from primordia.domain.snapshots import Delta, Manifest

PIECE_BYTES = 1 << 20
READ_BYTES = 64 << 20


@dataclass(frozen=True)
class PoolStatus:
    """Room in bytes. `reserve_bytes` stays free for the copy-on-write of disks in use.

    `problems` are sentences for people; there are none while the pool is well.
    """

    total_bytes: int
    used_bytes: int
    free_bytes: int
    reserve_bytes: int
    problems: tuple[str, ...] = ()

    @property
    def room_bytes(self) -> int:
        """What may still be promised."""
        return max(0, self.free_bytes - self.reserve_bytes)


@dataclass(frozen=True)
class VolumeInfo:
    """A volume here. `epoch` is the highest seen, `newest` the newest snapshot's number (0: none), `pending` one that was
    accepted and is not published yet (0: none), `aside` the numbers of quarantined snapshots, as often as it happened, of
    which `tails` are good ones."""

    name: str
    size_bytes: int
    epoch: int
    written_here: bool
    newest: int
    pending: int = 0
    aside: tuple[int, ...] = ()
    tails: tuple[int, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of a disk: its bytes, or none (`data` empty) where all of them are zero. At most PIECE_BYTES."""

    range: Range
    data: bytes


@dataclass(frozen=True)
class Partial:
    """A delta whose sender was cut off: the first `bytes_done` bytes of its ranges are here, and not believed yet."""

    delta: Delta
    bytes_done: int


class Volumes(Protocol):
    """One node's pool."""

    async def pool(self) -> PoolStatus:
        """Room and health, as they are now."""

    async def list(self) -> tuple[VolumeInfo, ...]:
        """Every volume here, in order of name."""

    async def find(self, volume: str) -> VolumeInfo | None:
        """One volume."""

    async def create(self, volume: str, size_bytes: int, *, epoch: int = 1) -> VolumeInfo:
        """A new, sparse disk of zeros, rounded up to a whole chunk. AlreadyExistsError, CapacityError, InvalidError.

        A volume of which nothing but tails is here begins anew, and keeps them.
        """

    async def disk(self, volume: str, *, epoch: int = 0) -> Path:
        """The raw disk image that a microVM writes; made from the newest snapshot where the volume is only held here.

        With an `epoch`, in which it is about to be written: ConflictError (StaleEpoch) where that is over, and after this
        no older one is believed.
        """

    async def release(self, volume: str) -> None:
        """Stop writing here: the disk goes, with what it holds beyond the newest snapshot. Cut first if that matters.

        ConflictError when there is no snapshot, for then nothing would be left.
        """

    async def grow(self, volume: str, size_bytes: int) -> VolumeInfo:
        """Make the disk larger, also while it is in use. InvalidError when that would shrink it."""

    async def destroy(self, volume: str) -> None:
        """Delete the volume with all its snapshots. One that is not here is no error."""

    async def retire(self, volume: str) -> None:
        """Delete all of the volume but its tails; without any this is `destroy`. May be repeated."""

    async def cut(self, volume: str, *, epoch: int, checkpoint: str = "", always: bool = False) -> Manifest:
        """Snapshot the disk as it is now (what was not flushed counts too); unchanged, the newest is answered again.

        `always` and a checkpoint's name make one anyway. Raises CapacityError, ConflictError (StaleEpoch).
        """

    async def touched(self, volumes: Collection[str]) -> frozenset[str]:
        """Which of these disks may have changed since their newest snapshot; of no use where one may not be missed.

        It costs next to nothing, and may be a minute late with a write that was stalled while a snapshot was made.
        """

    async def snapshots(self, volume: str) -> tuple[Manifest, ...]:
        """The published ones, oldest first. One that is being made meanwhile is not awaited, and not among them."""

    async def label(self, volume: str, number: int, checkpoint: str) -> Manifest:
        """Name a snapshot, or take its name away (empty)."""

    async def remove(self, volume: str, number: int) -> None:
        """Delete a snapshot. ConflictError for the newest. What else may not go is `domain.retention`'s to say.

        Of all that is durable here this alone is not: after a power cut it may be back, whole.
        """

    async def changes(self, volume: str, number: int, *, since: int = 0) -> Delta:
        """What turns snapshot `since` (0: nothing at all) into `number`: at least the bytes that differ."""

    async def read(self, volume: str, number: int, ranges: Sequence[Range]) -> tuple[Piece, ...]:
        """Those bytes of a snapshot, at most READ_BYTES in all (InvalidError), cut into pieces in the same order."""

    async def accept(self, delta: Delta, pieces: AsyncIterator[Piece], *, begin: int = 0) -> bool:
        """Take a delta from the owner; once it returns, it is verified and durable, and may be acknowledged.

        A volume that is not here yet begins with a delta without base. False when the snapshot was here already. What
        waits from before is published first. Raises ConflictError (StaleEpoch, OtherBase, OldNumber, WrittenHere; Destroyed:
        the volume was destroyed or retired since this was called), InvalidError (a delta that contradicts itself or its
        hashes), CapacityError. Whatever fails leaves nothing.

        Except where `pieces` itself fails with what may pass, as a link that is cut: what had come is kept as `partial`, and
        the same delta goes on from there with `begin` as its `bytes_done`. ConflictError (OtherOffset) when it is not that.
        """

    async def partial(self, volume: str) -> Partial | None:
        """What was left when a delta was cut off; the next delta of another content replaces it. Survives the process."""

    async def settle(self, volume: str) -> Manifest | None:
        """Build the accepted delta's snapshot beside the others and publish it; None when nothing waits."""

    async def restore(self, volume: str, number: int, *, epoch: int) -> Manifest:
        """Give the disk an old snapshot's content under the next number. Nothing may have the disk open: it is replaced.

        What the disk held beyond the newest snapshot is gone. Raises ConflictError (StaleEpoch).
        """

    async def clone(self, volume: str, into: str, *, number: int = 0, tail: bool = False) -> VolumeInfo:
        """A new volume with the content of a snapshot, or (0) of the disk as it is now; in constant time.

        `tail`: of one that was put aside as such; of several with that number, of the newest.
        """

    async def verify(self, volume: str, number: int) -> tuple[Range, ...]:
        """Read a snapshot back and compare it with its manifest; the chunks that differ, none when it is good."""

    async def quarantine(self, volume: str, number: int, *, tail: bool = False) -> None:
        """Put a snapshot aside: it is not shown, not built upon, and its number not used again by `cut`.

        A doubtful one, or a `tail`: a good one that the volume's owner never had, kept for people to look into.
        """

    async def tails(self, volume: str) -> tuple[Manifest, ...]:
        """Those that were put aside as tails, in order of epoch and number; they are there until `destroy`."""

    async def note(self, volume: str, content: bytes) -> None:
        """Keep a few words beside the volume, for whoever has nothing but this pool; they replace those from before."""

    async def notes(self, volume: str) -> bytes:
        """The words; empty when there are none."""

    async def close(self) -> None:
        """Let the pool go, once everything under way has ended."""

"""Snapshots and deltas of a volume: what they say of themselves, their numbers, and which delta a holder may take. Pure.

Invariants: a number is used once in an epoch's line and numbers only rise; a snapshot is named by the hash over its whole
content (`root`), so `parent` means content, not position; a delta applies to exactly one content, its `base`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from primordia.domain import ranges as spans
from primordia.domain.ranges import Range
from primordia.kit.errors import ConflictError, InvalidError, NotFoundError

CHUNK_BYTES = 64 * 1024
"""A volume's size is a multiple of it, and each chunk has a hash: small enough to heal cheaply, large enough to be few."""

_VOLUME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ROOT = re.compile(r"[0-9a-f]{64}")
_CHECKPOINT = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?)?")


@dataclass(frozen=True)
class Manifest:
    """A snapshot: `parent` and `root` are hashes over the whole content, `parent` empty for a volume's first.

    `time_s` is wall time for people (Unix seconds), `changed` what differs from the parent (it may name more, never
    less), `checkpoint` the name under which somebody keeps it.
    """

    volume: str
    epoch: int
    number: int
    parent: str
    size_bytes: int
    time_s: float
    changed: tuple[Range, ...]
    root: str
    checkpoint: str = ""


@dataclass(frozen=True)
class Delta:
    """What turns the content `base` (a root; empty: nothing but zeros) into the snapshot of `manifest`."""

    manifest: Manifest
    base: str
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class Lag:
    """How far a replica is behind its owner; all 0 when it holds the newest."""

    snapshots: int = 0
    bytes: int = 0
    seconds: float = 0.0


def round_up(size_bytes: int) -> int:
    """The size that a volume of at least so many bytes gets. InvalidError when it is not positive."""
    if size_bytes <= 0:
        raise InvalidError("size", f"{size_bytes} bytes are not the size of a volume", remedy="Ask for at least 64Ki.")
    return -(-size_bytes // CHUNK_BYTES) * CHUNK_BYTES


def check_volume(volume: str) -> str:
    """The name itself. InvalidError when it could not be a volume's (it becomes a folder's name)."""
    if _VOLUME.fullmatch(volume) is None:
        raise InvalidError("volume", f"{volume[:80]!r} is no name of a volume", remedy="Use up to 63 of a-z, 0-9 and '-'.")
    return volume


def check_checkpoint(name: str) -> str:
    """The name itself; empty is none. InvalidError when it cannot be a checkpoint's."""
    if _CHECKPOINT.fullmatch(name) is None:
        raise InvalidError("checkpoint", f"{name[:80]!r} is no name", remedy="Use up to 63 of a-z, 0-9, '-' and '.'.")
    return name


def next_number(numbers: Iterable[int], floor: int) -> int:
    """The number of the next snapshot: above every one that is there, put aside, or was ever used (`floor`)."""
    return max((*numbers, floor), default=0) + 1


def numbered(manifests: Sequence[Manifest], number: int, volume: str) -> Manifest:
    """The snapshot of that number. NotFoundError."""
    for each in manifests:
        if each.number == number:
            return each
    raise NotFoundError(f"Volume {volume} has no snapshot {number} here.")


def in_order(manifests: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """By epoch, then number."""
    return tuple(sorted(manifests, key=lambda each: (each.epoch, each.number, each.time_s)))


def tail_of(tails: Iterable[Manifest], number: int, volume: str) -> Manifest:
    """The newest of that number. NotFoundError."""
    found = [each for each in in_order(tails) if each.number == number]
    if not found:
        raise NotFoundError(
            f"Nothing with number {number} of volume {volume} was put aside here.",
            remedy="`primordia volume ls --orphans` shows what was.",
        )
    return found[-1]


def check_epoch(volume: str, epoch: int, highest: int) -> None:
    """ConflictError (StaleEpoch) when `epoch` is older than the highest that was seen."""
    if epoch < highest:
        raise ConflictError(
            f"Epoch {epoch} of volume {volume} is over: {highest} has begun.",
            reason="StaleEpoch",
            remedy="Its owner has moved on; put the rest aside.",
        )


def check_delta(delta: Delta, newest: Manifest | None, highest_epoch: int, largest_bytes: int) -> bool:
    """Whether a holder of `newest` takes this delta; False when it holds the snapshot already.

    Raises InvalidError for what no honest sender sends, ConflictError (StaleEpoch, OtherBase, OldNumber) for what does
    not fit here.
    """
    said = delta.manifest
    check_words(delta, largest_bytes)
    check_epoch(said.volume, said.epoch, highest_epoch)
    if newest is not None and (said.number, said.epoch, said.root) == (newest.number, newest.epoch, newest.root):
        return False
    held = newest.root if newest is not None else ""
    if delta.base != held:
        here, begins = held[:12] or "nothing", delta.base[:12] or "nothing"
        raise ConflictError(
            f"Volume {said.volume} is at {here} here, and the delta begins at {begins}.",
            reason="OtherBase",
            remedy="Send what differs from the newest common snapshot.",
        )
    if newest is not None and said.number <= newest.number:
        raise ConflictError(
            f"Volume {said.volume} has snapshot {newest.number} here, {said.number} is older.", reason="OldNumber"
        )
    return True


def check_words(delta: Delta, largest_bytes: int) -> None:
    """InvalidError for what no honest sender says, whatever the holder has."""
    said = delta.manifest
    check_volume(said.volume)
    check_checkpoint(said.checkpoint)
    if said.number < 1 or said.epoch < 0:
        raise InvalidError("number", f"snapshot {said.number} of epoch {said.epoch} cannot be")
    if said.size_bytes <= 0 or said.size_bytes % CHUNK_BYTES or said.size_bytes > largest_bytes:
        raise InvalidError("size", f"{said.size_bytes} bytes are no volume's size here (at most {largest_bytes})")
    for field, root, may_be_empty in (("root", said.root, False), ("parent", said.parent, True), ("base", delta.base, True)):
        if _ROOT.fullmatch(root) is None and not (may_be_empty and not root):
            raise InvalidError(field, f"{root[:80]!r} is no hash")
    spans.check(said.changed, said.size_bytes, "changed")
    spans.check(delta.ranges, said.size_bytes)


def lag_of(owner: Sequence[Manifest], held_number: int, now_s: float, interval_s: float) -> Lag:
    """The lag of a replica that holds `held_number` (0: nothing) behind the owner's snapshots.

    A snapshot holds writes no older than the interval before it: the time of the first missing one says since when
    something is at risk.
    """
    missing = sorted((each for each in owner if each.number > held_number), key=lambda each: each.number)
    if not missing:
        return Lag()
    since = missing[0].time_s - interval_s
    held = [each.time_s for each in owner if each.number == held_number]
    return Lag(len(missing), sum(spans.total(each.changed) for each in missing), max(0.0, now_s - max([since, *held])))

"""The formats of the small files beside the disks: a volume's record, and manifests.

Each begins or ends with a BLAKE3 hash over itself, so that a flipped bit is told from an honest content. A record that is not
whole raises `DamagedError`; its owner puts the file aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from primordia.domain.snapshots import Manifest
from primordia.kit import chunk_hash
from primordia.kit.errors import PermanentError

T = TypeVar("T")


class DamagedError(PermanentError):
    """A file of the pool is not what was written."""

    reason = "Damaged"


@dataclass(frozen=True)
class Restoring:
    """A restore that was begun: it is done again until it is done."""

    source: int
    number: int


@dataclass(frozen=True)
class Record:
    """A volume: the highest epoch seen and the highest number used, as far as no manifest says so."""

    name: str
    epoch: int
    floor: int = 0
    restoring: Restoring | None = None


def encode(value: Record | Manifest) -> bytes:
    """A small sealed file."""
    content = msgspec.json.encode(value)
    return chunk_hash.seal(content).hex().encode() + b"\n" + content + b"\n"


def decode(content: bytes, kind: type[T], path: Path) -> T:
    """The other way. DamagedError."""
    seal, _, body = content.partition(b"\n")
    body = body.removesuffix(b"\n")
    if chunk_hash.seal(body).hex().encode() != seal:
        raise DamagedError(f"{path} is damaged.", remedy="It is put aside; another copy heals it.")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise DamagedError(f"{path} is not of this version ({error}).") from error

"""Snapshots as the API tells of them, and finding the one that somebody means. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from primordia.domain import ranges as spans
from primordia.domain.snapshots import Manifest
from primordia.kit.errors import NotFoundError
from primordia.wire import data as wire
from primordia.wire.volumes import Checkpoint


def moment(manifest: Manifest) -> str:
    """When it was cut, for people (RFC 3339, to the millisecond: there may be several in a second)."""
    seen = datetime.datetime.fromtimestamp(manifest.time_s, datetime.UTC)
    return seen.strftime("%Y-%m-%dT%H:%M:%S.") + f"{seen.microsecond // 1000:03d}Z"


def told(manifest: Manifest) -> wire.Snapshot:
    """One snapshot."""
    return wire.Snapshot(
        number=manifest.number,
        epoch=manifest.epoch,
        root=manifest.root,
        size_bytes=manifest.size_bytes,
        changed_bytes=spans.total(manifest.changed),
        at=moment(manifest),
        checkpoint=manifest.checkpoint,
    )


def checkpoints_of(there: Sequence[Manifest]) -> tuple[Checkpoint, ...]:
    """The named ones, as a volume's status has them."""
    return tuple(Checkpoint(name=each.checkpoint, number=each.number, at=moment(each)) for each in there if each.checkpoint)


def find_snapshot(there: Sequence[Manifest], wanted: str, title: str) -> Manifest:
    """The snapshot of that number, or the newest with that checkpoint's name. NotFoundError, naming what there is."""
    number = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 19 else 0
    for each in reversed(there):
        if each.number == number or (not number and each.checkpoint == wanted):
            return each
    names = ", ".join(sorted({each.checkpoint for each in there if each.checkpoint})) or "no checkpoints"
    numbers = f"snapshots {there[0].number} to {there[-1].number}" if there else "no snapshots"
    raise NotFoundError(f"The volume {title} has no snapshot {wanted!r} here.", remedy=f"It has {numbers}, and {names}.")

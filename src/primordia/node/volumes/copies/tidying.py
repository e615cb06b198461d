"""Which snapshots of a copy may go: by the volume's own policy, as with its owner. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from primordia.domain.retention import Retention, to_drop
from primordia.domain.snapshots import Manifest
from primordia.wire.resources import Volume

_MOST = 4


def droppable_here(volume: Volume, snapshots: Sequence[Manifest], in_use: int) -> tuple[int, ...]:
    """A few numbers that may be removed now. What the owner named a checkpoint stays, and so does what is being read."""
    policy = volume.spec.snapshots
    named = {each.number: each.name for each in volume.status.checkpoints}
    # The owner's word, for a name that was given after it was sent here is not in the manifest, nor is one taken away.
    labelled = [replace(each, checkpoint=named.get(each.number, "")) for each in snapshots]
    return to_drop(labelled, Retention(policy.last, policy.hourly, policy.daily), {in_use})[:_MOST]

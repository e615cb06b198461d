"""The parts of `kind: Volume`, of a lifeform's inline `data` and `replication`, and of a node's pool, on the wire.

One field has one writer: the controllers write a volume's owner, epoch, holders, phase and conditions, the owner's daemon
the rest (each field says which). Types only; what they may hold is checked in `wire/volume_rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from primordia.wire.meta import Condition, Wire, always

Filesystem = Literal["ext4", "xfs"]
_HOLDER = "volume.primordia.dev/"
CopyState = Literal["Seeding", "InSync", "Behind", "Unreachable", "Failed"]


class SnapshotPolicy(Wire, frozen=True, kw_only=True):
    """A snapshot is cut every `interval` in which something changed. The `last` ones stay, and the newest of each of so many
    hours (`hourly`) and days (`daily`). With `quiesce` the guest's file system is frozen for the moment of the cut."""

    interval: str = "1s"
    last: int = 10
    hourly: int = 24
    daily: int = 7
    quiesce: bool = False


class Layout(Wire, frozen=True, kw_only=True):
    """`mirror` counts whole copies besides the owner's. Left out, it is 1 where the soup has two racks, and 0 where not."""

    mirror: int | None = None


class Replication(Wire, frozen=True, kw_only=True):
    """Each copy lies on a rack (or segment) of its own: `spread`. A sync waits for `acks` copies.

    Snapshots are sent every `interval` (empty: as they are cut), at most `bandwidth` bytes a second (empty: no limit).
    """

    layout: Layout = Layout()
    spread: Literal["rack", "segment"] = "rack"
    acks: int = 1
    interval: str = ""
    bandwidth: str = ""


class Data(Wire, frozen=True, kw_only=True):
    """A context's data volume: `size` may grow and never shrinks, `mountPath` and `filesystem` stay as they are."""

    size: str
    mount_path: str = "/data"
    filesystem: Filesystem = "ext4"
    snapshots: SnapshotPolicy = SnapshotPolicy()


class VolumeSpec(Wire, frozen=True, kw_only=True):
    """A disk of `size` bytes with a `filesystem`. `lifeform` and `context` (its name within the lifeform) are whose it is or
    was last; both empty for one that nobody has used."""

    size: str
    filesystem: Filesystem = "ext4"
    lifeform: str = ""
    context: str = ""
    replication: Replication | None = None
    snapshots: SnapshotPolicy = SnapshotPolicy()


class VolumeCopy(Wire, frozen=True, kw_only=True):
    """What a node holds of the volume, as the owner knows it: snapshot `number` of `epoch`, and how far behind that is.

    `lag_seconds` is how long the oldest snapshot that it lacks has existed. `message` is the cause when it is not InSync.
    """

    node: str
    rack: str = ""
    segment: str = ""
    epoch: int = 0
    number: int = 0
    lag_snapshots: int = 0
    lag_bytes: int = 0
    lag_seconds: float = 0
    state: CopyState = always("Seeding")
    message: str = ""


class LastSync(Wire, frozen=True, kw_only=True):
    """The newest sync that returned: its snapshot, when (RFC 3339), and the nodes whose copies acknowledged it."""

    epoch: int
    number: int
    at: str = ""
    copies: tuple[str, ...] = ()


class Handover(Wire, frozen=True, kw_only=True):
    """Nothing writes the volume any more in `epoch`: the node `to` is to have all of it. `at` tells this wish from others."""

    to: str
    epoch: int
    at: str


class HandedOver(Wire, frozen=True, kw_only=True):
    """All that was written until the Handover with this `at` was asked for is in snapshot `number` (0: nothing ever was),
    which the node `to` holds durably."""

    to: str
    at: str
    number: int = 0


class RestoredFrom(Wire, frozen=True, kw_only=True):
    """How `epoch` began, after the death of the owner before, `node`: from its snapshot `number` (0: empty, with no copy left).

    At most so many seconds of writes were lost. `allow_loss`: the snapshot is older than the last sync, or there is none, and
    somebody had said that this will do. `earlier` are epoch and number of the times before, oldest first: a node that slept
    through several has to know them all.
    """

    epoch: int
    node: str
    number: int
    lost_seconds: float = 0
    allow_loss: bool = False
    at: str = ""
    earlier: tuple[tuple[int, int], ...] = ()


class Checkpoint(Wire, frozen=True, kw_only=True):
    """A snapshot with a `name`, which stays until the name is taken away."""

    name: str
    number: int
    at: str = ""


class VolumeStatus(Wire, frozen=True, kw_only=True):
    """`phase` is Pending (no node yet), Bound (of a lifeform), Available (of none) or Unknown (its owner's node is silent).

    The controllers write `phase`, `node` (the owner) and its `epoch`, `owner_since` (the epoch in which this node became the
    owner), `restored_from`, `replicas` (who is to hold copies), `handover`, `conditions` and `observed_generation`; the
    owner's daemon writes `number` (the newest snapshot), `size_bytes` (the disk as it is), `used_bytes` (what it takes in the
    pool), `copies`, `last_sync`, `handed_over` and `checkpoints`. Not each snapshot is written here.
    Every later epoch is above `epoch_base`.
    """

    phase: str = always("Pending")
    node: str = ""
    epoch: int = 0
    owner_since: int = 0
    restored_from: RestoredFrom | None = None
    replicas: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0
    number: int = 0
    size_bytes: int = 0
    used_bytes: int = 0
    copies: tuple[VolumeCopy, ...] = ()
    last_sync: LastSync | None = None
    handover: Handover | None = None
    handed_over: HandedOver | None = None
    epoch_base: int = 0
    checkpoints: tuple[Checkpoint, ...] = ()


class PoolSummary(Wire, frozen=True, kw_only=True):
    """A node's pool in bytes; `total_bytes` is 0 where there is none. Nothing new is begun below `reserve_bytes` free.

    `problems` are sentences for people; there are none while the pool is well.
    """

    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    reserve_bytes: int = 0
    problems: tuple[str, ...] = ()

    @property
    def room_bytes(self) -> int:
        """What may still be promised."""
        return max(0, self.free_bytes - self.reserve_bytes)


def owned_by(status: VolumeStatus, node: str, epoch: int) -> VolumeStatus:
    """The status with that owner in that epoch. Whoever gives a volume to a node does it with this."""
    since = status.owner_since if status.node == node else epoch
    return msgspec.structs.replace(status, node=node, epoch=epoch, owner_since=since)


def is_tail(began: RestoredFrom | None, epoch: int, number: int) -> bool:
    """Whether a snapshot is of a tail: a node that took the volume over in a later epoch went on from an older one."""
    times = ((began.epoch, began.number), *began.earlier) if began is not None else ()
    return any(epoch < since and number > start for since, start in times)


def holder_finalizer(node: str) -> str:
    """What keeps a Volume's object until that node has deleted what it holds of it, written or copied."""
    return f"{_HOLDER}{node}"


def holders_of(finalizers: Iterable[str]) -> tuple[str, ...]:
    """The nodes that have not deleted yet what they hold."""
    return tuple(each.removeprefix(_HOLDER) for each in finalizers if each.startswith(_HOLDER))

"""What one asks of a volume, as it crosses the API: between clients and servers, and between nodes.

Every answer comes from the node that owns the volume: it alone knows its snapshots. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from primordia.domain.snapshots import check_checkpoint
from primordia.kit.errors import InvalidError
from primordia.wire import checks
from primordia.wire.meta import Wire
from primordia.wire.problems import Problems

SNAPSHOTS, RESTORE, CLONE, EXPORT, IMPORT, SYNC, SCRUB = "snapshots", "restore", "clone", "export", "import", "sync", "scrub"
"""Subresources of a volume."""
ORPHANS = "orphans"
"""Subresource of a node: what it keeps of volumes that their owners never had."""
INTERNAL_VOLUMES = "/internal/v1/volumes"
"""Where a node answers for its own volumes to the other nodes: INTERNAL_VOLUMES/NAMESPACE/NAME/SUBRESOURCE."""
INTERNAL_ORPHANS = f"{INTERNAL_VOLUMES}/{ORPHANS}"
"""And for its orphans."""
ACTIONS: dict[str, tuple[str, ...]] = {SNAPSHOTS: ("GET", "POST"), CLONE: ("POST",)}
"""Those that take a moment, and their methods."""
STREAMS: dict[str, tuple[str, ...]] = {
    EXPORT: ("GET",),
    IMPORT: ("POST",),
    RESTORE: ("POST",),
    SYNC: ("POST",),
    SCRUB: ("POST",),
}
"""Those that may take any time."""
LONGEST_SYNC_S = 3600.0
LARGEST_DISK = 1 << 46


class SnapshotRequest(Wire, frozen=True, kw_only=True):
    """A snapshot of now. With `checkpoint` it is kept under that name; `quiesce` asks the guest to stand still for it."""

    checkpoint: str = ""
    quiesce: bool = False


class Snapshot(Wire, frozen=True, kw_only=True):
    """One snapshot: `changed_bytes` is what differs from the one before it (it may say more, never less)."""

    number: int
    epoch: int
    root: str
    size_bytes: int
    changed_bytes: int
    at: str
    checkpoint: str = ""


class SnapshotTaken(Wire, frozen=True, kw_only=True):
    """What was cut. `quiesced` says whether the guest stood still; `note` tells, if it was to and did not, why."""

    snapshot: Snapshot
    quiesced: bool = False
    note: str = ""


class SnapshotList(Wire, frozen=True, kw_only=True):
    """A volume's snapshots, oldest first."""

    items: tuple[Snapshot, ...] = ()


class RestoreRequest(Wire, frozen=True, kw_only=True):
    """`to` is a number or a checkpoint's name."""

    to: str


class Restored(Wire, frozen=True, kw_only=True):
    """The content of `source` is snapshot `number` of `epoch` now, and `before` is how the volume was.

    `lost_seconds` is the time between `source` and `before`, whose writes are no longer seen. `restarted`: what ran with
    the volume was stopped for it, and runs again.
    """

    number: int
    epoch: int
    source: Snapshot
    before: Snapshot
    lost_seconds: float = 0.0
    restarted: bool = False


class CloneRequest(Wire, frozen=True, kw_only=True):
    """A new volume `name`, beside the old one, with the content of `source` (a number or checkpoint; empty: of now).

    With `orphan` (NODE/NUMBER) it is made on that node, of what is kept there and the volume's owner never had.
    """

    name: str
    source: str = ""
    orphan: str = ""


class Orphan(Wire, frozen=True, kw_only=True):
    """What a node keeps of a volume, and its owner never had: a snapshot that was put aside.

    `snapshot` is None for a disk whose volume has no object any more: nothing is done with it, and it has no name.
    """

    uid: str
    node: str
    namespace: str = ""
    name: str = ""
    size_bytes: int = 0
    snapshot: Snapshot | None = None


class OrphanList(Wire, frozen=True, kw_only=True):
    """One node's."""

    items: tuple[Orphan, ...] = ()


class Cloned(Wire, frozen=True, kw_only=True):
    """The new volume, by name and uid. `took_ms` is what the pool needed for it."""

    name: str
    uid: str
    node: str
    size_bytes: int
    took_ms: float


class ImportRequest(Wire, frozen=True, kw_only=True):
    """A new volume `name` of `size_bytes`, whose content follows; `node` empty: where there is most room."""

    name: str
    size_bytes: int
    filesystem: str = "ext4"
    node: str = ""


class Imported(Wire, frozen=True, kw_only=True):
    """The new volume, with the root of its content."""

    name: str
    uid: str
    node: str
    size_bytes: int
    root: str


class SyncRequest(Wire, frozen=True, kw_only=True):
    """At most how long to wait for `acks` copies."""

    timeout_seconds: float = 30.0


class SyncResult(Wire, frozen=True, kw_only=True):
    """Everything written before the call is in snapshot `number`, and that one durable on the nodes `copies`."""

    number: int
    epoch: int
    copies: tuple[str, ...] = ()
    at: str = ""


class ScrubbedCopy(Wire, frozen=True, kw_only=True):
    """What reading one node's snapshots back has shown: `damaged` are numbers that were put aside, `healed` those since
    brought again from a good copy."""

    node: str
    snapshots: int = 0
    read_bytes: int = 0
    damaged: tuple[int, ...] = ()
    healed: tuple[int, ...] = ()
    message: str = ""


class ScrubResult(Wire, frozen=True, kw_only=True):
    """Every holder's."""

    copies: tuple[ScrubbedCopy, ...] = ()


def problems_of_snapshot(request: SnapshotRequest) -> Problems:
    """What is wrong with a request for a snapshot."""
    out = Problems()
    _checkpoint(out, "checkpoint", request.checkpoint)
    if request.checkpoint.isdigit():
        out.invalid("checkpoint", "is a number, and would be taken for that of a snapshot")
    return out


def problems_of_restore(request: RestoreRequest) -> Problems:
    """What is wrong with a request for a restore."""
    out = Problems()
    if not request.to:
        out.required("to", "is missing: a snapshot's number or a checkpoint")
    _checkpoint(out, "to", request.to)
    return out


def problems_of_clone(request: CloneRequest) -> Problems:
    """What is wrong with a request for a clone."""
    out = Problems()
    checks.check_subdomain(out, "name", request.name)
    _checkpoint(out, "source", request.source)
    if request.orphan and request.source:
        out.invalid("orphan", "cannot be asked for together with a source")
    if request.orphan and orphan_place(request.orphan) is None:
        out.invalid("orphan", "is not NODE/NUMBER, as `primordia volume ls --orphans` shows them")
    return out


def orphan_place(words: str) -> tuple[str, int] | None:
    """The node and the number that `NODE/NUMBER` names; None when it is nothing of the kind."""
    node, _, number = words.partition("/")
    if not node or len(node) > 253 or not (number.isascii() and number.isdecimal() and 0 < len(number) < 19):
        return None
    return node, int(number)


def problems_of_import(request: ImportRequest) -> Problems:
    """What is wrong with a request for an import."""
    out = Problems()
    checks.check_subdomain(out, "name", request.name)
    checks.check_range(out, "sizeBytes", request.size_bytes, 0, LARGEST_DISK)
    if request.filesystem not in ("ext4", "xfs"):
        out.invalid("filesystem", "is neither ext4 nor xfs")
    return out


def problems_of_sync(request: SyncRequest) -> Problems:
    """What is wrong with a request for a sync."""
    out = Problems()
    checks.check_range(out, "timeoutSeconds", request.timeout_seconds, 0, LONGEST_SYNC_S)
    return out


def _checkpoint(out: Problems, path: str, name: str) -> None:
    try:
        check_checkpoint(name)
    except InvalidError as error:
        out.invalid(path, error.problem)

"""Volumes told for people: parts of `describe`, for a volume itself and for a lifeform's data."""

from __future__ import annotations

from primordia.kit.units import human_bytes
from primordia.wire.resources import Volume
from primordia.wire.tables import volume_protection
from primordia.wire.volumes import PoolSummary, Replication, RestoredFrom, VolumeCopy

Lines = list[tuple[str, str]]

COPIES = ["NODE", "RACK", "SEGMENT", "STATE", "SNAPSHOT", "LAG", "MESSAGE"]


def volume_lines(obj: Volume) -> Lines:
    """A volume, apart from its copies."""
    spec, status = obj.spec, obj.status
    policy = spec.snapshots
    kept = f"the last {policy.last}, {policy.hourly} hourly, {policy.daily} daily"
    lines: Lines = [
        ("Phase", status.phase),
        ("Lifeform", f"{spec.lifeform}, context {spec.context}" if spec.lifeform else "none"),
        ("Size", size_words(obj)),
        ("Filesystem", spec.filesystem),
        ("Owner", f"{status.node}, epoch {status.epoch}" if status.node else "none yet"),
        ("Replication", replication_words(spec.replication)),
        ("Snapshots", f"every {policy.interval}{', quiesced' if policy.quiesce else ''}, kept: {kept}"),
        ("Newest", f"snapshot {newest}" if (newest := newest_told(obj)) else "none yet"),
        ("Last sync", sync_words(obj)),
    ]
    if status.restored_from is not None:
        lines.append(("Restored from", restored_words(status.restored_from)))
    if status.checkpoints:
        lines.append(("Checkpoints", ", ".join(f"{each.name} (snapshot {each.number})" for each in status.checkpoints)))
    return lines


def data_lines(obj: Volume) -> Lines:
    """A volume as part of its lifeform."""
    status = obj.status
    found = next((each.message for each in status.conditions if each.type == "Protected"), "")
    return [
        ("Volume", f"{obj.metadata.name} on {status.node or 'no node yet'}, epoch {status.epoch}"),
        ("Size", size_words(obj)),
        ("Protection", f"{volume_protection(obj)}: {found}" if found else volume_protection(obj)),
        ("Last sync", sync_words(obj)),
        *([("Restored from", restored_words(status.restored_from))] if status.restored_from is not None else []),
    ]


def copy_rows(obj: Volume) -> list[list[str]]:
    """Its copies for a table: those that are told of, and those that are only wanted yet."""
    told = {copy.node: copy for copy in obj.status.copies}
    rows = [_row(copy) for copy in obj.status.copies]
    return rows + [[name, "-", "-", "Wanted", "-", "-", "-"] for name in obj.status.replicas if name not in told]


def size_words(obj: Volume) -> str:
    """What is asked for, what there is, and what it takes."""
    status = obj.status
    words = [obj.spec.size]
    if status.size_bytes:
        words.append(f"a disk of {human_bytes(status.size_bytes)}")
    if status.used_bytes:
        words.append(f"{human_bytes(status.used_bytes)} used in the pool")
    return ", ".join(words)


def newest_told(obj: Volume) -> int:
    """The newest snapshot that the status tells of: not each is written there by itself. 0 while there is none."""
    status = obj.status
    synced = status.last_sync.number if status.last_sync else 0
    return max(status.number, synced, *(copy.number for copy in status.copies))


def sync_words(obj: Volume) -> str:
    """The last sync that returned."""
    last = obj.status.last_sync
    if last is None:
        return "never"
    # A sync that no copy acknowledged does not return: without copies it is a restore that set the number.
    who = f"acknowledged by {', '.join(last.copies)}" if last.copies else "set by a restore"
    return f"snapshot {last.number} at {last.at or 'an unknown time'}, {who}"


def restored_words(began: RestoredFrom) -> str:
    """How the volume went on after its owner had died."""
    what = f"snapshot {began.number}" if began.number else "nothing: it began empty"
    accepted = ", which was accepted" if began.allow_loss else ""
    when = f"when node {began.node} had died and epoch {began.epoch} began, {began.at or 'nobody knows when'}"
    return f"{what}, {when}: at most {began.lost_seconds:.1f} s of writes were lost{accepted}"


def replication_words(replication: Replication | None) -> str:
    """How copies are kept."""
    if replication is None:
        return "one copy on another rack, where there is one"
    mirror = replication.layout.mirror
    count = "one copy, where there is a place," if mirror is None else f"{mirror} {'copy' if mirror == 1 else 'copies'}"
    words = [f"{count} each on a {replication.spread} of its own", f"a sync waits for {replication.acks}"]
    if replication.interval:
        words.append(f"sent every {replication.interval}")
    if replication.bandwidth:
        words.append(f"at most {replication.bandwidth} a second")
    return ", ".join(words) if mirror != 0 else "none"


def lag_words(copy: VolumeCopy) -> str:
    """How far a copy is behind."""
    if not copy.lag_snapshots and not copy.lag_bytes:
        return "none"
    plural = "" if copy.lag_snapshots == 1 else "s"
    return f"{copy.lag_seconds:.1f} s, {copy.lag_snapshots} snapshot{plural}, {human_bytes(copy.lag_bytes)}"


def _row(copy: VolumeCopy) -> list[str]:
    number = str(copy.number) if copy.number else "-"
    return [copy.node, copy.rack or "-", copy.segment or "-", copy.state, number, lag_words(copy), copy.message or "-"]


def pool_words(pool: PoolSummary) -> str:
    """A node's pool."""
    if not pool.total_bytes:
        return "none"
    words = f"{human_bytes(pool.used_bytes)} of {human_bytes(pool.total_bytes)} used, room for {human_bytes(pool.room_bytes)}"
    return f"{words}; {' '.join(pool.problems)}" if pool.problems else words

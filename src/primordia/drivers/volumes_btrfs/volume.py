"""One volume on btrfs: cutting, taking deltas, restoring. It blocks; the caller runs it in a thread, one call at a time.

What makes a snapshot visible is its manifest, sealed, fsynced and renamed after everything it speaks of is durable. One that
is whole counts, under its hidden name as well: so that it lasts, one fsync is enough. Making a snapshot ends the kernel's
transaction: what was written or renamed before is then durable too, so the order here is content, transaction, manifest, and
only then is the journal let go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from primordia.domain import ranges as spans
from primordia.domain import snapshots as rules
from primordia.domain.ranges import Range
from primordia.domain.snapshots import CHUNK_BYTES, Delta, Manifest
from primordia.drivers.volumes_btrfs import disk, ioctl, journal, records
from primordia.drivers.volumes_btrfs.layout import DISK, Layout, discard
from primordia.drivers.volumes_btrfs.records import DamagedError, Record, Restoring
from primordia.drivers.volumes_btrfs.traces import Traces, traces_of
from primordia.kit import chunk_hash, files
from primordia.kit.errors import ConflictError, InvalidError, NotFoundError, PermanentError
from primordia.ports.volumes import Piece, VolumeInfo


class Volume:
    """A volume whose folder exists. What it knows of its snapshots it keeps in memory, as the folder says."""

    def __init__(self, layout: Layout) -> None:
        self.at = layout
        self.record = records.decode(layout.record.read_bytes(), Record, layout.record)
        self.name = self.record.name
        self._manifests: list[Manifest] = []
        self._traces: Traces | None = None
        self._head: str | None = None
        """The root of what lies in the head; None while that is not known."""

    @classmethod
    def recover(cls, layout: Layout) -> Volume:
        """Open a volume as a crash may have left it: unfinished things go, damaged ones are put aside, restores end."""
        _publish_sealed(layout)
        layout.finish_tails()
        layout.sweep()
        volume = cls(layout)
        for number in layout.published():
            try:
                manifest = records.decode(layout.manifest(number).read_bytes(), Manifest, layout.manifest(number))
                if not layout.disk(number).is_file() or manifest.number != number:
                    raise DamagedError(f"Snapshot {number} of volume {volume.name} has no content.")
                volume._manifests.append(manifest)
            except DamagedError:
                volume._floor(number)
                layout.put_aside(number)
        if volume.record.restoring is not None:
            volume._finish_restore(volume.record.restoring, time.time())
        waiting = volume.pending()
        if waiting is not None and waiting.manifest in volume._manifests:
            layout.pending.unlink()  # it was published, and letting it go was not durable yet
        return volume

    @property
    def written_here(self) -> bool:
        return self.at.live_disk.exists()

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        return tuple(self._manifests)

    @property
    def newest(self) -> Manifest | None:
        return self._manifests[-1] if self._manifests else None

    def info(self) -> VolumeInfo:
        """As the port tells it."""
        newest, pending = self.newest, self.pending()
        size = self.at.live_disk.stat().st_size if self.written_here else newest.size_bytes if newest else 0
        if not size and pending is not None:
            size = pending.manifest.size_bytes
        number = newest.number if newest else 0
        waits = pending.manifest.number if pending is not None else 0
        tails = tuple(sorted(self.at.tails().values()))
        return VolumeInfo(self.name, size, self.record.epoch, self.written_here, number, waits, self.at.aside(), tails)

    @property
    def is_bare(self) -> bool:
        """Whether nothing is here but what was put aside."""
        return not self.written_here and not self._manifests and self.pending() is None

    def tails(self) -> dict[Manifest, Path]:
        """The manifests of its tails, and where their content is."""
        found = {}
        for name in self.at.tails():
            manifest, content = self.at.of_tail(name)
            found[records.decode(manifest.read_bytes(), Manifest, manifest)] = content
        return found

    def tail(self, number: int) -> tuple[Manifest, Path]:
        """One tail and its subvolume. NotFoundError."""
        tails = self.tails()
        found = rules.tail_of(tails, number, self.name)
        return found, tails[found]

    def retire(self) -> None:
        """See the port, where there are tails."""
        self._remove_live()
        self._manifests = []
        self.at.clear()

    def begin_anew(self, epoch: int, fill: Callable[[Layout], None]) -> None:
        """A disk for one that is bare."""
        self.enter(epoch)
        fill(self.at)

    def pending(self) -> Delta | None:
        """The delta that was accepted and is not published."""
        try:
            return journal.read_header(self.at.pending)
        except FileNotFoundError:
            return None
        except DamagedError:
            files.quarantine(self.at.pending)
            return None

    def live_disk(self) -> Path:
        """See the port's `disk`."""
        if not self.written_here:
            if self.newest is None:
                raise NotFoundError(f"Volume {self.name} has no snapshot here to make a disk from.")
            ioctl.snapshot(self.at.snapshot(self.newest.number), self.at.live, readonly=False)
            self._leave_head()
        return self.at.live_disk

    def release(self) -> None:
        """See the port."""
        if self.newest is None:
            raise ConflictError(f"Volume {self.name} has no snapshot: without its disk nothing would be left.")
        self._remove_live()

    def grow(self, size_bytes: int) -> None:
        """See the port."""
        size, path = rules.round_up(size_bytes), self.live_disk()
        if size < path.stat().st_size:
            raise InvalidError("size", f"volume {self.name} has {path.stat().st_size} bytes and does not shrink")
        with disk.opened(path, os.O_RDWR) as descriptor:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)

    def cut(self, epoch: int, checkpoint: str, *, always: bool, now_s: float) -> Manifest:
        """See the port."""
        rules.check_checkpoint(checkpoint)
        self._want_written()
        self.enter(epoch)
        number = rules.next_number((each.number for each in self._manifests), self.record.floor)
        traces = traces_of(self.at)
        ioctl.snapshot(self.at.live, self.at.snapshot(number), readonly=True)
        traces = replace(traces, generation=ioctl.generation(self.at.live))
        try:
            size, changed, table = self._compare(number)
            base = self.newest
            if base is not None and not (changed or always or checkpoint) and base.size_bytes == size:
                self.at.drop(number)
            else:
                base = self._publish(number, epoch, now_s, changed, table, checkpoint)
        except BaseException:
            self.at.drop(number)
            raise
        self._traces = traces
        return base

    def touched(self) -> bool:
        """See the port."""
        try:
            return self.written_here and (self._traces is None or not self._traces.stand_for(traces_of(self.at)))
        except FileNotFoundError:  # its disk is being replaced
            return True

    def label(self, number: int, checkpoint: str) -> Manifest:
        """See the port."""
        named = replace(self.numbered(number), checkpoint=rules.check_checkpoint(checkpoint))
        files.write_atomic(self.at.manifest(number), records.encode(named))
        self._manifests = [named if each.number == number else each for each in self._manifests]
        return named

    def remove(self, number: int) -> None:
        """See the port."""
        held = self.numbered(number)
        if held is self.newest:
            raise ConflictError(
                f"Snapshot {number} is the newest of volume {self.name}.", remedy="Destroy the volume to delete all."
            )
        self._manifests.remove(held)
        self.at.drop(number)

    def quarantine(self, number: int, *, tail: bool) -> None:
        """See the port."""
        held = self.numbered(number)
        self._floor(number)
        self._manifests.remove(held)
        self._head = None  # what is wrong with the one may be wrong with the other
        if tail:
            self.at.put_aside_as_tail(number)
        else:
            self.at.put_aside(number)

    def numbered(self, number: int) -> Manifest:
        """A snapshot's manifest. NotFoundError."""
        return rules.numbered(self._manifests, number, self.name)

    def table(self, number: int) -> bytearray:
        """The hashes of a snapshot's chunks, as they were written or else made anew. DamagedError: the disk is not right."""
        held, path = self.numbered(number), self.at.table(number)
        table = bytearray(path.read_bytes()) if path.exists() else bytearray()
        if chunk_hash.root_of(held.size_bytes, table) == held.root:
            return table
        with disk.opened(self.at.disk(number)) as descriptor:
            table = disk.whole_table(descriptor)
        if chunk_hash.root_of(held.size_bytes, table) != held.root:
            raise DamagedError(f"Snapshot {number} of volume {self.name} is damaged.", remedy="Put it aside; a copy heals it.")
        self._write_table(number, table)
        return table

    def changes(self, number: int, since: int) -> Delta:
        """See the port."""
        wanted = self.numbered(number)
        if not since:
            ranges = wanted.changed if not wanted.parent else self._differing(b"", self.table(number), wanted.size_bytes)
            return Delta(wanted, "", ranges)
        base = self.numbered(since)
        chain = self._chain(base, wanted)
        if chain is None:
            ranges = self._differing(self.table(since), self.table(number), wanted.size_bytes)
        else:
            ranges = spans.clip((each for manifest in chain for each in manifest.changed), wanted.size_bytes)
        return Delta(wanted, base.root, ranges)

    def verify(self, number: int) -> tuple[Range, ...]:
        """See the port. Read from the medium, not from memory. Where the table is damaged too, all counts as damaged.

        Nobody waits for it, so the snapshot may be deleted meanwhile.
        """
        held = self.numbered(number)
        try:
            return self._verify(held)
        except FileNotFoundError:
            self.numbered(number)
            return (Range(0, held.size_bytes),)

    def _verify(self, held: Manifest) -> tuple[Range, ...]:
        number = held.number
        with disk.opened(self.at.disk(number)) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                table = self.table(number)
            except (DamagedError, OSError):
                return (Range(0, held.size_bytes),)
            with_data = set(spans.chunks_of(disk.data_of(descriptor), CHUNK_BYTES))
            damaged = [
                chunk for chunk in range(held.size_bytes // CHUNK_BYTES) if self._bad(descriptor, table, chunk, with_data)
            ]
        return spans.of_chunks(damaged, CHUNK_BYTES)

    def check_delta(self, delta: Delta, largest_bytes: int) -> bool:
        """Whether this holder takes it; see the port's `accept`."""
        if self.written_here:
            raise ConflictError(
                f"Volume {self.name} is written here and takes no deltas.", reason="WrittenHere", remedy="Release it first."
            )
        return rules.check_delta(delta, self.newest, self.record.epoch, largest_bytes)

    def take(self, delta: Delta, journal: Path) -> None:
        """Make a whole, durable journal this volume's next delta: from here on it is acknowledged.

        That it is whole, and not where it lies, is what acknowledges it: a crash that undoes the renaming loses nothing, for
        whoever opens the pool then takes it again.
        """
        self.enter(delta.manifest.epoch)
        journal.rename(self.at.pending)

    def take_again(self, delta: Delta, journal: Path, largest_bytes: int) -> None:
        """The same for a whole journal that a crash left; one that does not fit (any more) goes."""
        try:
            fits = self.pending() is None and self.check_delta(delta, largest_bytes)
        except PermanentError:
            fits = False
        if fits:
            self.take(delta, journal)
        else:
            journal.unlink()

    def settle(self) -> Manifest | None:
        """See the port."""
        delta = self.pending()
        if delta is None:
            return None
        said = delta.manifest
        if self.newest is None or self.newest.number < said.number:
            table = self._build(delta)
            try:
                ioctl.snapshot(self.at.head, self.at.snapshot(said.number), readonly=True)
                self._write_table(said.number, table)
                files.write_sealed(self.at.manifest(said.number), records.encode(said))
            except BaseException:
                self.at.drop(said.number)
                raise
            self._manifests.append(said)
            self._head = said.root
        self.at.pending.unlink()
        return said

    def restore(self, number: int, epoch: int, now_s: float) -> Manifest:
        """See the port. The intent is written first: a crash between any two steps is followed by all of them again."""
        self._want_written()
        self.numbered(number)
        rules.check_epoch(self.name, epoch, self.record.epoch)
        following = rules.next_number((each.number for each in self._manifests), self.record.floor)
        intent = Restoring(number, following)
        self._note(replace(self.record, epoch=epoch, restoring=intent))
        return self._finish_restore(intent, now_s)

    def _finish_restore(self, intent: Restoring, now_s: float) -> Manifest:
        done = next((each for each in self._manifests if each.number == intent.number), None)
        if done is None:
            done = self._restore(intent, now_s)
        self._note(replace(self.record, restoring=None))
        return done

    def _restore(self, intent: Restoring, now_s: float) -> Manifest:
        fresh = self.at.folder / ".live"
        discard(fresh)
        ioctl.snapshot(self.at.snapshot(intent.source), fresh, readonly=False)
        self._remove_live()
        fresh.rename(self.at.live)
        discard(self.at.snapshot(intent.number))
        ioctl.snapshot(self.at.live, self.at.snapshot(intent.number), readonly=True)
        table, before = self.table(intent.source), self.newest
        old = self.table(before.number) if before is not None else b""
        changed = self._differing(old, table, self.numbered(intent.source).size_bytes)
        return self._publish(intent.number, self.record.epoch, now_s, changed, table, "")

    def _compare(self, number: int) -> tuple[int, tuple[Range, ...], bytearray]:
        """The size of a snapshot just cut, what of it differs from the newest published one, and its table."""
        base, path = self.newest, self.at.disk(number)
        with disk.opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
            if base is None:
                changed, table = disk.data_of(descriptor), chunk_hash.new_table(size)
                disk.hash_chunks(descriptor, table, spans.chunks_of(changed, CHUNK_BYTES))
                return size, changed, table
            table = self.table(base.number)
            chunk_hash.resize(table, size)
            if self.record.floor > base.number:  # what the disk was cut from last was put aside: only content tells
                now = disk.whole_table(descriptor)
                return size, self._differing(table, now, size), now
            # Not the generation of its last change: a clone of it raises that too, and would hide what was written before.
            since = max(ioctl.created(self.at.snapshot(base.number)), ioctl.created(self.at.live))
            found = ioctl.changed_extents(path, since)
            # a hole where the disk grew is as it was: nothing
            changed = spans.merge(
                Range(each.offset, min(each.offset + each.length, base.size_bytes if each.hole else size) - each.offset)
                for each in found
            )
            disk.hash_chunks(descriptor, table, spans.chunks_of(changed, CHUNK_BYTES))
        return size, changed, table

    def _publish(
        self, number: int, epoch: int, now_s: float, changed: Sequence[Range], table: bytearray, checkpoint: str
    ) -> Manifest:
        parent = self.newest.root if self.newest is not None else ""
        size = self.at.disk(number).stat().st_size
        root = chunk_hash.root_of(size, table)
        made = Manifest(self.name, epoch, number, parent, size, now_s, tuple(changed), root, checkpoint)
        self._write_table(number, table)
        files.write_sealed(self.at.manifest(number), records.encode(made))
        self._manifests.append(made)
        return made

    def _build(self, delta: Delta) -> bytearray:
        """Bring the head to what the delta leads to; the table of that. DamagedError leaves nothing of it.

        The head stays from one delta to the next, so that a snapshot costs one commit of the pool: the one that makes it.
        """
        base, said = self.newest, delta.manifest
        table = self.table(base.number) if base is not None else bytearray()
        chunk_hash.resize(table, said.size_bytes)
        self._take_head(base)
        try:
            with disk.opened(self.at.head / DISK, os.O_RDWR | os.O_CREAT) as descriptor:
                os.ftruncate(descriptor, said.size_bytes)
                self._lay(descriptor)
                disk.hash_chunks(descriptor, table, spans.chunks_of(delta.ranges, CHUNK_BYTES))
            if chunk_hash.root_of(said.size_bytes, table) != said.root:
                raise DamagedError(
                    f"Snapshot {said.number} of volume {self.name}, as built here, is not what was sent.",
                    remedy="Verify the snapshot before it, and send both again.",
                )
        except DamagedError:
            self._leave_head()
            files.quarantine(self.at.pending)
            raise
        return table

    def _take_head(self, base: Manifest | None) -> None:
        """Have a head with the content of `base`; whatever goes wrong with it from here on, the next one is made anew."""
        if self._head is None or base is None or self._head != base.root:
            discard(self.at.head)
            if base is not None:
                ioctl.snapshot(self.at.snapshot(base.number), self.at.head, readonly=False)
            else:
                ioctl.create_subvolume(self.at.head)
        self._head = None

    def _leave_head(self) -> None:
        self._head = None
        discard(self.at.head)

    def _lay(self, descriptor: int) -> None:
        """Put what waits into a disk: what lies in whole blocks is shared, the rest is written."""
        with disk.opened(self.at.pending) as source:
            for piece, at in journal.read_parts(self.at.pending):
                if at < 0:
                    disk.write_piece(descriptor, piece)
                else:
                    disk.share(source, at, descriptor, piece.range)

    def _write_table(self, number: int, table: bytearray) -> None:
        """Not durable, which would cost two more fsyncs at each cut: a table that is not right is known by the root."""
        files.write_atomic(self.at.table(number), bytes(table), durable=False)

    def _chain(self, base: Manifest, wanted: Manifest) -> list[Manifest] | None:
        """The snapshots whose changes lead from one to the other; None where they do not (restored, shrunk, removed)."""
        chain, before = [], base
        for each in self._manifests:
            if base.number < each.number <= wanted.number:
                if each.parent != before.root or each.size_bytes < before.size_bytes:
                    return None
                chain.append(each)
                before = each
        return chain if before is wanted else None

    def _differing(self, old: bytes | bytearray, new: bytes | bytearray, size_bytes: int) -> tuple[Range, ...]:
        return spans.clip(spans.of_chunks(chunk_hash.differing(old, new), CHUNK_BYTES), size_bytes)

    def _bad(self, descriptor: int, table: bytearray, chunk: int, with_data: set[int]) -> bool:
        entry = chunk_hash.get_entry(table, chunk)
        if chunk not in with_data:
            return entry != chunk_hash.ZERO_ENTRY
        try:
            return chunk_hash.entry_of(os.pread(descriptor, CHUNK_BYTES, chunk * CHUNK_BYTES)) != entry
        except OSError:  # btrfs gives no data that contradicts its own checksums
            return True

    def _remove_live(self) -> None:
        if self.at.live.exists():
            gone = self.at.folder / ".gone"
            discard(gone)
            self.at.live.rename(gone)
            discard(gone)

    def _want_written(self) -> None:
        if not self.written_here:
            raise ConflictError(f"Volume {self.name} is only held here, nothing writes it.", reason="NotWrittenHere")

    def enter(self, epoch: int) -> None:
        """Never again believe an older epoch, whatever happens next."""
        rules.check_epoch(self.name, epoch, self.record.epoch)
        if epoch > self.record.epoch:
            self._note(replace(self.record, epoch=epoch))

    def _floor(self, number: int) -> None:
        self._note(replace(self.record, floor=max(self.record.floor, number)))

    def _note(self, record: Record) -> None:
        files.write_atomic(self.at.record, records.encode(record))
        self.record = record


def new_volume(parent: Path, record: Record) -> Path:
    """A folder for a new volume, under a hidden name until the caller renames it."""
    hidden = parent / f".new-{record.name}-{time.monotonic_ns()}"
    layout = Layout(hidden)
    layout.make()
    files.write_atomic(layout.record, records.encode(record))
    return hidden


def _publish_sealed(layout: Layout) -> None:
    """A manifest that is whole under its hidden name was published: a crash came before its renaming was durable."""
    for number, hidden in layout.sealed().items():
        try:
            whole = records.decode(hidden.read_bytes(), Manifest, hidden).number == number
        except DamagedError:
            whole = False
        if whole and layout.disk(number).is_file() and not layout.manifest(number).exists():
            hidden.rename(layout.manifest(number))
        else:
            hidden.unlink()


def pieces_of(path: Path, ranges: Sequence[Range]) -> tuple[Piece, ...]:
    """Those ranges of a disk."""
    with disk.opened(path) as descriptor:
        return tuple(disk.read_pieces(descriptor, ranges))


def forget(folder: Path) -> None:
    """Delete a volume's folder; a crash in the middle leaves a hidden one, which the next to open the pool clears."""
    gone = folder.with_name(f".gone-{folder.name}-{time.monotonic_ns()}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    files.fsync_dir(folder.parent)
    discard(gone)

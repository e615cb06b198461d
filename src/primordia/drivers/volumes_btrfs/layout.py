"""Where a volume's things lie in the pool, and what a crash may have left of them.

    volumes/NAME/record               the highest epoch seen, a restore under way
    volumes/NAME/live/disk            the disk that a microVM writes; a subvolume; absent where the volume is only held
    volumes/NAME/snapshots/N/disk     read-only subvolumes
    volumes/NAME/tables/N             their chunks' hashes
    volumes/NAME/manifests/N          published last: without it a snapshot does not exist
    volumes/NAME/pending              the journal of an accepted delta
    volumes/NAME/notes                whose it is, in words that others understand
    volumes/NAME/snapshots/.head/disk what a held volume's next snapshot is built in
    incoming/                         journals that are being received
    incoming/NAME.partial             one that was cut off, for its sender to go on with

Names with a leading dot are unfinished or on their way out: whoever opens the pool clears them away. A read-only subvolume
can be renamed within its folder and not out of it (the kernel would have to write its ..), so what is put aside stays
where it is under another name: N.aside-TIME, or N.tail-TIME where it is good and its owner never had it.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from primordia.drivers.volumes_btrfs import ioctl
from primordia.kit import files

DISK = "disk"
_ASIDE, _TAIL = ".aside-", ".tail-"
_ROOT_INODE = 256


class Layout:
    """The paths of one volume."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record"
        self.live = folder / "live"
        self.live_disk = self.live / DISK
        self.pending = folder / "pending"
        self.notes = folder / "notes"
        self.head = folder / "snapshots" / ".head"
        self._parts = {name: folder / name for name in ("snapshots", "tables", "manifests")}

    def make(self) -> None:
        """The empty folders."""
        self.folder.mkdir(mode=0o700)
        for part in self._parts.values():
            part.mkdir(mode=0o700)

    def snapshot(self, number: int) -> Path:
        """A snapshot's subvolume."""
        return self._parts["snapshots"] / f"{number:012d}"

    def disk(self, number: int) -> Path:
        """A snapshot's disk."""
        return self.snapshot(number) / DISK

    def table(self, number: int) -> Path:
        """Its chunks' hashes."""
        return self._parts["tables"] / f"{number:012d}"

    def manifest(self, number: int) -> Path:
        """What it says of itself."""
        return self._parts["manifests"] / f"{number:012d}"

    def published(self) -> tuple[int, ...]:
        """The numbers that have a manifest."""
        return tuple(sorted(int(each.name) for each in self._parts["manifests"].iterdir() if each.name.isdecimal()))

    def cut(self) -> tuple[int, ...]:
        """The numbers that have a subvolume."""
        return tuple(sorted(int(each.name) for each in self._parts["snapshots"].iterdir() if each.name.isdecimal()))

    def aside(self) -> tuple[int, ...]:
        """The numbers that were put aside."""
        return tuple(sorted([*self._marked(_ASIDE).values(), *self._marked(_TAIL).values()]))

    def tails(self) -> dict[str, int]:
        """The manifests of those that were put aside as tails, by file name, and their numbers."""
        return self._marked(_TAIL)

    def _marked(self, mark: str) -> dict[str, int]:
        names = {each.name: each.name.partition(mark) for each in self._parts["manifests"].iterdir()}
        return {name: int(number) for name, (number, found, _) in names.items() if found and number.isdecimal()}

    def of_tail(self, name: str) -> tuple[Path, Path]:
        """A tail's manifest and its subvolume."""
        return self._parts["manifests"] / name, self._parts["snapshots"] / name

    def put_aside_as_tail(self, number: int) -> None:
        """The same for a good snapshot. Its manifest is there under both names until its content is under the new one."""
        name = f"{number:012d}{_TAIL}{time.time_ns()}"
        files.write_atomic(self._parts["manifests"] / name, self.manifest(number).read_bytes())
        self._finish_tail(name, number)

    def sealed(self) -> dict[int, Path]:
        """The manifests that a crash left under their hidden names; whether each is whole, only its content tells."""
        hidden = {number: files.sealed_place(self.manifest(number)) for number in self.cut()}
        return {number: path for number, path in hidden.items() if path.exists()}

    def finish_tails(self) -> None:
        """What a crash left half put aside is whole afterwards."""
        for name, number in self.tails().items():
            self._finish_tail(name, number)

    def _finish_tail(self, name: str, number: int) -> None:
        manifest, content = self.of_tail(name)
        if not content.exists():
            if not self.snapshot(number).exists() or not self.manifest(number).exists():
                manifest.unlink()
                return
            self.snapshot(number).rename(content)
        if self.manifest(number).exists() and not self.snapshot(number).exists():
            self.manifest(number).unlink()
            self.table(number).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all but the record, the notes and the tails."""
        self.pending.unlink(missing_ok=True)
        discard(self.head)
        for number in sorted({*self.published(), *self.cut()}):
            self.drop(number)

    def put_aside(self, number: int) -> None:
        """Rename all of a snapshot; its manifest first, so that at no moment one is shown without content."""
        mark = f"{_ASIDE}{time.time_ns()}"
        for path in (self.manifest(number), self.table(number), self.snapshot(number)):
            if path.exists():
                path.rename(path.with_name(path.name + mark))

    def drop(self, number: int) -> None:
        """Delete all of a snapshot, in the same order."""
        self.manifest(number).unlink(missing_ok=True)
        self.table(number).unlink(missing_ok=True)
        discard(self.snapshot(number))

    def sweep(self) -> None:
        """Clear what a crash left unfinished: hidden names, and whatever has no manifest."""
        for folder in (self.folder, *self._parts.values()):
            for each in folder.iterdir():
                if each.name.startswith("."):
                    discard(each)
        for number in set(self.cut()) - set(self.published()):
            discard(self.snapshot(number))
        if not self.live_disk.exists():
            discard(self.live)


def discard(path: Path) -> None:
    """Delete a file, a subvolume, or a folder with what is in it; absent is fine. OSError."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if path.stat().st_ino == _ROOT_INODE:
        ioctl.destroy_subvolume(path)
        return
    for each in path.iterdir():
        discard(each)
    shutil.rmtree(path)

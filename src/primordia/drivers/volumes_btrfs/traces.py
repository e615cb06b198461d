"""Whether a disk was written since it was cut, without cutting it: by the times of its file and its subvolume's generation.

A write sets the file's times before it copies a byte, also while all of it is in memory only, which no generation tells. Times
are as coarse as the kernel's tick: one as young as that stands for nothing, for a second write in the same tick would not
move it (git calls such a file racy, github.com/git/git Documentation/technical/racy-git.txt). A write that was stalled between
its time and its bytes while the snapshot was made moves no time either: it is seen when the kernel has written it back, for
that raises the generation, at the latest a minute later. So this is for the clock's cuts, and not for those that promise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from primordia.drivers.volumes_btrfs import ioctl
from primordia.drivers.volumes_btrfs.layout import Layout

_YOUNG_NS = 100_000_000


@dataclass(frozen=True)
class Traces:
    """What writing leaves behind; `seen_ns` is the wall clock (its step backwards is only seen as a change)."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    generation: int
    seen_ns: int

    def stand_for(self, now: Traces) -> bool:
        """Whether nothing was written between these and those of now."""
        mine = (self.inode, self.size_bytes, self.modified_ns, self.changed_ns, self.generation)
        theirs = (now.inode, now.size_bytes, now.modified_ns, now.changed_ns, now.generation)
        return mine == theirs and max(self.modified_ns, self.changed_ns) < self.seen_ns - _YOUNG_NS


def traces_of(layout: Layout) -> Traces:
    """Those of a volume's disk. FileNotFoundError when there is none."""
    seen_ns = time.time_ns()
    found = layout.live_disk.stat()
    generation = ioctl.generation(layout.live)
    return Traces(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, generation, seen_ns)

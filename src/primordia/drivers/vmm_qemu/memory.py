"""A guest's memory, read from outside of QEMU while or before its virtual CPUs stand.

Two kinds. A machine that booted has its memory in a memfd, shared with whoever opens it: it is mapped here and written to
the image by the kernel, which alone touches the mapping (so that not even a QEMU that shrinks its memfd can hurt us). A
machine that is a fork maps the file of its image privately: what it has written since lies in anonymous pages that only
/proc/PID/mem shows, and /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst) tells which those are.

Everything is copied twice, first while the machine runs, then while it stands. The first copy is torn and worth nothing
but this: the file has its blocks, the page cache its pages and we our page tables. What is left for the second is one
plain copy of memory, a fifth of the pause (80 MB of data: 50 ms at once, 10 ms in two; the measurements are in
docs/design/0006-forks.md).
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from primordia.kit.errors import PermanentError
from primordia.kit.files import clone_file

_CHUNK = 4 << 20
_PAGE = mmap.PAGESIZE
_POPULATE_READ = 22  # madvise(2), Linux 5.14
_MEMFD = "/memfd:memory-backend-memfd (deleted)"
_OWN_PAGES = re.compile(b"\x01+")

Extent = tuple[int, int]


@dataclass(frozen=True)
class Mapping:
    """Guest memory in QEMU's address space: its address, and the name of one of its entries in /proc/PID/map_files."""

    address: int
    entry: str


def find_mapping(maps: str, memory_bytes: int, base_inode: int) -> Mapping:
    """Where QEMU has the guest's memory, from /proc/PID/maps (proc_pid_maps(5)): private memory of the file `base_inode`,
    or shared memory of the memfd when that is 0. Raises PermanentError when it is not all there.

    The device is not compared: btrfs shows another one there than stat does.
    """
    covered, found = 0, None
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        kind, name = fields[1][3:4], fields[5] if len(fields) > 5 else ""
        wanted = kind == "p" and fields[4] == str(base_inode) if base_inode else kind == "s" and name == _MEMFD
        start, end = (int(address, 16) for address in fields[0].split("-"))
        if not wanted or int(fields[2], 16) != covered or (found and start - covered != found.address):
            continue
        found = found or Mapping(start, fields[0])
        covered += end - start
        if covered >= memory_bytes:
            return found
    raise PermanentError("QEMU does not have the guest's memory where it was put.", reason="MemoryNotFound")


def own_pages(pagemap: bytes) -> list[Extent]:
    """Byte ranges of the pages that are a process's own, from its pagemap's entries (64 bits each, little-endian).

    Own are pages that are present (bit 63) and not a file's (bit 61), and those that are swapped out (bit 62).
    """
    return [(run.start() * _PAGE, run.end() * _PAGE) for run in _OWN_PAGES.finditer(pagemap[7::8].translate(_IS_OWN))]


_IS_OWN = bytes(1 if top & 0x40 or (top & 0x80 and not top & 0x20) else 0 for top in range(256))


def data_extents(descriptor: int, size: int) -> list[Extent]:
    """Where a sparse file has data."""
    found: list[Extent] = []
    place = 0
    while place < size:
        try:
            start = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        place = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        found.append((start, place))
    return found


def union(first: list[Extent], second: list[Extent]) -> list[Extent]:
    """Everything that is in either, in order, without overlap."""
    merged: list[Extent] = []
    for start, end in sorted([*first, *second]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class Memory(Protocol):
    """One kind of guest memory. `base` is the file that lies below it, which does not change; None without."""

    @property
    def base(self) -> Path | None: ...

    def extents(self) -> list[Extent]:
        """What there is to copy now."""

    def write(self, into: int, start: int, end: int) -> int:
        """Copy a part of that range to the same place of a file; how many bytes. Raises OSError."""

    def close(self) -> None:
        """Let go of it."""


class SharedMemory:
    """A booted machine's memfd."""

    base: Path | None = None

    def __init__(self, file: Path, size: int) -> None:
        self._size = size
        self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(self._descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._view = memoryview(self._map)

    def extents(self) -> list[Extent]:
        """What has ever been written; its page tables are made on the way, and only its, for a hole that is touched is one
        no more."""
        found = data_extents(self._descriptor, self._size)
        for start, end in found:
            self._map.madvise(_POPULATE_READ, start, end - start)
        return found

    def write(self, into: int, start: int, end: int) -> int:
        """See Memory."""
        return os.pwrite(into, self._view[start : min(end, start + _CHUNK)], start)

    def close(self) -> None:
        """See Memory."""
        self._view.release()
        self._map.close()
        os.close(self._descriptor)


class PrivateMemory:
    """A fork's own pages, over those of its image."""

    def __init__(self, pid: int, address: int, size: int, base: Path) -> None:
        self.base: Path | None = base
        self._address, self._size = address, size
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self._memory)
            raise
        self._buffer = memoryview(bytearray(_CHUNK))

    def extents(self) -> list[Extent]:
        """The pages it has written."""
        return own_pages(os.pread(self._pagemap, self._size // _PAGE * 8, self._address // _PAGE * 8))

    def write(self, into: int, start: int, end: int) -> int:
        """See Memory."""
        wanted = min(end - start, _CHUNK)
        count = os.preadv(self._memory, [self._buffer[:wanted]], self._address + start)
        if count == 0:
            raise ProcessLookupError(errno.ESRCH, "QEMU has ended")
        return os.pwrite(into, self._buffer[:count], start)

    def close(self) -> None:
        """See Memory."""
        os.close(self._memory)
        os.close(self._pagemap)


class Copy:
    """The making of an image's memory file, in a thread: `first` while the machine runs, then `again` while it stands.

    Both may be stopped from another thread, and then raise InterruptedError. `again` may be repeated.
    """

    def __init__(self, memory: Memory, file: Path, size: int) -> None:
        """`file` must not exist. Whoever makes this closes it, and the memory."""
        self._memory, self.file, self._size = memory, file, size
        self._into = -1
        self._seen: list[Extent] = []
        self._stopped = threading.Event()

    def first(self) -> None:
        """Give the file its size, what the base has, and a first copy."""
        if self._memory.base is not None:
            clone_file(self._memory.base, self.file)
        else:
            self.file.touch(mode=0o600, exist_ok=False)
        self._into = os.open(self.file, os.O_RDWR | os.O_CLOEXEC)
        os.truncate(self._into, self._size)
        self.again()

    def again(self) -> int:
        """Copy what may have changed since; bytes copied. What was there before and is there no more is copied too: then
        as what it is now."""
        self._seen = union(self._seen, self._memory.extents())
        return sum(self._copy(start, end) for start, end in self._seen)

    def finish(self) -> int:
        """Let all read the file and none write it; how many bytes of it are data."""
        os.fchmod(self._into, 0o444)
        return sum(end - start for start, end in data_extents(self._into, self._size))

    def stop(self) -> None:
        """Let the thread end soon."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of the file."""
        if self._into >= 0:
            os.close(self._into)
            self._into = -1

    def _copy(self, start: int, end: int) -> int:
        place = start
        while place < end:
            if self._stopped.is_set():
                raise InterruptedError(errno.EINTR, "stopped")
            place += self._memory.write(self._into, place, end)
        return end - start


def open_memory(pid: int, memory_bytes: int, base_inode: int) -> Memory:
    """The memory of a machine: of a fork when `base_inode` is not 0. Raises PermanentError, OSError."""
    mapping = find_mapping(Path(f"/proc/{pid}/maps").read_text(), memory_bytes, base_inode)
    # The entry leads to the very file that is mapped, wherever it has been moved to, deleted or not.
    file = Path(f"/proc/{pid}/map_files/{mapping.entry}")
    return PrivateMemory(pid, mapping.address, memory_bytes, file) if base_inode else SharedMemory(file, memory_bytes)

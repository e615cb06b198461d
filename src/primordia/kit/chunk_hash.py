"""A hash for each chunk of a disk, and one over all of them, kept up to date by what changed.

The table is the chunks' BLAKE3 hashes in order, 32 bytes each. A chunk of zeros has 32 zero bytes instead of its hash: so
the table of an empty disk is a hole, however large, and growing a disk is growing its table. The root is BLAKE3 over the
disk's size and the table; a change to any bit of any chunk changes it. BLAKE3: github.com/BLAKE3-team/BLAKE3-specs.
"""

from __future__ import annotations

from blake3 import blake3

CHUNK_BYTES = 64 * 1024
ENTRY_BYTES = 32
ZERO_ENTRY = bytes(ENTRY_BYTES)
_ZERO_CHUNK = bytes(CHUNK_BYTES)
_DOMAIN = b"primordia volume 1\0"


def entry_of(chunk: bytes | memoryview) -> bytes:
    """The table's entry for a chunk's content."""
    may_be_zero = not chunk or chunk[0] == 0
    return ZERO_ENTRY if may_be_zero and bytes(chunk) == _ZERO_CHUNK else blake3(chunk).digest()


def new_table(size_bytes: int) -> bytearray:
    """The table of a disk of zeros. The size is a multiple of the chunk's."""
    return bytearray(size_bytes // CHUNK_BYTES * ENTRY_BYTES)


def resize(table: bytearray, size_bytes: int) -> None:
    """Follow a disk that grew or shrank."""
    wanted = size_bytes // CHUNK_BYTES * ENTRY_BYTES
    del table[wanted:]
    table.extend(bytes(wanted - len(table)))


def set_entry(table: bytearray, chunk: int, entry: bytes) -> None:
    """Note a chunk's new entry."""
    table[chunk * ENTRY_BYTES : (chunk + 1) * ENTRY_BYTES] = entry


def get_entry(table: bytes | bytearray, chunk: int) -> bytes:
    """A chunk's entry; zeros beyond the end."""
    return bytes(table[chunk * ENTRY_BYTES : (chunk + 1) * ENTRY_BYTES]) or ZERO_ENTRY


def root_of(size_bytes: int, table: bytes | bytearray) -> str:
    """The hash over the whole disk, in hex."""
    digest = blake3(_DOMAIN + size_bytes.to_bytes(8, "little"))
    digest.update(table)
    return digest.hexdigest()


def differing(one: bytes | bytearray, other: bytes | bytearray) -> tuple[int, ...]:
    """The numbers of the chunks in which two disks differ."""
    count = max(len(one), len(other)) // ENTRY_BYTES
    return tuple(chunk for chunk in range(count) if get_entry(one, chunk) != get_entry(other, chunk))


class Hasher:
    """The root of a disk whose bytes come in order; where none come, there are zeros."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._table = new_table(size_bytes)
        self._chunk = -1
        self._content = bytearray()

    def add(self, offset: int, data: bytes) -> None:
        """The next bytes."""
        at, view = offset, memoryview(data)
        while view:
            chunk, begin = divmod(at, CHUNK_BYTES)
            some = view[: CHUNK_BYTES - begin]
            if len(some) == CHUNK_BYTES:
                self._finish()
                self._note(chunk, bytes(some))
            else:
                self._lay(chunk, begin, some)
            at, view = at + len(some), view[len(some) :]

    def resize(self, size_bytes: int) -> None:
        """The disk is of another size, which came out later."""
        self._finish()
        self._size_bytes = size_bytes
        resize(self._table, size_bytes)

    def root(self) -> str:
        """The root of all that came."""
        self._finish()
        return root_of(self._size_bytes, self._table)

    def _lay(self, chunk: int, begin: int, some: memoryview) -> None:
        if chunk != self._chunk:
            self._finish()
            self._chunk, self._content = chunk, bytearray(CHUNK_BYTES)
        self._content[begin : begin + len(some)] = some

    def _finish(self) -> None:
        if self._chunk >= 0:
            self._note(self._chunk, bytes(self._content))
        self._chunk = -1

    def _note(self, chunk: int, content: bytes) -> None:
        if len(self._table) < (chunk + 1) * ENTRY_BYTES:
            self._table.extend(bytes((chunk + 1) * ENTRY_BYTES - len(self._table)))
        set_entry(self._table, chunk, entry_of(content))


def seal(content: bytes) -> bytes:
    """A hash over a small file, to be written before it."""
    return blake3(content).digest()

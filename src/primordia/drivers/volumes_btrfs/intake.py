"""A delta on its way in: into a journal, while the table that it will lead to is computed beside it.

Nothing of it is believed before `finish`: then its pieces are exactly those announced, the content that they make has the
root that the manifest names, and the journal is durable.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from primordia.domain.ranges import Cover
from primordia.domain.snapshots import CHUNK_BYTES, Delta
from primordia.drivers.volumes_btrfs.disk import Overlay
from primordia.drivers.volumes_btrfs.journal import JournalWriter
from primordia.kit import chunk_hash
from primordia.kit.errors import InvalidError
from primordia.ports.volumes import PIECE_BYTES, Piece

_BATCH_BYTES = 4 * PIECE_BYTES
_BATCH_PIECES = 1024


class Intake:
    """`base_disk` is the disk of the snapshot that the delta begins at, None for zeros, and `table` that one's table.

    With `go_on` the journal is one that was kept: `bytes_done` tells how much of the delta it holds.
    """

    def __init__(self, journal: Path, delta: Delta, base_disk: Path | None, table: bytearray, *, go_on: bool = False) -> None:
        self.journal = journal
        self.delta = delta
        self._cover = Cover(delta.ranges)
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0
        chunk_hash.resize(table, delta.manifest.size_bytes)
        self._overlay = Overlay(self._base_chunk, table)
        self.bytes_done = 0
        self._whole = True
        self._base = os.open(base_disk, os.O_RDONLY | os.O_CLOEXEC) if base_disk is not None else -1
        try:
            self._writer = JournalWriter(journal, delta, self._found if go_on else None)
        except BaseException:
            self._close_base()
            raise

    def check(self, piece: Piece) -> bool:
        """Note the next piece; whether those that were noted are worth a write. InvalidError when it is not the next part."""
        if len(piece.data) > PIECE_BYTES:
            raise InvalidError("pieces", f"a piece of {len(piece.data)} bytes is too large")
        self._cover.take(piece.range, len(piece.data))
        self._waiting.append(piece)
        self._waiting_bytes += len(piece.data)
        return self._waiting_bytes >= _BATCH_BYTES or len(self._waiting) >= _BATCH_PIECES

    def taken(self) -> list[Piece]:
        """The pieces that were noted, to be written: by `write`, before those that are noted from now on."""
        pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return pieces

    def write(self, pieces: Sequence[Piece]) -> bool:
        """Write them, while others may be noted: one batch after the other. Where one failed, nothing of all is of use.

        Whether it is so much that the kernel should be told now (`begin_flush`).
        """
        self._whole = False
        for piece in pieces:
            self._writer.append(piece)
            self._overlay.lay(piece)
            self.bytes_done += piece.range.length
        self._writer.flush()
        self._whole = True
        return sum(len(piece.data) for piece in pieces) >= _BATCH_BYTES

    def begin_flush(self) -> None:
        """Have the kernel send to its disk what was written, while more is written: that takes it a third as long."""
        self._writer.begin_flush()

    def finish(self) -> None:
        """Make the journal durable. InvalidError when the delta is not what its manifest says."""
        self._cover.finish()
        self.write(self.taken())
        self._overlay.finish()
        said = self.delta.manifest
        if chunk_hash.root_of(said.size_bytes, self._overlay.table) != said.root:
            raise InvalidError("root", f"snapshot {said.number} of {said.volume} does not have the content it names")
        self._whole = False  # with its end on it, it is taken over now or goes: another could not go on with it
        self._writer.finish()

    @property
    def is_of_use(self) -> bool:
        """Whether anything has come, and whether the journal holds it."""
        return self._whole and bool(self.bytes_done or self._waiting)

    def keep(self, place: Path) -> None:
        """Leave what has come at `place`, for another time."""
        self.write(self.taken())
        self._close_base()
        self._writer.close()
        self.journal.rename(place)

    def discard(self) -> None:
        """Let everything go that was not taken over."""
        self._close_base()
        self._writer.close()
        self.journal.unlink(missing_ok=True)

    def _found(self, piece: Piece) -> None:
        self._cover.take(piece.range, len(piece.data))
        self._overlay.lay(piece)
        self.bytes_done += piece.range.length

    def _base_chunk(self, chunk: int) -> bytes:
        content = os.pread(self._base, CHUNK_BYTES, chunk * CHUNK_BYTES) if self._base >= 0 else b""
        return content + bytes(CHUNK_BYTES - len(content))

    def _close_base(self) -> None:
        if self._base >= 0:
            os.close(self._base)
            self._base = -1

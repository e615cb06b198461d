"""The files of a context's log, and where in the guest's output they end.

`current` is the newest part of this run's output, `rotated` the part before it, `previous` the newest part of the run before.
`position` says how far the files go: run, offset in the guest's output, size of `current`. It is written behind the lines;
on opening, `current` is cut to the size it names, so that nothing is written twice and what came after is asked again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from primordia.ports.contexts import LogLine

ROTATE_BYTES = 8 * 2**20
_BLOCK = 65536
_POSITION_BYTES = 63


@dataclass
class Position:
    """`run` 0 is before the first run."""

    run: int = 0
    offset: int = 0
    size: int = 0


class LogFiles:
    """The files below one folder. Errors of the disk are raised as OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = folder / "current"
        self.rotated = folder / "rotated"
        self.previous = folder / "previous"
        self._position = folder / "position"

    def open(self) -> Position:
        """Where an earlier daemon left off."""
        try:
            run, offset, size = (int(word) for word in self._position.read_text().split())
        except (FileNotFoundError, ValueError):
            return Position()
        with contextlib.suppress(FileNotFoundError):
            if self.current.stat().st_size > size:
                with self.current.open("r+b") as file:
                    file.truncate(size)
            else:
                size = self.current.stat().st_size
        return Position(run, offset, size)

    def begin(self, run: int) -> Position:
        """Put the run before aside and begin an empty file."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            self.current.replace(self.previous)
        self.rotated.unlink(missing_ok=True)
        self.current.touch(mode=0o600)
        position = Position(run)
        self._write_position(position)
        return position

    def append(self, position: Position, lines: bytes, offset: int) -> None:
        """Add whole lines; the guest's output is then known up to `offset`."""
        if position.size + len(lines) > ROTATE_BYTES and position.size:
            self.current.replace(self.rotated)
            position.size = 0
            self._write_position(position)
        with self.current.open("ab") as file:
            file.write(lines)
        position.size += len(lines)
        position.offset = offset
        self._write_position(position)

    def _write_position(self, position: Position) -> None:
        # Always as long, and never cut first: some file systems flush a file that was emptied and written again.
        text = f"{position.run} {position.offset} {position.size}".ljust(_POSITION_BYTES)
        descriptor = os.open(self._position, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, text.encode() + b"\n", 0)
        finally:
            os.close(descriptor)


def format_line(time: str, text: bytes) -> bytes:
    """One line of the file."""
    return time.encode() + b" " + text + b"\n"


def parse_line(line: bytes) -> LogLine:
    """A line of the file, without its newline."""
    time, _, text = line.partition(b" ")
    return LogLine(time.decode(errors="replace"), text)


def tail_offset(path: Path, lines: int) -> tuple[int, int]:
    """Where the last `lines` lines of a file begin, and how many there are of them (fewer in a shorter file)."""
    if lines <= 0:
        return (path.stat().st_size if path.exists() else 0), 0
    found = 0
    with path.open("rb") as file:
        place = end = file.seek(0, 2)
        while place:
            step = min(_BLOCK, place)
            place -= step
            file.seek(place)
            block = file.read(step)
            for index in reversed(range(len(block))):
                if block[index] == 0x0A and place + index != end - 1:
                    found += 1
                    if found == lines:
                        return place + index + 1, lines
    return 0, found + (1 if end else 0)


def split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines of a file read in blocks; a torn last line is left out."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from whole

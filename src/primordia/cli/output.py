"""What people see: tables, colour, and progress for anything that takes longer than a second.

Results go to standard output, everything else to standard error, so that pipes carry results only. Colour and moving
lines appear on a terminal only, and NO_COLOR turns colour off (https://no-color.org).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
_GOOD = frozenset({"Running", "Ready", "Succeeded", "ok", "True"})
_BAD = frozenset({"Failed", "BackOff", "Unknown", "fail", "False", "Warning"})
_BUSY = frozenset({"Pending", "Starting", "Preparing", "Booting", "Building", "Stopping", "Terminating", "warn"})


def colourful(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, *, on: bool) -> str:
    """`text` in a colour of the terminal's own, when `on`."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if on else text


def printable(text: str) -> str:
    """`text` without control characters: what a guest or a package says must not steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _word_colour(word: str) -> str:
    if word in _GOOD:
        return "green"
    if word in _BAD:
        return "red"
    return "yellow" if word in _BUSY else ""


def widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column."""
    return [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]


def line(cells: Sequence[str], columns: Sequence[int], *, colour: bool = False) -> str:
    """One row: columns three spaces apart, the last one not padded."""
    parts = []
    for index, cell in enumerate(cells):
        padded = cell if index == len(cells) - 1 else cell.ljust(columns[index])
        hue = _word_colour(cell) if colour else ""
        parts.append(paint(padded, hue, on=bool(hue)))
    return "   ".join(parts).rstrip()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, headers: bool = True, colour: bool = False) -> str:
    """A table as text, one line for each row, without a final newline."""
    clean = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    columns = widths(header if headers else [""] * len(header), clean)
    lines = [line(header, columns)] if headers else []
    lines += [line(row, columns, colour=colour) for row in clean]
    return "\n".join(lines)


class Progress:
    """Says what is going on: call it with the name of each step; a step's end is the next one's begin.

    On a terminal one line moves; elsewhere each step that took a second or more leaves one line when it ends. As a
    context manager it ends the last step. `quiet` says nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, all_steps: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._all = all_steps
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._step = ""
        self._since = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    def __call__(self, step: str) -> None:
        """Begin a step."""
        with self._lock:
            if step == self._step:
                return
            self._finish()
            self._step = printable(step)
            self._since = time.monotonic()
            self._draw()

    def say(self, sentence: str) -> None:
        """A line that stays, between steps or within one."""
        with self._lock:
            if not self._quiet:
                erase = "\r\x1b[K" if self._live else ""
                self._write(f"{erase}{printable(sentence)}\n")
                self._draw()

    def __enter__(self) -> Progress:
        if self._live and not self._quiet:
            self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()
        with self._lock:
            self._finish(failed=kind is not None)

    def _tick(self) -> None:
        while not self._ended.wait(0.5):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if self._live and not self._quiet and self._step:
            self._write(f"\r\x1b[K{self._step} {time.monotonic() - self._since:.0f} s"[: _columns()])

    def _finish(self, *, failed: bool = False) -> None:
        if self._quiet or not self._step:
            return
        seconds = time.monotonic() - self._since
        erase = "\r\x1b[K" if self._live else ""
        if failed:
            # The error says what failed; where every step is told, this says which.
            self._write(f"{erase}{self._step}: failed after {seconds:.1f} s\n" if self._all else erase)
        elif self._all or seconds >= 1:
            self._write(f"{erase}{self._step} {seconds:.1f} s\n")
        else:
            self._write(erase)
        self._step = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 120

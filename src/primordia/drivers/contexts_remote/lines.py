"""A log as it crosses the wire, back into lines: each is its time, a space and its text. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from primordia.kit.errors import TemporaryError
from primordia.ports.contexts import LogLine

LONGEST_BYTES = 4 * 1024 * 1024


class Lines:
    """Feed it pieces of any size. A line that is not ended is none: its end may follow."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[LogLine]:
        """The lines that are whole now. Raises TemporaryError for one without an end."""
        self._rest += piece
        if b"\n" not in piece:
            if len(self._rest) > LONGEST_BYTES:
                raise TemporaryError("The log cannot be read: it has a line without an end.", reason="BrokenAnswer")
            return
        whole, _, rest = bytes(self._rest).rpartition(b"\n")
        self._rest = bytearray(rest)
        for line in whole.split(b"\n"):
            moment, _, text = line.partition(b" ")
            yield LogLine(moment.decode("ascii", "replace"), text)

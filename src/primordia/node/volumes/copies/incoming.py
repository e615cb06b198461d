"""A delta's bytes from another node, as the pool wants them: its header first, then its pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator

from primordia.kit.errors import TemporaryError
from primordia.ports.volumes import Piece
from primordia.wire.deltas import DeltaReader, Header, Part


class Incoming:
    """One stream. Call `header`, then go through `pieces`."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._reader = DeltaReader()
        self._first: list[Part] = []

    async def header(self) -> Header:
        """What it says of itself. InvalidError for no delta, TemporaryError when it ends before."""
        async for chunk in self._chunks:
            self._first += self._reader.feed(chunk)
            if self._reader.header is not None:
                return self._reader.header
        raise _cut_off()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Its pieces. Whoever has taken them all knows that the stream was whole. InvalidError, TemporaryError."""
        for part in self._first:
            yield Piece(part.range, part.data)
        async for chunk in self._chunks:
            for part in self._reader.feed(chunk):
                yield Piece(part.range, part.data)
        if not self._reader.finished:
            raise _cut_off()


def _cut_off() -> TemporaryError:
    return TemporaryError("A delta was cut off on its way.", reason="CutOff")

"""A volume's content as one stream of bytes, for people's files: out of a snapshot, and into a new volume.

The stream is that of `wire/deltas.py`, a delta from nothing, so that holes cost nothing on the way and the hash over the whole
content is checked at the other end, whichever that is. An import is a delta that was accepted: nothing of it is seen before all
of it has been verified and is durable.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from primordia.domain import ranges as spans
from primordia.domain.ranges import Range
from primordia.domain.snapshots import Delta, Manifest
from primordia.kit.errors import InvalidError
from primordia.kit.tasks import to_the_end
from primordia.ports.volumes import Piece, Volumes
from primordia.wire.deltas import DeltaReader, DeltaWriter, Part

_READ_BYTES = 8 << 20


async def outgoing(pool: Volumes, volume: str, number: int) -> AsyncIterator[bytes]:
    """A snapshot as such a stream. Who calls keeps the snapshot from being removed meanwhile."""
    delta, writer = await pool.changes(volume, number), DeltaWriter()
    yield writer.header(delta)
    for some in _portions(delta.ranges):
        for piece in await pool.read(volume, number, some):
            yield writer.part(Part(piece.range, piece.data))
    yield writer.end()


@dataclass
class Incoming:
    """A stream that is coming in. `delta` is known once `begin` has returned; `pieces` goes on from there."""

    chunks: AsyncIterator[bytes]
    delta: Delta | None = None

    def __post_init__(self) -> None:
        self._reader = DeltaReader()
        self._first: tuple[Piece, ...] = ()

    async def begin(self) -> Delta:
        """Read what the stream says of itself. InvalidError when it is none of ours."""
        async for chunk in self.chunks:
            self._first += tuple(Piece(part.range, part.data) for part in self._reader.feed(chunk))
            if self._reader.header is not None:
                break
        if self._reader.header is None:
            raise InvalidError("image", "the stream ends before it has begun")
        delta, begin = self._reader.header.delta, self._reader.header.begin
        if delta.base or begin:
            raise InvalidError("image", "this is only what differs from another snapshot, and not all of one")
        self.delta = delta
        return delta

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """All of it, in order; ends only where the stream has proved whole."""
        for piece in self._first:
            yield piece
        self._first = ()
        async for chunk in self.chunks:
            for part in self._reader.feed(chunk):
                yield Piece(part.range, part.data)
        self._reader.close()


async def take_in(pool: Volumes, volume: str, incoming: Incoming, now_s: float) -> Manifest:
    """Make a new volume of it, with a disk. Whatever fails leaves nothing."""
    assert incoming.delta is not None
    said = incoming.delta.manifest
    mine = replace(said, volume=volume, epoch=1, number=1, parent="", time_s=now_s, checkpoint="")
    try:
        async with aclosing(incoming.pieces()) as pieces:
            await pool.accept(Delta(mine, "", incoming.delta.ranges), pieces)
        await pool.settle(volume)
        await pool.disk(volume)
    except BaseException:
        await to_the_end(pool.destroy(volume))
        raise
    return mine


def _portions(ranges: tuple[Range, ...]) -> list[tuple[Range, ...]]:
    """The ranges in portions that are read at once."""
    portions: list[tuple[Range, ...]] = []
    some: list[Range] = []
    for each in ranges:
        for offset in range(each.offset, each.end, _READ_BYTES):
            part = Range(offset, min(_READ_BYTES, each.end - offset))
            if some and spans.total(some) + part.length > _READ_BYTES:
                portions.append(tuple(some))
                some = []
            some.append(part)
    return [*portions, tuple(some)] if some else portions

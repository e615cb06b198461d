"""Deltas on their way out: read, compressed and paced. What several copies want at once is read and compressed once.

A small delta is made whole and shared by whoever asks for it next; a large one is read as it is sent, a few at a time, so
that fifty volumes share the disk and the link in turns. A whole, for a new copy, has turns of its own, a rate of the node's,
and gives way while deltas are sent: somebody may wait for those, and nobody for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from primordia.domain import ranges as spans
from primordia.domain.copying import batches
from primordia.domain.ranges import Range
from primordia.domain.rate import TokenBucket
from primordia.domain.snapshots import Delta, Manifest
from primordia.kit import heap
from primordia.kit.clock import Clock
from primordia.kit.deadline import within
from primordia.kit.errors import ConflictError
from primordia.kit.metrics import Metrics
from primordia.kit.tasks import TaskSet
from primordia.ports.volumes import Piece, Volumes
from primordia.wire.deltas import DeltaWriter, Part

_SHARED_BYTES = 4 << 20
_SHARED_MOST = 16
_BATCH_BYTES = 4 << 20
_CHUNK_BYTES = 256 << 10
_AT_ONCE_BYTES = 128 << 10
"""So few are compressed sooner than another thread is awake."""
_LARGE_AT_ONCE = 4
_WHOLE_AT_ONCE = 4
_TURN_WITHIN_S = 15.0
"""Who fetches takes a source that is silent for much longer for gone."""
WHOLE_RATE = 400 << 20
"""Bytes a second that all wholes together take of the node's link and disk: more than a node does beside deltas, for which they
give way. Who wants less says so by the volume's bandwidth."""
_GIVE_WAY_S = 0.02
"""For each chunk of a whole while deltas are sent: some 12 MB/s are left to it."""

_Key = tuple[str, int, str, str]


class Outgoing:
    """Of one node. `rate` is the bytes a second that it sends at most, 0 for no limit."""

    def __init__(
        self, pool: Volumes, clock: Clock, metrics: Metrics, *, rate: float = 0.0, whole_rate: float = WHOLE_RATE
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._node = TokenBucket(rate)
        self._wholes = TokenBucket(whole_rate)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._whole_turns = asyncio.Semaphore(_WHOLE_AT_ONCE)
        self._deltas = 0
        self._shared: OrderedDict[_Key, asyncio.Task[bytes]] = OrderedDict()
        self._tasks = TaskSet("deltas")
        self._changed = metrics.counter("primordia_delta_changed_bytes_total", "Bytes of deltas before compression.")
        self._sent = metrics.counter("primordia_delta_sent_bytes_total", "Bytes of deltas as they were sent.")

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.close()

    @asynccontextmanager
    async def turn(self, delta: Delta) -> AsyncIterator[None]:
        """Wait for one's turn to send it: for a large one there are only so many."""
        if spans.total(delta.ranges) <= _SHARED_BYTES:
            with self._sending():
                yield
            return
        async with self._large:
            with self._sending():
                yield

    async def whole(self, delta: Delta, begin: int, limit: TokenBucket) -> AsyncIterator[bytes]:
        """A whole content for one who fetches it, in the background; else as `stream`.

        Raises ConflictError (Busy) where others are fetching. One with a `limit` of its own does not wait for a turn: it would
        keep it for long.
        """
        async with AsyncExitStack() as stack:
            if not limit.rate:
                await self._whole_turn(stack)
            limits = [each for each in (self._node, self._wholes, limit) if each.rate > 0]
            self._changed.add(by=spans.total(delta.ranges) - begin)
            stack.enter_context(heap.kept())
            async for buffers in self._read(delta, begin):
                for chunk in portions(buffers, _CHUNK_BYTES):
                    yield await self._paid(chunk, limits)
                    if self._deltas:
                        await self._clock.sleep(_GIVE_WAY_S)

    async def _whole_turn(self, stack: AsyncExitStack) -> None:
        try:
            await within(self._clock, _TURN_WITHIN_S, self._whole_turns.acquire())
        except TimeoutError as error:
            raise ConflictError("As many copies as it gives at once are being fetched.", reason="Busy") from error
        stack.callback(self._whole_turns.release)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        self._deltas += 1
        try:
            yield
        finally:
            self._deltas -= 1

    async def stream(self, delta: Delta, begin: int = 0, limit: TokenBucket | None = None) -> AsyncIterator[bytes]:
        """The delta's bytes, as `wire/deltas.py` says, without the first `begin` bytes of its ranges. Within its `turn`."""
        limits = [each for each in (self._node, limit) if each is not None and each.rate > 0]
        self._changed.add(by=spans.total(delta.ranges) - begin)
        if spans.total(delta.ranges) <= _SHARED_BYTES and not begin:
            for chunk in portions([await self._whole(delta)], _CHUNK_BYTES):
                yield await self._paid(chunk, limits)
            return
        async for buffers in self._read(delta, begin):
            for chunk in portions(buffers, _CHUNK_BYTES):
                yield await self._paid(chunk, limits)

    async def _paid(self, chunk: bytes, limits: Sequence[TokenBucket]) -> bytes:
        self._sent.add(by=len(chunk))
        wait_s = max((each.spend(len(chunk), self._clock.boottime()) for each in limits), default=0.0)
        if wait_s > 0:
            await self._clock.sleep(wait_s)
        return chunk

    async def _whole(self, delta: Delta) -> bytes:
        key = (delta.manifest.volume, delta.manifest.number, delta.manifest.root, delta.base)
        task = self._shared.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._shared[key] = self._tasks.start(self._joined(delta), name=f"{key[0]}/{key[1]}")
            while len(self._shared) > _SHARED_MOST:
                self._shared.popitem(last=False)
        return await asyncio.shield(task)

    async def _joined(self, delta: Delta) -> bytes:
        return b"".join([buffer async for buffers in self._read(delta, 0) for buffer in buffers])

    async def _read(self, delta: Delta, begin: int) -> AsyncIterator[Sequence[bytes]]:
        writer = DeltaWriter()
        yield [writer.header(delta, begin)]
        following: asyncio.Task[list[bytes]] | None = None
        try:
            for batch in [*batches(spans.skip(delta.ranges, begin), _BATCH_BYTES), None]:
                made, following = following, None
                buffers = await made if made is not None else []
                if batch is not None:  # beside the sending of the one before
                    following = asyncio.create_task(self._made(writer, delta.manifest, batch), name="read ahead")
                if buffers:
                    yield buffers
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        yield [writer.end()]

    async def _made(self, writer: DeltaWriter, said: Manifest, batch: Sequence[Range]) -> list[bytes]:
        pieces = await self._pool.read(said.volume, said.number, batch)
        if sum(len(each.data) for each in pieces) <= _AT_ONCE_BYTES:
            return _written(writer, pieces)
        return await asyncio.to_thread(_written, writer, pieces)


def _written(writer: DeltaWriter, pieces: Sequence[Piece]) -> list[bytes]:
    return [buffer for each in pieces for buffer in writer.frame(Part(each.range, each.data)) if buffer]


def portions(buffers: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in portions of that size, the last one smaller: nothing is copied more than once. Pure."""
    waiting: list[memoryview] = []
    left = size
    for buffer in buffers:
        rest = memoryview(buffer)
        while rest:
            some = rest[:left]
            waiting.append(some)
            rest, left = rest[len(some) :], left - len(some)
            if not left:
                yield b"".join(waiting)
                waiting, left = [], size
    if waiting:
        yield b"".join(waiting)

"""A context's output on the node: written as it comes, read from any point, followed while it grows.

The guest keeps its last output in a ring with absolute offsets; the node follows from the last offset it wrote. What the
ring dropped before we came is said in a line of its own. A guest that floods is slowed by not reading faster than the
limit: what it writes beyond that, its own ring drops.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from primordia.kit.clock import Clock
from primordia.node.log_files import LogFiles, Position, format_line, parse_line, split_lines, tail_offset
from primordia.ports.contexts import LogLine
from primordia.ports.guest import Guest, LogChunk

log = logging.getLogger(__name__)

_LONGEST_LINE = 16384
_BLOCK = 65536
_RATE_BYTES_S = 2**20
_BURST_BYTES = 4 * 2**20
_CHUNK_COST_BYTES = 256
_LINE_COST_BYTES = 32
"""What a line costs beside its text: its time in the file, and the work. A flood of empty lines is a flood as well."""
_BATCH_BYTES = 256 * 1024
_GATHER_S = 0.05


class LogBook:
    """The log of one context. One writer (`follow`), any number of readers."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._files = LogFiles(folder)
        self._clock = clock
        self._position = self._open()
        self._received = self._position.offset
        self._pending = b""
        self._pending_time = ""
        self._beside = b""
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._complete = True
        self._closed = False
        self._disk_full = False
        self._budget = float(_BURST_BYTES)
        self._budget_s = clock.boottime()

    @property
    def run(self) -> int:
        """The number of the run that is written, 0 for none."""
        return self._position.run

    def begin(self, run: int) -> None:
        """A new run starts; what the last one wrote becomes `previous`."""
        self._flush()
        try:
            self._position = self._files.begin(run)
        except OSError as error:
            log.error("%s: no log can be written: %s", self._files.folder, error.strerror)
            self._position = Position(run)
        self._received = 0
        self._pending = b""
        self._complete = False
        self._notify()

    def reopen(self) -> None:
        """The run of an earlier daemon goes on."""
        self._complete = False

    def add_beside(self, data: bytes) -> None:
        """Output of a program that runs beside the main one."""
        *whole, self._beside = (self._beside + data).split(b"\n")
        if len(self._beside) > _LONGEST_LINE:
            whole, self._beside = [*whole, self._beside], b""
        for line in whole:
            self._add(self._now(), line)
        self._flush_soon()

    def complete(self) -> None:
        """The run's output is all there."""
        if self._pending:
            self._add(self._pending_time, self._pending)
            self._pending = b""
        self._flush()
        self._complete = True
        self._notify()

    def close(self) -> None:
        """The context is gone: readers end."""
        if self._timer is not None:
            self._timer.cancel()
        self._closed = True
        self._notify()

    async def follow(self, guest: Guest) -> None:
        """Write what the guest's main program writes, until its last byte. Raises GuestGoneError, GuestError.

        A line that comes alone is written at once, those that follow soon after it together: a program that writes line
        by line must not cost a file operation for each.
        """
        self._pending = b""
        self._received = self._position.offset
        try:
            async for chunk in guest.logs(self._received):
                self._take(chunk)
                self._flush_soon()
                lines = chunk.data.count(b"\n")
                await self._throttle(len(chunk.data) + lines * _LINE_COST_BYTES + _CHUNK_COST_BYTES)
        finally:
            self._flush()

    async def read(self, *, follow: bool, tail: int | None, previous: bool = False) -> AsyncIterator[LogLine]:
        """Lines from the start or the last `tail`; with `follow`, those to come until the run has ended."""
        if previous:
            for line in self._lines(self._files.previous, 0 if tail is None else self._tail(self._files.previous, tail)[0]):
                yield line
            return
        while follow and not self.run and not self._closed:
            await self._changed.wait()
        run = self.run
        begin = 0
        older = tail
        if tail is not None:
            begin, found = self._tail(self._files.current, tail)
            older = tail - found
        if older is None or older > 0:
            for line in self._lines(self._files.rotated, 0 if older is None else self._tail(self._files.rotated, older)[0]):
                yield line
        async for line in self._grow(run, begin, follow):
            yield line

    # ------------------------------------------------------------ writing

    def _open(self) -> Position:
        try:
            return self._files.open()
        except OSError as error:
            log.error("%s cannot be read: %s", self._files.folder, error.strerror)
            return Position()

    def _take(self, chunk: LogChunk) -> None:
        """Fold a chunk in; the guest's numbers are believed only as far as they move forward."""
        data = chunk.data[max(0, self._received - chunk.offset) :]
        begin = max(self._received, chunk.offset)
        if not data and begin == self._received:
            return
        now = self._now()
        if begin > self._received:
            if self._pending:
                self._add(self._pending_time, self._pending)
                self._pending = b""
            self._add(now, b"[primordia: %d bytes of output were lost]" % (begin - self._received))
        *whole, rest = (self._pending + data).split(b"\n")
        for index, line in enumerate(whole):
            self._add(self._pending_time if index == 0 and self._pending else now, line)
        while len(rest) > _LONGEST_LINE:
            self._add(now, rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        if whole or not self._pending:
            self._pending_time = now
        self._pending = rest
        self._received = begin + len(data)

    def _add(self, time: str, line: bytes) -> None:
        self._batch.append(format_line(time, line))
        self._batch_bytes += len(line) + _LINE_COST_BYTES

    def _flush_soon(self) -> None:
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()
        elif self._batch and self._timer is None:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(_GATHER_S, self._gathered)

    def _gathered(self) -> None:
        self._timer = None
        if self._batch:
            self._flush_soon()

    def _flush(self) -> None:
        """Write what has been gathered."""
        if not self._batch:
            return
        content, self._batch, self._batch_bytes = b"".join(self._batch), [], 0
        offset = self._received - len(self._pending)
        try:
            self._files.append(self._position, content, offset)
            self._disk_full = False
        except OSError as error:
            self._position.offset = offset
            if not self._disk_full:
                log.error("%s: output is dropped: %s", self._files.folder, error.strerror)
            self._disk_full = True
        self._notify()

    async def _throttle(self, count: int) -> None:
        """Sleep off what the guest writes beyond the allowed rate."""
        now = self._clock.boottime()
        self._budget = min(_BURST_BYTES, self._budget + (now - self._budget_s) * _RATE_BYTES_S) - count
        self._budget_s = now
        if self._budget < 0:
            await self._clock.sleep(-self._budget / _RATE_BYTES_S)

    def _now(self) -> str:
        return self._clock.wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    # ------------------------------------------------------------ reading

    async def _grow(self, run: int, begin: int, follow: bool) -> AsyncIterator[LogLine]:
        """Lines of `current` from `begin` on, through rotations, as long as this run is written."""
        file = None
        rest = b""
        try:
            while True:
                changed = self._changed
                if file is None and self._files.current.exists():
                    file = self._files.current.open("rb")
                    file.seek(begin)
                while file is not None and (block := file.read(_BLOCK)):
                    *whole, rest = (rest + block).split(b"\n")
                    for line in whole:
                        yield parse_line(line)
                    await asyncio.sleep(0)
                if self.run == run and file is not None and _rotated(file.fileno(), self._files.current):
                    file.close()
                    file, begin, rest = None, 0, b""
                    continue
                if not follow or self._closed or self.run != run or self._complete:
                    return
                await changed.wait()
        finally:
            if file is not None:
                file.close()

    def _lines(self, path: Path, begin: int) -> Iterator[LogLine]:
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(begin)
            for line in split_lines(iter(lambda: file.read(_BLOCK), b"")):
                yield parse_line(line)

    def _tail(self, path: Path, lines: int) -> tuple[int, int]:
        return tail_offset(path, lines) if path.exists() else (0, 0)

    def _notify(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()


def _rotated(descriptor: int, path: Path) -> bool:
    """Whether the open file is no longer the one at that path."""
    try:
        return os.fstat(descriptor).st_ino != path.stat().st_ino
    except FileNotFoundError:
        return True

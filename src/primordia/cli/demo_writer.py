"""A client that writes all the time, to judge by whether anything was lost while parts of the soup were killed.

It counts a write only when Redis has acknowledged it, and writes numbers into a set, so that one that is tried again does no
harm. When a connection breaks it goes on at the next node's address, as any client does that knows several.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from primordia.kit.breakage import broken_as_os_error
from primordia.kit.errors import TemporaryError

_KEY = "acknowledged"
_PAUSE_S = 0.002
_WRITE_WITHIN_S = 2.0
_MORE_WITHIN_S = 90.0


@dataclass
class Writer:
    """Writes to the first of `hosts` that takes it. `redis` is Redis's client library."""

    redis: Any
    hosts: Sequence[str]
    port: int
    acknowledged: int = 0
    longest_wait_s: float = 0.0
    moves: int = 0
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write as long as the body runs, and finish the write that is under way."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(stop), name="writer")
            try:
                yield
            finally:
                stop.set()

    async def more(self, count: int) -> None:
        """Wait until so many more writes have been acknowledged. Raises TemporaryError when they are not in time."""
        wanted = self.acknowledged + count
        try:
            async with asyncio.timeout(_MORE_WITHIN_S):
                while self.acknowledged < wanted:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise TemporaryError(f"No node lets the client write within {_MORE_WITHIN_S:.0f} s.") from None

    async def lost(self) -> int:
        """How many of the acknowledged writes are not there."""
        async with connection(self.redis, self.hosts[0], self.port) as client:
            there = {int(each) for each in await client.smembers(_KEY)}
        return len(set(range(self.acknowledged)) - there)

    async def _write(self, stop: asyncio.Event) -> None:
        asked_at = time.monotonic()
        for host in itertools.cycle(self.hosts):
            with contextlib.suppress(OSError, self.redis.RedisError, TimeoutError):
                async with connection(self.redis, host, self.port, timeout_s=_WRITE_WITHIN_S) as client:
                    while not stop.is_set():
                        await client.sadd(_KEY, self.acknowledged)
                        self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - asked_at)
                        self.acknowledged += 1
                        self._moved.set()
                        await asyncio.sleep(_PAUSE_S)
                        asked_at = time.monotonic()
                    return
            if stop.is_set():
                return
            self.moves += 1
            await asyncio.sleep(_PAUSE_S)


@contextlib.asynccontextmanager
async def connection(redis: Any, host: str, port: int, *, timeout_s: float = 10.0) -> AsyncIterator[Any]:
    """A connection of Redis's client that is closed at the end. It tries once: who calls knows other addresses."""
    client = redis.Redis(host=host, port=port, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None)
    try:
        with broken_as_os_error():
            yield client
    finally:
        await client.aclose()

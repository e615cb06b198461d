"""Notices that a node has fallen silent while streams to it are open.

A machine that lost its power sends no farewell, and a daemon that hangs is acknowledged by its kernel all the same. Pings
within a stream could not tell: they wait behind the data of a reader that is slow. So the node is asked beside the streams,
with a connection of its own; one that has missed two chances loses its streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from primordia.kit.clock import Clock
from primordia.kit.tasks import TaskSet

EVERY_S = 10.0
CHANCES = 2


class Watch:
    """One node's open streams. `answers` asks the node, within a bounded time."""

    def __init__(self, node: str, answers: Callable[[], Awaitable[bool]], clock: Clock, tasks: TaskSet) -> None:
        self._node = node
        self._answers = answers
        self._clock = clock
        self._tasks = tasks
        self._open: dict[object, Callable[[], object]] = {}
        self._running = False

    def add(self, stream: object, cut: Callable[[], object]) -> None:
        """A stream has begun; `cut` ends it at once."""
        self._open[stream] = cut
        if not self._running:
            self._running = True
            self._tasks.start(self._run(), name=self._node)

    def remove(self, stream: object) -> None:
        """A stream has ended."""
        self._open.pop(stream, None)

    async def _run(self) -> None:
        """Ask while there is a stream."""
        try:
            silent = 0
            while self._open:
                await self._clock.sleep(EVERY_S)
                silent = 0 if not self._open or await self._answers() else silent + 1
                if silent >= CHANCES:
                    cuts, self._open = list(self._open.values()), {}
                    for cut in cuts:
                        cut()
        finally:
            self._running = False

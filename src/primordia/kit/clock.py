"""Time as an argument: everything that waits or measures takes a Clock, so that a simulation can own time.

Durations are decided on `boottime` (CLOCK_BOOTTIME, which counts suspend); `wall` exists for people only and never
decides anything.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """The three readings of time, and waiting."""

    def boottime(self) -> float:
        """Seconds since boot, suspend included."""

    def wall(self) -> datetime.datetime:
        """The wall clock in UTC, for people."""

    async def sleep(self, seconds: float) -> None:
        """Wait at least this long."""


class SystemClock:
    """The machine's own clock."""

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

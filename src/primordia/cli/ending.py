"""Being told to end is as Ctrl-C: asyncio turns it into the end of what runs, which then takes away what it made."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

_ENDS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP cancel what runs within. Told again, nothing more happens: what takes away is not broken off."""
    loop = asyncio.get_running_loop()
    told = False

    def end() -> None:
        nonlocal told
        if not told:
            told = True
            signal.raise_signal(signal.SIGINT)

    for number in _ENDS:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in _ENDS:
            loop.remove_signal_handler(number)

"""Being told to end ends what runs, which then takes away what it made, once and to its end.

A program that a shell has started in the background has SIGINT ignored, so SIGTERM may not be made of it; and a second signal,
of whatever kind, must not break off what takes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

_ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM, SIGHUP and SIGINT cancel the current task. Told again, nothing more happens."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    told = False

    def end() -> None:
        nonlocal told
        if not told:
            told = True
            task.cancel()

    heard = [number for number in _ENDS if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]
    for number in heard:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in heard:
            loop.remove_signal_handler(number)

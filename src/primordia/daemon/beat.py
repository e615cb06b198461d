"""The daemon's sign of life: a file touched every second by the event loop that does all of the daemon's work.

A daemon that hangs looks after no microVM. The supervisor cannot ask it, for asking is waiting; it looks at the file, and
kills a daemon that has shown nothing for `daemon_silence_s`, together with what it ran (docs/design/0009-survival.md).
"""

from __future__ import annotations

import logging
from pathlib import Path

from primordia.kit.clock import Clock

BEAT_FILE = "daemon.beat"

log = logging.getLogger(__name__)


async def beat(run_dir: Path, clock: Clock, every_s: float) -> None:
    """Touch the file until cancelled. A folder that cannot be written to is said once, and tried again."""
    told = False
    while True:
        try:
            (run_dir / BEAT_FILE).touch()
            told = False
        except OSError as error:
            if not told:
                log.error(
                    "%s cannot be touched, and the supervisor will take this daemon for dead: %s", run_dir / BEAT_FILE, error
                )
            told = True
        await clock.sleep(every_s)

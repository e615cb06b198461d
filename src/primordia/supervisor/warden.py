"""The one that watches over the fence: `python -m primordia.supervisor.warden RUN_DIR CGROUP`.

A supervisor that is killed, or stands still itself, freezes nothing, while its node's lease runs out and what it ran is
started elsewhere. So a second process, which does nothing else and outlives the first, reads from when on everything must
stand (`standing.py`), sleeps until then, and freezes if the moment was not moved on meanwhile. It never thaws: that needs
an engine, and belongs to the next supervisor.

There is one for each node, the last that was started: the others see its pid in `run_dir/warden` and end. It ends too once
there is nothing to stand, when the soup goes down in order. It imports as little as it can; standard library only.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

from primordia.kit import cgroup, freezer
from primordia.kit.errors import PrimordiaError
from primordia.supervisor.standing import Standing

WARDEN_FILE = "warden"
_LONGEST_SLEEP_S = 5.0
_FREEZE_AGAIN_S = 1.0
_LATER_S = 0.1
"""The fence goes first, for it can say why; `drift_s` allows for more than that."""


def watch(run_dir: Path, group: str) -> None:
    """Freeze the group whenever its time has come; returns when another one does that, or nobody needs to."""
    mine = run_dir / WARDEN_FILE
    mine.write_text(str(os.getpid()))
    standing = Standing(run_dir)
    told = math.nan
    while _is_mine(mine) and not standing.ended:
        until = standing.read()
        left = _LONGEST_SLEEP_S if until is None else until + _LATER_S - time.clock_gettime(time.CLOCK_BOOTTIME)
        if left > 0:
            time.sleep(min(left, _LONGEST_SLEEP_S))
            continue
        try:
            if cgroup.pids(group) and not freezer.stands(group):
                freezer.freeze(group)
            if until != told:
                _say(f"froze {group}: its supervisor has not said for {_LATER_S - left:.3f} s that it may go on")
                told = until or math.nan
        except PrimordiaError as error:
            _say(str(error))
        time.sleep(_FREEZE_AGAIN_S)


def _say(what: str) -> None:
    print(f"{time.strftime('%F %T')} warden: {what}", file=sys.stderr, flush=True)


def _is_mine(mine: Path) -> bool:
    try:
        return mine.read_text() == str(os.getpid())
    except OSError:
        return False


def main(arguments: list[str]) -> int:
    """Entry; its output is its log."""
    if len(arguments) != 2:
        print("usage: python -m primordia.supervisor.warden RUN_DIR CGROUP", file=sys.stderr)
        return 2
    run_dir, group = arguments
    watch(Path(run_dir), group)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

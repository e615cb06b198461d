"""What the supervisor's fence did, as events on the node's object: `primordia node describe` tells it when it is over.

A node that stands has no engine to tell it to; the supervisor leaves word in `run_dir/fence.json`, and the daemon, or the next
one, passes the last word on once.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.follow import followed
from primordia.registry.events import EventRecorder
from primordia.registry.informer import Informer
from primordia.wire.resources import Node

FENCE_FILE = "fence.json"
_LOOK_AGAIN_S = 30.0
_WORDS = {
    "Freeze": ("Frozen", "What runs here was frozen: {why}."),
    "Thaw": ("Thawed", "What runs here goes on: {why}."),
    "Kill": ("Fenced", "What ran here was killed: {why}."),
}

log = logging.getLogger(__name__)


async def tell_fence(run_dir: Path, node: str, nodes: Informer[Node], events: EventRecorder, clock: Clock) -> None:
    """Record what the fence does, until cancelled. What an earlier daemon has seen is told again only if it is a kill."""
    before = said_in(run_dir)
    told_at = None if before is None or before[0] == "Kill" else before[2]
    with followed(run_dir) as changed:
        while True:
            changed.clear()
            said, about = said_in(run_dir), nodes.get(node)
            if said is not None and said[2] != told_at and about is not None:
                name, why, told_at = said
                reason, sentence = _WORDS[name]
                events.record(about, reason, sentence.format(why=why), warning=name != "Thaw")
            await wait_event(clock, changed, _LOOK_AGAIN_S)


def said_in(run_dir: Path) -> tuple[str, str, float] | None:
    """The fence's last deed, why, and when (CLOCK_BOOTTIME); None where there is none that can be read."""
    try:
        word = json.loads((run_dir / FENCE_FILE).read_text())
        name, why, at = str(word["last"]), str(word["reason"]), float(word["at"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", run_dir / FENCE_FILE, error)
        return None
    return (name, why, at) if name in _WORDS else None

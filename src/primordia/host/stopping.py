"""Ending a soup's nodes: every daemon first, while the engine still answers, and the engine's servers after all of them.

A daemon that ends writes its microVMs' ends down. Were each node ended as a whole, the last ones would wait in vain for an
engine whose majority is gone. Engine servers end one after another: a leader hands over before it ends, and when all end at
once it waits 7 s for a successor that is ending as well (etcd's request timeout, seen with 3.4); the last one has nobody
to hand over to and seldom waits. Whoever asks may die at any moment: a supervisor then ends what it still has by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence

from primordia.kit.identity import running_pid
from primordia.kit.paths import NodePaths
from primordia.supervisor import control
from primordia.supervisor.main import PID_FILE, SOCKET_FILE

DOWN_WITHIN_S = 90.0
_GONE_WITHIN_S = 5.0


async def stop_nodes(nodes: Sequence[NodePaths], progress: Callable[[str], None], *, engine: bool = True) -> None:
    """End microVMs, daemons, engine servers and supervisors; what does not listen is left to the caller's cgroups.

    So are engine servers and supervisors without `engine`: where all state is deleted next, nobody needs their last words.
    """
    with contextlib.ExitStack() as stack:
        progress("stop microVMs and daemons")
        found = await asyncio.gather(*(asyncio.to_thread(_hold, here) for here in nodes))
        holds = [stack.enter_context(each) for each in found if each is not None]
        if not engine:
            return
        progress("stop the engine")
        for each in holds:
            await asyncio.to_thread(control.release, each)
        await asyncio.to_thread(_wait_gone, nodes)


def _hold(here: NodePaths) -> socket.socket | None:
    with contextlib.suppress(OSError, ValueError):
        return control.hold_down(here.run / SOCKET_FILE, timeout_s=DOWN_WITHIN_S)
    return None


def _wait_gone(nodes: Sequence[NodePaths]) -> None:
    """A supervisor that has ended all it had needs a moment for itself."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    while any(running_pid(here.run / PID_FILE) for here in nodes) and time.monotonic() < deadline:
        time.sleep(0.02)

"""What a soup costs that does nothing: CPU and memory of our own processes and of the engine's, of all of its nodes.

From /proc alone (proc(5)): utime and stime of each process, Pss of smaps_rollup, which divides shared pages fairly.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Ground, Progress
from primordia.kit import cgroup
from primordia.kit.errors import PrimordiaError
from primordia.supervisor import control
from primordia.supervisor.main import SOCKET_FILE

WINDOWS = 5
WINDOW_S = 5.0
SETTLE_S = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """CPU and memory of the soup's own processes, of its engine's, and memory of both; `rounds` windows of five seconds."""
    windows = rounds or WINDOWS
    progress(f"idle: {SETTLE_S + windows * WINDOW_S:.0f} s of silence")
    await asyncio.sleep(SETTLE_S)
    ours, engine = processes(ground)
    own_cores, engine_cores, own_mb, engine_mb = [], [], [], []
    before = time.monotonic(), cpu_seconds(ours), cpu_seconds(engine)
    for _ in range(windows):
        await asyncio.sleep(WINDOW_S)
        now = time.monotonic(), cpu_seconds(ours), cpu_seconds(engine)
        own_cores.append((now[1] - before[1]) / (now[0] - before[0]))
        engine_cores.append((now[2] - before[2]) / (now[0] - before[0]))
        own_mb.append(pss_mb(ours))
        engine_mb.append(pss_mb(engine))
        before = now
    return [
        figure("own_idle_cpu_cores", "cores", own_cores),
        figure("engine_idle_cpu_cores", "cores", engine_cores),
        figure("own_idle_memory_mb", "MB", own_mb),
        figure("engine_idle_memory_mb", "MB", engine_mb),
        figure("idle_memory_mb", "MB", [own + its for own, its in zip(own_mb, engine_mb, strict=True)]),
    ]


def processes(ground: Ground) -> tuple[frozenset[int], frozenset[int]]:
    """Pids of our own processes (supervisors, daemons and the uplinks we chose) and of the engine's, on all nodes."""
    ours: set[int] = set()
    engine: set[int] = set()
    for node in ground.nodes:
        found = cgroup.pids(f"primordia/{ground.soup.name}/{node}/system")
        if not found:
            raise PrimordiaError(f"The processes of node {node} are not in their cgroup.", remedy="Run `primordia doctor`.")
        reply = control.ask(ground.paths_of(node).run / SOCKET_FILE, "status")
        ours |= found
        engine.add(reply["children"].get("engine", {}).get("pid", 0))
    return frozenset(ours - engine), frozenset(engine - {0})


def cpu_seconds(pids: frozenset[int]) -> float:
    """CPU time that these processes and their ended children have had; the time of one that has ended is its parent's."""
    return sum(parse_ticks(text) for text in _texts(pids, "stat")) / _TICKS


def parse_ticks(stat: str) -> int:
    """utime + stime + cutime + cstime of /proc/PID/stat; the name before them may hold anything, so it is cut off first."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(fields[index]) for index in (11, 12, 13, 14))


def pss_mb(pids: frozenset[int]) -> float:
    """Memory of these processes together, in MB."""
    return sum(parse_pss(text) for text in _texts(pids, "smaps_rollup")) / 1e6


def _texts(pids: frozenset[int], name: str) -> Iterator[str]:
    """That file of each process that still runs."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield Path(f"/proc/{pid}/{name}").read_text()


def parse_pss(rollup: str) -> int:
    """Bytes of the Pss line."""
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024

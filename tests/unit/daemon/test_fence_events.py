"""What the fence did is told once, by whichever daemon comes after it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from primordia.daemon.beat import beat
from primordia.daemon.fence_events import FENCE_FILE, tell_fence
from primordia.kit.clock import SystemClock
from primordia.supervisor import fence
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Node


class Recorder:
    """Nodes and events, of which each is told by its reason."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, bool]] = []
        self.heard = asyncio.Event()

    def get(self, name: str, namespace: str = "") -> Node:
        return Node(metadata=ObjectMeta(name=name))

    def record(self, about: Node, reason: str, message: str, *, warning: bool = False) -> None:
        assert about.metadata.name == "n1"
        self.events.append((reason, message, warning))
        self.heard.set()


def deed(run_dir: Path, name: str, at: float) -> None:
    temporary = run_dir / "new"
    temporary.write_text(json.dumps({"frozen": name == "Freeze", "last": name, "reason": f"of {at:g}", "at": at}))
    temporary.rename(run_dir / FENCE_FILE)


@asynccontextmanager
async def telling(run_dir: Path) -> AsyncIterator[Recorder]:
    recorder: Any = Recorder()
    task = asyncio.create_task(tell_fence(run_dir, "n1", recorder, recorder, SystemClock()))
    try:
        yield recorder
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def told(recorder: Recorder, count: int) -> None:
    async with asyncio.timeout(20):
        while len(recorder.events) < count:
            recorder.heard.clear()
            await recorder.heard.wait()


async def test_each_deed_is_told_once(tmp_path: Path) -> None:
    async with telling(tmp_path) as recorder:
        await asyncio.sleep(0)
        deed(tmp_path, "Freeze", 1.0)
        await told(recorder, 1)
        deed(tmp_path, "Thaw", 2.0)
        await told(recorder, 2)
    assert recorder.events == [
        ("Frozen", "What runs here was frozen: of 1.", True),
        ("Thawed", "What runs here goes on: of 2.", False),
    ]


async def test_a_kill_is_told_by_the_next_daemon_and_a_freeze_was_by_the_last(tmp_path: Path) -> None:
    deed(tmp_path, "Freeze", 1.0)
    async with telling(tmp_path) as recorder:
        await asyncio.sleep(0.1)
        assert recorder.events == []
    deed(tmp_path, "Kill", 2.0)
    async with telling(tmp_path) as recorder:
        await told(recorder, 1)
    assert recorder.events == [("Fenced", "What ran here was killed: of 2.", True)]


async def test_the_beat_changes_what_the_fence_looks_at(tmp_path: Path) -> None:
    assert fence.FENCE_FILE == FENCE_FILE
    task = asyncio.create_task(beat(tmp_path, SystemClock(), 0.01))
    seen = set()
    async with asyncio.timeout(20):
        while len(seen) < 3:
            with suppress(FileNotFoundError):
                seen.add((tmp_path / fence.BEAT_FILE).stat().st_mtime)
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

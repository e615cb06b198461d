"""A node's lease keeper on a test's engine, as its supervisor would run it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from primordia.supervisor.engine_client import EngineClient, Identity
from primordia.supervisor.lease import LeaseKeeper
from primordia.supervisor.lease_file import LEASE_FILE, Holder
from primordia.testing.store import Engine

DEADLINE_S = 60.0


@contextlib.contextmanager
def kept_lease(
    engine: Engine, run_dir: Path, incarnation: str = "one", *, endpoints: tuple[str, ...] = (), runs: bool = False
) -> Iterator[LeaseKeeper]:
    """A running keeper of node n1's lease; given back at the end. `runs` says that it finds microVMs running."""
    run_dir.mkdir(parents=True, exist_ok=True)
    identity = Identity(str(engine.ca), str(engine.certificate), str(engine.key))
    client = EngineClient(endpoints or (engine.endpoint,), identity, 0.5)
    keeper = LeaseKeeper(Holder("n1", "boot", incarnation, "10.77.0.1"), client, run_dir, runs=runs)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Look every 50 ms until the condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not reached within {DEADLINE_S:.0f} s: {what}")
        time.sleep(0.05)


def told(run_dir: Path) -> dict[str, Any]:
    """What the daemon is told."""
    record: dict[str, Any] = json.loads((run_dir / LEASE_FILE).read_text())
    return record

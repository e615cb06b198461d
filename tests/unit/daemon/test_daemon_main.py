"""The daemon's entry: what it does before its first task runs."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from primordia.daemon import main as daemon
from primordia.testing.node import node_config
from primordia.wire.nodeconfig import NodeConfig


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The logging and the collector of this process, afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    gc.unfreeze()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_full_collections_do_not_look_at_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    async def run(config: NodeConfig, node_json: Path) -> None:
        seen.append(gc.get_freeze_count())

    monkeypatch.setattr(daemon, "run", run)
    monkeypatch.setattr(daemon, "_log_uncaught", lambda: None)
    path = tmp_path / "node.json"
    path.write_bytes(msgspec.json.encode(node_config(tmp_path)))
    assert daemon.main([str(path)]) == 0
    assert seen[0] > 10_000


def test_settings_that_cannot_be_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "node.json"
    path.write_text("{}")
    assert daemon.main([str(path)]) == 1
    assert daemon.main([]) == 2
    assert "node.json cannot be read" in caplog.text

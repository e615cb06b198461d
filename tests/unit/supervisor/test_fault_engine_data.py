"""Whether an engine server's data was lost: only where there was some, and is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from primordia.domain.engine import Health, verdict_of
from primordia.supervisor import engine_data


def written(data_dir: Path) -> None:
    wal = data_dir / "member" / "wal"
    wal.mkdir(parents=True)
    (wal / "0000000000000000-0000000000000000.wal").touch()


def test_a_new_server_has_lost_nothing(tmp_path: Path) -> None:
    data_dir = tmp_path / "engine"
    engine_data.remember(data_dir)
    assert not engine_data.is_lost(data_dir)
    data_dir.mkdir()
    engine_data.remember(data_dir)
    assert not engine_data.is_lost(data_dir)


@pytest.mark.parametrize("gone", ["", "member", "member/wal"])
def test_what_was_there_and_is_not_is_lost_until_it_is_forgotten(tmp_path: Path, gone: str) -> None:
    data_dir = tmp_path / "engine"
    written(data_dir)
    engine_data.remember(data_dir)
    assert not engine_data.is_lost(data_dir)
    shutil.rmtree(data_dir / gone)
    assert engine_data.is_lost(data_dir)
    engine_data.remember(data_dir)
    assert engine_data.is_lost(data_dir), "looking again heals nothing"
    engine_data.forget(data_dir)
    assert not engine_data.is_lost(data_dir)


def test_a_leftover_that_is_no_log_is_no_data(tmp_path: Path) -> None:
    data_dir = tmp_path / "engine"
    (data_dir / "member" / "wal").mkdir(parents=True)
    (data_dir / "member" / "wal" / "0.tmp").touch()
    assert not engine_data.has_data(data_dir)


@pytest.mark.parametrize(
    ("health", "status", "reason", "words"),
    [
        (Health(True, False, True), "True", "Answers", ""),
        (Health(False, False, True), "False", "NotAnswering", "engine remove n1"),
        (Health(True, False, False), "False", "DiskFull", "still answers. Make room"),
        (Health(False, False, False), "False", "DiskFull", "does not run. Make room"),
        (Health(False, True, False), "False", "DataLost", "A new one takes its place"),
    ],
)
def test_verdicts(health: Health, status: str, reason: str, words: str) -> None:
    verdict = verdict_of(health, "n1")
    assert (verdict.type, verdict.status, verdict.reason) == ("EngineServer", status, reason)
    assert words in verdict.message

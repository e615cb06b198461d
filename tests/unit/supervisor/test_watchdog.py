"""Feeding a watchdog: a FIFO stands in for the device, and shows every byte."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from primordia.supervisor.watchdog import Watchdog


def test_it_is_fed_and_disarmed_at_an_orderly_end_alone(tmp_path: Path) -> None:
    path = tmp_path / "watchdog"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        dog = Watchdog(str(path), 6)
        dog.feed()
        dog.feed()
        assert os.read(reader, 100) == b"\0\0"
        dog.disarm()
        assert os.read(reader, 100) == b"V"
        assert os.read(reader, 100) == b"", "it is closed"
        dog.disarm()
        dog.feed()
        assert os.read(reader, 100) == b"\0", "and can be armed again"
    finally:
        os.close(reader)


def test_a_device_that_is_not_there_is_said_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "watchdog"
    dog = Watchdog(str(path), 6)
    with caplog.at_level(logging.ERROR):
        dog.feed()
        dog.feed()
    assert len(caplog.records) == 1 and "No such file" in caplog.text
    path.touch()
    dog.feed()
    assert path.read_bytes() == b"\0"


def test_without_one_nothing_is_done() -> None:
    dog = Watchdog("", 6)
    dog.feed()
    dog.disarm()

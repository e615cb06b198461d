"""A held `down`: the second half comes when the asker lets go, or is gone, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from primordia.supervisor import control
from primordia.testing.down import HalfDown


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "supervisor.sock"


@pytest.fixture
def supervisor(place: Path) -> Iterator[HalfDown]:
    made = HalfDown(place)
    yield made
    made.close()


def test_nothing_more_ends_until_the_asker_lets_go(place: Path, supervisor: HalfDown) -> None:
    held = control.hold_down(place, timeout_s=60)
    assert supervisor.request == {"command": "down", "hold": True}
    assert not supervisor.second_half.wait(0.1)
    control.release(held)
    assert supervisor.second_half.is_set()


def test_an_asker_that_dies_lets_go(place: Path, supervisor: HalfDown) -> None:
    control.hold_down(place, timeout_s=60).close()
    assert supervisor.second_half.wait(60)


def test_nobody_there_is_an_os_error(place: Path) -> None:
    with pytest.raises(OSError):
        control.hold_down(place, timeout_s=1)

"""The memory body keeps the volumes contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from volumes_contract import Corrupt, VolumesContract

from primordia.drivers.volumes_memory import MemoryVolumes


class TestMemoryVolumes(VolumesContract):
    @pytest.fixture
    def volumes(self, tmp_path: Path) -> MemoryVolumes:
        (tmp_path / "one").mkdir()
        return MemoryVolumes(tmp_path / "one")

    @pytest.fixture
    def other(self, tmp_path: Path) -> MemoryVolumes:
        (tmp_path / "two").mkdir()
        return MemoryVolumes(tmp_path / "two")

    @pytest.fixture
    def corrupt(self, other: MemoryVolumes) -> Corrupt:
        return other.corrupt

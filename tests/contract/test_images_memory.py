"""The memory body keeps the images contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from images_contract import ImagesContract

from primordia.drivers.images_memory import MemoryImages
from primordia.ports.images import Images
from primordia.wire.resources import DebianSource, ImageSpec


class TestMemoryImages(ImagesContract):
    @pytest.fixture
    def images(self, tmp_path: Path) -> Images:
        return MemoryImages(tmp_path)

    @pytest.fixture
    def spec(self) -> ImageSpec:
        return ImageSpec(debian=DebianSource(packages=("one",)))

    @pytest.fixture
    def other_spec(self) -> ImageSpec:
        return ImageSpec(debian=DebianSource(packages=("two",)))

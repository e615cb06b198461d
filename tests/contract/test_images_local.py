"""The cache on disk keeps the images contract, by layouts that need no network."""

from __future__ import annotations

from pathlib import Path

import pytest
from images_contract import ImagesContract

from primordia.drivers.images_local.local import LocalImages
from primordia.ports.images import Images
from primordia.testing.images import Layer, Layout, small_layer
from primordia.wire.resources import ImageSpec, OciSource


class TestLocalImages(ImagesContract):
    @pytest.fixture
    def images(self, tmp_path: Path) -> Images:
        return LocalImages(tmp_path / "cache")

    @pytest.fixture
    def layout(self, tmp_path: Path) -> Layout:
        return Layout(tmp_path / "layout")

    @pytest.fixture
    def spec(self, layout: Layout) -> ImageSpec:
        descriptor = layout.manifest([small_layer()], {"Entrypoint": ["/bin/tool"], "Cmd": ["x"]})
        return ImageSpec(oci=OciSource(reference=layout.tag("one", descriptor)))

    @pytest.fixture
    def other_spec(self, layout: Layout) -> ImageSpec:
        descriptor = layout.manifest([Layer().add("other", b"1")])
        return ImageSpec(oci=OciSource(reference=layout.tag("two", descriptor)))

"""From a layout's documents to one image, and every way in which they can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from primordia.drivers.images_local.hostile import CorruptImageError, HostileImageError
from primordia.drivers.images_local.oci_layout import MANIFEST, blob_path, resolve
from primordia.kit.errors import NotFoundError, PermanentError, UnsupportedError
from primordia.testing.images import Layer, Layout, platform, small_layer
from primordia.wire.resources import EnvVar


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def test_the_configuration_is_read(layout: Layout) -> None:
    config = {
        "Entrypoint": ["/e"],
        "Cmd": ["c", "d"],
        "Env": ["A=1", "B=x=y", "C"],
        "WorkingDir": "/w",
        "User": "7:8",
        "Labels": {"x": "y"},
    }
    layout.tag("v1", layout.manifest([small_layer(), Layer().add("b")], config))
    image = resolve(layout.folder, "v1")
    assert len(image.layers) == 2
    assert image.config.entrypoint == ("/e",)
    assert image.config.cmd == ("c", "d")
    assert image.config.env == (EnvVar(name="A", value="1"), EnvVar(name="B", value="x=y"), EnvVar(name="C"))
    assert (image.config.working_dir, image.config.user) == ("/w", "7:8")


def test_null_and_empty_say_nothing(layout: Layout) -> None:
    layout.tag("v1", layout.manifest([small_layer()], {"Entrypoint": None, "Cmd": [], "Env": None}))
    config = resolve(layout.folder, "v1").config
    assert (config.entrypoint, config.cmd, config.env) == (None, None, ())


def test_the_only_image_needs_no_tag(layout: Layout) -> None:
    only = layout.manifest([small_layer()])
    layout.tag("v1", only)
    assert resolve(layout.folder, "").manifest.digest == only["digest"]


def test_a_wrong_tag_is_answered_with_the_right_ones(layout: Layout) -> None:
    layout.tag("v1", layout.manifest([small_layer()]))
    layout.tag("v2", layout.manifest([Layer().add("x")]))
    with pytest.raises(NotFoundError, match=r"no image tagged 'v3'.*v1, v2"):
        resolve(layout.folder, "v3")
    with pytest.raises(NotFoundError, match="several images"):
        resolve(layout.folder, "")


def test_no_layout_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not an OCI layout"):
        resolve(tmp_path / "nothing", "v1")


def test_nested_indexes_lead_to_this_architecture(layout: Layout) -> None:
    ours, arm = layout.manifest([small_layer()]), layout.manifest([Layer().add("x")], architecture="arm64")
    inner = layout.index([platform(arm, "arm64"), platform(ours, "amd64"), platform(ours, "amd64", "windows")])
    layout.tag("v1", layout.index([inner]))
    assert resolve(layout.folder, "v1").manifest.digest == ours["digest"]


def test_indexes_nested_for_ever_are_hostile(layout: Layout) -> None:
    descriptor = layout.manifest([small_layer()])
    for _ in range(5):
        descriptor = layout.index([descriptor])
    layout.tag("v1", descriptor)
    with pytest.raises(HostileImageError, match="nested"):
        resolve(layout.folder, "v1")


def test_another_architecture_is_refused_with_the_reason(layout: Layout) -> None:
    arm = layout.manifest([small_layer()], architecture="arm64")
    layout.tag("plain", arm)
    layout.tag("list", layout.index([platform(arm, "arm64")]))
    layout.tag("lying", layout.index([platform(arm, "amd64")]))
    for tag in ("plain", "list", "lying"):
        with pytest.raises(UnsupportedError, match="arm64") as refused:
            resolve(layout.folder, tag)
        assert refused.value.reason == "WrongArchitecture"


@pytest.mark.parametrize("kind", ["application/vnd.oci.image.layer.v1.tar+zstd", "application/x-evil", ""])
def test_unknown_kinds_of_layer_are_refused(layout: Layout, kind: str) -> None:
    layout.tag("v1", layout.manifest([small_layer()], layer_type=kind or " "))
    with pytest.raises(UnsupportedError, match="layer of the kind"):
        resolve(layout.folder, "v1")


def test_an_unknown_kind_of_manifest_is_refused(layout: Layout) -> None:
    layout.tag("v1", {**layout.manifest([small_layer()]), "mediaType": "application/x-evil"})
    with pytest.raises(UnsupportedError, match="manifest of the kind"):
        resolve(layout.folder, "v1")


def test_a_changed_document_is_corrupt(layout: Layout) -> None:
    descriptor = layout.manifest([small_layer()])
    layout.tag("v1", descriptor)
    path = layout.path(descriptor["digest"])
    path.write_bytes(path.read_bytes().replace(b'"schemaVersion": 2', b'"schemaVersion": 3'))
    with pytest.raises(CorruptImageError, match="digest"):
        resolve(layout.folder, "v1")
    path.unlink()
    with pytest.raises(CorruptImageError, match="lacks"):
        resolve(layout.folder, "v1")


def test_a_document_that_is_no_manifest(layout: Layout) -> None:
    for number, text in enumerate((b"[]", b"{", b'{"config": 7}', b"\xff", b"[" * 100_000)):
        layout.tag(f"v{number}", layout.blob(text, MANIFEST))
        with pytest.raises(PermanentError, match="not the document"):
            resolve(layout.folder, f"v{number}")


def test_a_huge_document_is_not_read(layout: Layout) -> None:
    layout.tag("v1", layout.blob(b" " * (5 * 1024 * 1024), MANIFEST))
    with pytest.raises(HostileImageError, match="larger than 4 MiB"):
        resolve(layout.folder, "v1")


def test_blobs_that_are_no_plain_files_are_hostile(layout: Layout, tmp_path: Path) -> None:
    descriptor = layout.manifest([small_layer()])
    layout.tag("v1", descriptor)
    path = layout.path(descriptor["digest"])
    moved = tmp_path / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(HostileImageError, match="plain file"):
        resolve(layout.folder, "v1")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(HostileImageError, match="plain file"):
        resolve(layout.folder, "v1")


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha512:" + "0" * 128, "sha256:" + "A" * 64, "", "sha256:" + "0" * 64 + "\n"]
)
def test_a_digest_is_no_path(digest: str, layout: Layout) -> None:
    with pytest.raises(HostileImageError):
        blob_path(layout.folder, digest)


def test_too_many_layers(layout: Layout) -> None:
    descriptor = layout.manifest([b""] * 1025)
    layout.tag("v1", descriptor)
    with pytest.raises(HostileImageError, match="1025 layers"):
        resolve(layout.folder, "v1")


@pytest.mark.parametrize(
    "config", [{"Env": ["A=\0"]}, {"Cmd": ["x" * 200_000]}, {"Entrypoint": ["x"] * 5000}, {"User": "a\0b"}]
)
def test_a_configuration_that_no_program_can_be_given(layout: Layout, config: dict[str, Any]) -> None:
    layout.tag("v1", layout.manifest([small_layer()], config))
    with pytest.raises(PermanentError, match="configuration"):
        resolve(layout.folder, "v1")


def test_the_index_itself_may_be_rubbish(layout: Layout) -> None:
    (layout.folder / "index.json").write_text(json.dumps({"manifests": [{"digest": 1}]}))
    with pytest.raises(PermanentError, match=r"index\.json is not the document"):
        resolve(layout.folder, "")

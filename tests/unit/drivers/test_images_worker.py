"""The worker answers every request with a sentence, never with a trace."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from primordia.drivers.images_local import worker
from primordia.drivers.images_local.hostile import Limits
from primordia.drivers.images_local.oci_layout import LAYER_GZIP, Descriptor, resolve
from primordia.drivers.images_local.tree import tree_digest
from primordia.kit.errors import CapacityError, PermanentError
from primordia.testing.images import Layer, Layout, small_layer


async def test_a_scan_counts(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.tag("v1", layout.manifest([small_layer()]))
    answer = await worker.scan_layers(layout.folder, resolve(layout.folder, "v1").layers, Limits())
    assert answer.entries == 7
    assert answer.unpacked_bytes == len(small_layer().tar())


async def test_errors_keep_their_kind_and_words(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.tag("v1", layout.manifest([Layer().add("../evil")]))
    layers = resolve(layout.folder, "v1").layers
    with pytest.raises(PermanentError, match="climbs") as refused:
        await worker.scan_layers(layout.folder, layers, Limits())
    assert refused.value.reason == "HostileImage"
    assert refused.value.remedy
    with pytest.raises(CapacityError, match="larger"):
        await worker.scan_layers(layout.folder, layers, Limits(unpacked_bytes=10))
    missing = Descriptor(digest="sha256:" + "0" * 64, size=1, media_type=LAYER_GZIP)
    with pytest.raises(PermanentError, match="missing"):
        await worker.scan_layers(layout.folder, (missing,), Limits())


async def test_a_digest_is_the_same_inside_and_outside(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("x")
    assert await worker.digest_tree(tmp_path / "tree", b"{}") == tree_digest(tmp_path / "tree", b"{}")
    with pytest.raises(PermanentError, match="cannot be read"):
        await worker.digest_tree(tmp_path / "nowhere", b"{}")


def test_running_out_of_memory_is_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "layout")
    layout.tag("v1", layout.manifest([small_layer()]))

    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(worker, "scan_layer", exhausted)
    request = msgspec.json.encode(worker.ScanRequest(str(layout.folder), resolve(layout.folder, "v1").layers, Limits()))
    answer = worker.answer("scan", request)
    assert answer.reason == "HostileImage"
    assert "memory" in answer.error


async def test_a_defect_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ScanRequest", lambda *_: {"nothing": "useful"})
    with pytest.raises(PermanentError, match="could not scan") as broken:
        await worker.scan_layers(Path("/"), (), Limits())
    assert "Traceback" not in str(broken.value)
    assert "\n" not in str(broken.value)

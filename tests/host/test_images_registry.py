"""Pulling from a real registry on the loopback, and what goes wrong there."""

from __future__ import annotations

import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primordia.drivers.images_local.local import LocalImages
from primordia.kit import netns
from primordia.kit.errors import InvalidError, NotFoundError, PermanentError, TemporaryError, UnsupportedError
from primordia.testing.images import Layer, Layout, LocalRegistry, local_registry, platform, small_layer
from primordia.wire.resources import ImageSpec, OciSource


def quiet(_: str) -> None:
    """No progress wanted."""


def plain(reference: str) -> ImageSpec:
    return ImageSpec(oci=OciSource(reference=reference, tls_verify=False))


def empty_namespace() -> int:
    """A descriptor of a new network namespace without even a loopback. Leaves the calling thread in it."""
    assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[LocalRegistry]:
    async with local_registry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def images(cache: Path) -> LocalImages:
    return LocalImages(cache)


async def test_an_image_is_pulled_once_and_then_found_without_the_registry(
    tmp_path: Path, layout: Layout, images: LocalImages
) -> None:
    descriptor = layout.manifest([small_layer()], {"Cmd": ["/bin/tool"], "Env": ["A=1"]})
    async with local_registry(tmp_path / "registry") as registry:
        reference = await registry.push(layout.tag("v1", descriptor), "team/tool:v1")
        by_tag = await images.ensure(plain(reference), quiet)
        by_digest = await images.ensure(plain(f"{registry.address}/team/tool@{descriptor['digest']}"), quiet)
    assert by_tag.config.cmd == ("/bin/tool",)
    assert by_tag.source == reference
    assert by_digest.digest == by_tag.digest
    words: list[str] = []
    assert await images.ensure(plain(reference), words.append) == by_tag
    assert words == []
    absent = reference.replace("tool:v1", "tool:v2")
    with pytest.raises(TemporaryError, match="cannot be reached"):
        await images.ensure(plain(absent), quiet)


async def test_a_digest_pins_the_content(registry: LocalRegistry, layout: Layout, images: LocalImages) -> None:
    old, new = layout.manifest([small_layer()]), layout.manifest([Layer().add("new", b"x")])
    await registry.push(layout.tag("old", old), "tool:v1")
    await registry.push(layout.tag("new", new), "tool:v1")
    pinned = await images.ensure(plain(f"{registry.address}/tool:v1@{old['digest']}"), quiet)
    moved = await images.ensure(plain(f"{registry.address}/tool:v1"), quiet)
    assert pinned.digest != moved.digest


async def test_what_is_absent_is_named(registry: LocalRegistry, layout: Layout, images: LocalImages, cache: Path) -> None:
    await registry.push(layout.tag("v1", layout.manifest([small_layer()])), "tool:v1")
    for name in ("tool:v9", "nosuch:v1", "tool@sha256:" + "0" * 64):
        with pytest.raises(NotFoundError, match=name.split("@")[0]):
            await images.ensure(plain(f"{registry.address}/{name}"), quiet)
    assert list((cache / "work").iterdir()) == []


async def test_a_layer_that_the_registry_lost_bits_of(
    registry: LocalRegistry, layout: Layout, images: LocalImages, cache: Path
) -> None:
    descriptor = layout.manifest([small_layer()])
    reference = await registry.push(layout.tag("v1", descriptor), "tool:v1")
    layer = next(path for path in (layout.folder / "blobs/sha256").iterdir() if path.read_bytes()[:2] == b"\x1f\x8b")
    blob = registry.blob(layer.name)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0xFF
    blob.write_bytes(data)
    with pytest.raises(PermanentError, match="digest") as refused:
        await images.ensure(plain(reference), quiet)
    assert refused.value.reason == "CorruptImage"
    assert list((cache / "images").iterdir()) == []
    assert list((cache / "work").iterdir()) == []


async def test_a_hostile_image_in_a_registry_is_refused(registry: LocalRegistry, layout: Layout, images: LocalImages) -> None:
    reference = await registry.push(layout.tag("v1", layout.manifest([Layer().add("../evil")])), "evil:v1")
    with pytest.raises(PermanentError, match=r"'\.\.'") as refused:
        await images.ensure(plain(reference), quiet)
    assert refused.value.reason == "HostileImage"


async def test_architectures_in_a_registry(registry: LocalRegistry, layout: Layout, images: LocalImages) -> None:
    ours, arm = layout.manifest([small_layer()]), layout.manifest([Layer().add("x")], architecture="arm64")
    both = layout.index([platform(arm, "arm64"), platform(ours, "amd64")])
    reference = await registry.push(layout.tag("both", both), "both:v1")
    assert (await images.ensure(plain(reference), quiet)).path.exists()
    foreign = await registry.push(layout.tag("arm", layout.index([platform(arm, "arm64")])), "arm:v1")
    single = await registry.push(layout.tag("single", arm), "single:v1")
    for name in (foreign, single):
        with pytest.raises(UnsupportedError, match="amd64") as refused:
            await images.ensure(plain(name), quiet)
        assert refused.value.reason == "WrongArchitecture"


async def test_plain_http_is_refused_unless_allowed(registry: LocalRegistry, layout: Layout, images: LocalImages) -> None:
    reference = await registry.push(layout.tag("v1", layout.manifest([small_layer()])), "tool:v1")
    with pytest.raises(InvalidError, match="plain HTTP") as refused:
        await images.ensure(ImageSpec(oci=OciSource(reference=reference)), quiet)
    assert refused.value.field == "spec.oci.tlsVerify"


async def test_pulls_run_in_the_namespace_that_is_given(registry: LocalRegistry, layout: Layout, cache: Path) -> None:
    reference = await registry.push(layout.tag("v1", layout.manifest([small_layer()])), "tool:v1")
    here = netns.open_current()
    elsewhere = netns.call_in(here, empty_namespace)
    try:
        with pytest.raises(TemporaryError, match="cannot be reached"):
            await LocalImages(cache, elsewhere).ensure(plain(reference), quiet)
        assert (await LocalImages(cache, here).ensure(plain(reference), quiet)).path.exists()
    finally:
        os.close(elsewhere)
        os.close(here)

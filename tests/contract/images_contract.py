"""What every body of the images port promises. A body's test file gives `images`, `spec` and `other_spec`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from primordia.kit.errors import InvalidError, NotFoundError
from primordia.ports.images import Images
from primordia.wire.resources import EnvVar, ImageConfig, ImageSpec

ABSENT = "sha256:" + "0" * 64


def quiet(_: str) -> None:
    """No progress wanted."""


class ImagesContract:
    """Subclassed for each body."""

    async def test_a_root_is_made_once_and_found_by_its_digest(self, images: Images, spec: ImageSpec) -> None:
        words: list[str] = []
        first = await images.ensure(spec, words.append)
        assert words
        assert first.digest.startswith("sha256:")
        assert first.path.is_file()
        told = len(words)
        assert await images.ensure(spec, words.append) == first
        assert len(words) == told
        found = await images.find(first.digest)
        assert found is not None
        assert found.path == first.path

    async def test_what_is_absent_is_not_found(self, images: Images) -> None:
        assert await images.find(ABSENT) is None
        assert await images.find("../../etc/passwd") is None
        with pytest.raises(NotFoundError):
            await images.remove(ABSENT)

    async def test_concurrent_calls_make_a_source_once(self, images: Images, spec: ImageSpec) -> None:
        words: list[str] = []
        roots = await asyncio.gather(*(images.ensure(spec, words.append) for _ in range(5)))
        assert len({root.path for root in roots}) == 1
        made = [word for word in words if not word.startswith("waiting")]
        assert len(made) == len(set(made))
        assert len(await images.list()) == 1

    async def test_the_spec_decides_what_runs(self, images: Images, spec: ImageSpec) -> None:
        wanted = ImageConfig(entrypoint=("/bin/true",), env=(EnvVar(name="A", value="b"),), user="7", working_dir="/tmp")
        root = await images.ensure(msgspec.structs.replace(spec, config=wanted), quiet)
        assert root.config.entrypoint == ("/bin/true",)
        assert root.config.cmd is None
        assert EnvVar(name="A", value="b") in root.config.env
        assert (root.config.user, root.config.working_dir) == ("7", "/tmp")

    async def test_the_list_shows_use_and_removal_frees(self, images: Images, spec: ImageSpec, other_spec: ImageSpec) -> None:
        first = await images.ensure(spec, quiet)
        await images.ensure(other_spec, quiet)
        before = {image.root.digest: image.last_used for image in await images.list()}
        assert len(before) == 2
        await images.ensure(spec, quiet)
        after = {image.root.digest: image.last_used for image in await images.list()}
        assert after[first.digest] > before[first.digest]
        sources = [image.root.source for image in await images.list()]
        assert sources == sorted(sources)
        assert await images.remove(first.digest) > 0
        assert not first.path.exists()
        assert await images.find(first.digest) is None
        assert first.digest not in {image.root.digest for image in await images.list()}
        assert (await images.ensure(spec, quiet)).path.is_file()

    async def test_neither_or_both_sources_are_refused(self, images: Images) -> None:
        with pytest.raises(InvalidError):
            await images.ensure(ImageSpec(), quiet)

    async def test_scratch_is_sparse_and_new_each_time(self, images: Images, tmp_path: Path) -> None:
        disk = tmp_path / "scratch"
        for _ in range(2):
            await images.scratch(disk, 256 * 1024 * 1024)
            status = disk.stat()
            assert status.st_size == 256 * 1024 * 1024
            assert status.st_blocks * 512 < 8 * 1024 * 1024

"""The whole toolchain, downloaded from the machine's own package sources into a cache of the test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from primordia.host import toolchain
from primordia.host.toolchain import qemu_version
from primordia.kit.command import run


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("apt-get") is None, reason="needs root and apt")
async def test_two_at_once_make_it_once_and_a_hurt_one_is_mended(tmp_path: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in (Path("/var/lib/apt/lists"), Path("/var/lib/dpkg/status"), Path("/etc/apt"))
    }
    steps: list[str] = []

    first, second = await asyncio.gather(toolchain.ensure(tmp_path, steps.append), toolchain.ensure(tmp_path, steps.append))

    assert first == second
    assert len(steps) == len(set(steps))
    assert await qemu_version(first)
    assert "etcd" in (await run([first.etcd, "--version"])).text().lower()
    assert "slirp4netns" in (await run([first.slirp4netns, "--version"])).text()
    for place in (first.kernel, first.initramfs):
        assert Path(place).stat().st_mode & 0o004
    assert await toolchain.plan(tmp_path) == []
    folder = tmp_path / "toolchain"
    assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert {path: path.stat().st_mtime_ns for path in before} == before

    # A cache that somebody damaged: only what is missing is made again, and without the network, from what is there.
    Path(first.initramfs).unlink()
    steps.clear()
    assert await toolchain.ensure(tmp_path, steps.append) == first
    assert Path(first.initramfs).exists()
    assert not [step for step in steps if "download" in step or "fetch" in step]

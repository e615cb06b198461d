"""Images from the distribution's real packages."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from primordia.drivers.images_local.local import LocalImages
from primordia.kit.enclosure import mounts_can_be_own
from primordia.kit.errors import NotFoundError
from primordia.ports.images import RootImage
from primordia.wire.catalogue import builtin_image
from primordia.wire.resources import DebianSource, ImageSpec

DEADLINE_S = 600
REDIS = ImageSpec(debian=DebianSource(packages=("redis-server",)))


def quiet(_: str) -> None:
    """No progress wanted."""


async def build(cache: Path, name: str) -> RootImage:
    image = builtin_image(name)
    assert image is not None
    async with asyncio.timeout(DEADLINE_S):
        return await LocalImages(cache).ensure(image.spec, quiet)


def debugfs(disk: Path, request: str) -> str:
    return subprocess.run(["debugfs", "-R", request, str(disk)], capture_output=True, text=True, check=True).stdout


def names_in(disk: Path, folder: str) -> set[str]:
    lines = debugfs(disk, f"ls -p {folder}").splitlines()
    return {line.split("/")[5] for line in lines if line.startswith("/")} - {".", ".."}


def assert_sound(disk: Path) -> None:
    checked = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def processes_below(folder: Path, *, chrooted: bool = False) -> list[str]:
    """Processes whose root (or, unless `chrooted`, command line) lies in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            root = str((process / "root").readlink())
        except OSError:
            continue
        if str(folder) in root or (not chrooted and str(folder) in command):
            found.append(command)
    return found


async def test_busybox_is_reproducible_and_bare(tmp_path: Path) -> None:
    one, two = [await build(tmp_path / name, "busybox") for name in ("one", "two")]
    assert one.digest == two.digest
    assert one.config.cmd == ("/bin/sh",)
    assert one.size_bytes < 4 * 1024 * 1024
    assert names_in(one.path, "/etc/apt/sources.list.d") == set()


async def test_redis_is_installed_and_nothing_of_this_machine_with_it(tmp_path: Path) -> None:
    root = await build(tmp_path / "cache", "redis")
    assert_sound(root.path)
    assert "Type: regular" in debugfs(root.path, "stat /usr/bin/redis-check-rdb")
    assert "redis:x:" in debugfs(root.path, "cat /etc/passwd")
    assert debugfs(root.path, "cat /etc/resolv.conf") == ""
    assert debugfs(root.path, "cat /etc/machine-id") == ""
    assert "policy-rc.d" not in debugfs(root.path, "ls /usr/sbin")
    for folder in ("/dev", "/etc/apt/sources.list.d", "/var/lib/apt", "/var/cache/apt"):
        assert names_in(root.path, folder) == set(), folder
    assert processes_below(tmp_path) == [], "a packaged service was started"
    assert "99mmdebstrap" not in names_in(root.path, "/etc/apt/apt.conf.d")


async def test_an_unknown_package_is_named(tmp_path: Path) -> None:
    spec = ImageSpec(debian=DebianSource(packages=("no-such-package-here",)))
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(NotFoundError, match=r"no package no-such-package-here in \w+ \w+"):
            await LocalImages(tmp_path / "cache").ensure(spec, quiet)
    assert list((tmp_path / "cache/work").iterdir()) == []


def mounted_below(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/mountinfo").read_text()


async def test_a_cancelled_build_ends_its_programs(tmp_path: Path) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(LocalImages(tmp_path / "cache").ensure(REDIS, lambda _: begun.set()))
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
        await until(lambda: processes_below(tmp_path, chrooted=True) != [])
        assert mounted_below(tmp_path) != mounts_can_be_own()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not processes_below(tmp_path))
    assert not mounted_below(tmp_path)
    assert list((tmp_path / "cache/work").iterdir()) == []

"""File systems of volumes: how they are made, and what of a damaged one is repaired without asking."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from primordia.drivers.filesystems import make_filesystem, mkfs_argv, repair_filesystem
from primordia.kit.command import run
from primordia.kit.errors import InvalidError, PermanentError

MIB = 1 << 20

pytestmark = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs e2fsprogs")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    with place.open("wb") as file:
        file.truncate(64 * MIB)
    return place


def test_programs_by_kind() -> None:
    argv = mkfs_argv(Path("/d"), "ext4", "a-name-of-more-than-sixteen")
    assert argv[argv.index("-L") + 1] == "a-name-of-more-t" and argv[-2:] == ["--", "/d"]
    assert mkfs_argv(Path("/d"), "xfs", "a-name-of-more-than-twelve")[-2:] == ["a-name-of-mo", "/d"]
    with pytest.raises(InvalidError, match="ext4 or xfs"):
        mkfs_argv(Path("/d"), "zfs", "")


async def test_a_new_file_system_takes_little_of_the_pool_and_is_whole(disk: Path) -> None:
    await make_filesystem(disk, "ext4", "shop.redis")
    assert disk.stat().st_blocks * 512 < 2 * MIB
    assert "shop.redis" in (await run(["e2label", str(disk)])).text()
    assert (await run(["e2fsck", "-n", "-f", str(disk)], check=False)).status == 0


async def test_what_loses_nothing_is_repaired(disk: Path) -> None:
    await make_filesystem(disk, "ext4", "x")
    await run(["debugfs", "-w", "-R", "set_super_value state 2", str(disk)])  # errors were seen
    await run(["debugfs", "-w", "-R", "set_super_value free_blocks_count 17", str(disk)])
    assert "Fix? no" in (await run(["e2fsck", "-n", str(disk)], check=False)).text()
    await repair_filesystem(disk, "ext4")
    done = await run(["e2fsck", "-n", "-f", str(disk)], check=False)
    assert done.status == 0 and "Fix?" not in done.text()


async def test_what_would_lose_something_is_left_to_people(disk: Path) -> None:
    await make_filesystem(disk, "ext4", "x")
    with disk.open("r+b") as file:
        file.write(bytes(64 * 1024))  # the superblock and what follows it
    before = disk.read_bytes()
    with pytest.raises(PermanentError) as caught:
        await repair_filesystem(disk, "ext4")
    assert caught.value.reason == "DataDamaged" and "volume restore" in caught.value.remedy
    assert disk.read_bytes() == before


async def test_an_xfs_that_is_too_small_is_refused_before_its_program_is(disk: Path) -> None:
    with pytest.raises(InvalidError, match="300 MiB"):
        await make_filesystem(disk, "xfs", "x")

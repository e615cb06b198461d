"""Real images through the whole driver: unpacked, written to real disks, damaged, interrupted, raced for, out of space."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from primordia.drivers.images_local.discard import remove_tree
from primordia.drivers.images_local.hostile import CorruptImageError, HostileImageError, Limits
from primordia.drivers.images_local.local import Built, LocalImages
from primordia.kit.errors import CapacityError, NotFoundError, PermanentError
from primordia.ports.images import RootImage
from primordia.testing.images import Layer, Layout, busybox_root, mount, small_layer, unmount
from primordia.wire.resources import ImageConfig, ImageSpec, OciSource

DEADLINE_S = 120


def quiet(_: str) -> None:
    """No progress wanted."""


def debugfs(disk: Path, request: str) -> str:
    return subprocess.run(["debugfs", "-R", request, str(disk)], capture_output=True, text=True, check=True).stdout


def assert_sound(disk: Path) -> None:
    checked = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def leftovers(cache: Path) -> list[Path]:
    return [*(cache / "work").iterdir(), *(cache / "images").iterdir(), *(cache / "index").iterdir()]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def images(cache: Path) -> LocalImages:
    return LocalImages(cache)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def spec_of(layout: Layout, *layers: Layer, tag: str = "v1", **config: Any) -> ImageSpec:
    return ImageSpec(oci=OciSource(reference=layout.tag(tag, layout.manifest(layers, config))))


# ---------------------------------------------------------------- what comes out


async def test_a_root_disk_holds_what_the_layers_say(images: LocalImages, layout: Layout) -> None:
    upper = Layer().add("etc/motd", b"goodbye\n").add("bin/.wh.tool2").symlink("etc/resolv.conf", "../run/resolv.conf")
    root = await images.ensure(spec_of(layout, small_layer(), upper, Entrypoint=["/bin/tool"]), quiet)
    assert_sound(root.path)
    assert root.path.stat().st_mode & 0o777 == 0o444
    assert debugfs(root.path, "cat /etc/motd") == "goodbye\n"
    tool = debugfs(root.path, "stat /bin/tool")
    assert "Mode:  04755" in tool
    assert "User:     7   Group:     8" in tool
    assert "symlink" in debugfs(root.path, "stat /etc/link")
    assert "tool2" not in debugfs(root.path, "ls /bin")
    for folder in ("proc", "sys", "dev", "run", "tmp", "etc"):
        assert "Type: directory" in debugfs(root.path, f"stat /{folder}")
    for file in ("hosts", "hostname", "resolv.conf", "machine-id"):
        assert "Type: regular" in debugfs(root.path, f"stat /etc/{file}")
    assert "has_journal" not in debugfs(root.path, "features")
    assert root.config.entrypoint == ("/bin/tool",)
    assert root.size_bytes < 2 * 1024 * 1024


async def test_the_same_content_is_the_same_digest_in_every_cache(tmp_path: Path, layout: Layout) -> None:
    spec = spec_of(layout, small_layer())
    roots = [await LocalImages(tmp_path / name).ensure(spec, quiet) for name in ("a", "b")]
    assert roots[0].digest == roots[1].digest
    changed = await LocalImages(tmp_path / "a").ensure(spec_of(layout, small_layer().add("new"), tag="v2"), quiet)
    assert changed.digest != roots[0].digest


async def test_an_equal_tree_by_another_name_is_not_kept_twice(images: LocalImages, layout: Layout) -> None:
    one = await images.ensure(spec_of(layout, Layer().add("a", b"1").add("b", b"2")), quiet)
    two = await images.ensure(spec_of(layout, Layer().add("a", b"1"), Layer().add("b", b"2"), tag="v2"), quiet)
    assert one.path == two.path
    assert len(await images.list()) == 1


async def test_a_scratch_disk_is_sound_and_without_a_journal(images: LocalImages, tmp_path: Path) -> None:
    disk = tmp_path / "scratch"
    await images.scratch(disk, 4 * 1024**3)
    assert_sound(disk)
    assert "has_journal" not in debugfs(disk, "features")
    assert disk.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PermanentError, match="too few"):
        await images.scratch(disk, 1024)


async def test_a_scratch_disk_where_nothing_can_be_written(images: LocalImages, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="cannot be written"):
        await images.scratch(tmp_path / "nowhere" / "scratch", 64 * 1024**2)


async def test_the_busybox_root_is_small_and_has_a_shell(cache: Path) -> None:
    root = await busybox_root(cache)
    assert_sound(root.path)
    assert root.size_bytes < 4 * 1024 * 1024
    assert 'Fast link dest: "/bin/busybox"' in debugfs(root.path, "stat /bin/sh")
    assert "root:x:0:0" in debugfs(root.path, "cat /etc/passwd")
    assert await busybox_root(cache) == root


# ---------------------------------------------------------------- hostile images, all the way

HOSTILE: dict[str, tuple[tuple[Layer, ...], str]] = {
    "climbs": ((Layer().add("../../../../../../../../{canary}", b"evil"),), "'..'"),
    "through a link": ((Layer().symlink("a", "{folder}"), Layer().add("a/canary", b"evil")), "symbolic link"),
    "hard link out": ((Layer().hardlink("a", "../../../../../../{canary}"),), "'..'"),
    "a device": ((Layer().add("sda", kind=b"4", devmajor=8, devminor=0),), "device"),
    "etc is a link": ((Layer().symlink("etc", "{folder}"),), "/etc is not a folder"),
}


@pytest.mark.parametrize(("layers", "word"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_image_changes_nothing(
    layers: tuple[Layer, ...], word: str, images: LocalImages, cache: Path, layout: Layout, tmp_path: Path
) -> None:
    folder = tmp_path / "outside"
    folder.mkdir()
    canary = folder / "canary"
    canary.write_text("untouched")
    for info, _ in (entry for layer in layers for entry in layer.entries):
        info.name = info.name.format(canary=canary, folder=folder)
        info.linkname = info.linkname.format(canary=canary, folder=folder)
    with pytest.raises(PermanentError, match=word):
        await images.ensure(spec_of(layout, *layers), quiet)
    assert canary.read_text() == "untouched"
    assert list(folder.iterdir()) == [canary]
    assert canary.stat().st_nlink == 1
    assert leftovers(cache) == []


async def test_a_bomb_is_refused_before_it_is_unpacked(cache: Path, layout: Layout) -> None:
    images = LocalImages(cache, limits=Limits(ratio_floor_bytes=1_000_000))
    with pytest.raises(HostileImageError.__base__, match="bombs") as refused:  # type: ignore[arg-type]
        await images.ensure(spec_of(layout, Layer().add("zeros", bytes(30_000_000))), quiet)
    assert getattr(refused.value, "reason", "") == "HostileImage"
    assert leftovers(cache) == []


async def test_an_image_too_large_is_refused(cache: Path, layout: Layout) -> None:
    images = LocalImages(cache, limits=Limits(unpacked_bytes=100_000))
    with pytest.raises(CapacityError, match="larger than"):
        await images.ensure(spec_of(layout, Layer().add("big", os.urandom(200_000))), quiet)
    assert leftovers(cache) == []


async def test_a_corrupt_layer_is_refused(images: LocalImages, cache: Path, layout: Layout) -> None:
    spec = spec_of(layout, small_layer())
    blob = max((layout.folder / "blobs/sha256").iterdir(), key=lambda path: path.read_bytes()[:2] == b"\x1f\x8b")
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0xFF
    blob.write_bytes(data)
    with pytest.raises(PermanentError, match="digest") as refused:
        await images.ensure(spec, quiet)
    assert refused.value.reason == CorruptImageError.reason
    assert leftovers(cache) == []


# ---------------------------------------------------------------- damage in the cache


def cut_short(disk: Path) -> None:
    os.truncate(disk, disk.stat().st_size - 4096)


def overwrite_head(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(64))


def remove_record(disk: Path) -> None:
    (disk.parent / "image.json").write_bytes(b"{")


@pytest.mark.parametrize("damage", [cut_short, overwrite_head, remove_record])
async def test_a_damaged_root_is_put_aside_and_made_again(
    damage: Callable[[Path], None], images: LocalImages, cache: Path, layout: Layout
) -> None:
    spec = spec_of(layout, small_layer())
    root = await images.ensure(spec, quiet)
    damage(root.path)
    assert await images.find(root.digest) is None
    assert len(list((cache / "quarantine").iterdir())) == 1
    again = await images.ensure(spec, quiet)
    assert again.digest == root.digest
    assert_sound(again.path)


async def test_damage_deep_inside_is_found_by_the_full_check(images: LocalImages, layout: Layout) -> None:
    spec = spec_of(layout, Layer().add("data", os.urandom(3_000_000)))
    root = await images.ensure(spec, quiet)
    assert await images.verify(root.digest)
    with root.path.open("r+b") as file:
        file.seek(root.path.stat().st_size // 2)
        file.write(os.urandom(16))
    assert await images.find(root.digest) is not None, "the cheap check reads only the head"
    assert not await images.verify(root.digest)
    assert await images.find(root.digest) is None
    assert await images.verify((await images.ensure(spec, quiet)).digest)
    with pytest.raises(NotFoundError):
        await images.verify("sha256:" + "0" * 64)


# ---------------------------------------------------------------- interruption, races, a full disk


async def test_a_cancelled_build_leaves_nothing(images: LocalImages, cache: Path) -> None:
    started = asyncio.Event()

    async def make(work: Path) -> Built:
        (work / "tree").mkdir()
        (work / "tree/half").write_text("made")
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(images.build("key", make, quiet))
    async with asyncio.timeout(DEADLINE_S):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert leftovers(cache) == []


_BUILDER = """
import asyncio, sys
from pathlib import Path
from primordia.drivers.images_local.local import Built, LocalImages
from primordia.wire.resources import ImageConfig

async def make(work):
    (work / "tree").mkdir()
    (work / "tree" / "file").write_text("x")
    print("making", flush=True)
    if sys.argv[2] == "hang":
        await asyncio.sleep(3600)
    await asyncio.sleep(0.5)
    return Built(work / "tree", ImageConfig(), "test")

root = asyncio.run(LocalImages(Path(sys.argv[1])).build("key", make, lambda word: print(word, flush=True)))
print(root.digest, flush=True)
"""


@contextlib.asynccontextmanager
async def builder(cache: Path, how: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that builds the source `key`; it has ended when the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _BUILDER, str(cache), how, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def first_word(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        return (await process.stdout.readline()).decode().strip()


async def make_quickly(work: Path) -> Built:
    (work / "tree").mkdir()
    return Built(work / "tree", ImageConfig(), "test")


async def test_what_a_killed_builder_left_is_reaped_and_its_lock_is_free(cache: Path) -> None:
    async with builder(cache, "hang") as process:
        assert await first_word(process) == "making"
        (work,) = (cache / "work").iterdir()
        other = LocalImages(cache)
        await other.build("other", make_quickly, quiet)
        assert work.exists(), "its maker lives"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    fresh = LocalImages(cache)
    async with asyncio.timeout(DEADLINE_S):
        assert (await fresh.build("key", make_quickly, quiet)).path.exists()
    assert not work.exists()
    assert list((cache / "work").iterdir()) == []


async def test_nothing_is_deleted_through_what_a_dead_build_left_mounted(tmp_path: Path) -> None:
    elsewhere, work = tmp_path / "elsewhere", tmp_path / "work"
    (elsewhere / "sub").mkdir(parents=True)
    (elsewhere / "canary").write_text("untouched")
    (work / "tree/dev").mkdir(parents=True)
    mount("bind", work / "tree/dev", source=elsewhere)
    mount("tmpfs", work / "tree/dev/sub")
    remove_tree(work)
    assert not work.exists()
    assert (elsewhere / "canary").read_text() == "untouched"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


async def test_two_processes_make_a_source_once(cache: Path) -> None:
    async with builder(cache, "make") as one, builder(cache, "make") as two:
        async with asyncio.timeout(DEADLINE_S):
            outputs = [(await process.communicate())[0].decode() for process in (one, two)]
    assert sum("making" in output for output in outputs) == 1
    assert outputs[0].split()[-1] == outputs[1].split()[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount("tmpfs", place, options="size=2m")
    yield place
    unmount(place)


@pytest.mark.parametrize("content_bytes", [1_500_000, 4_000_000], ids=["writing the disk", "unpacking"])
async def test_a_full_disk_is_named_and_cleaned(content_bytes: int, small_disk: Path, layout: Layout) -> None:
    images = LocalImages(small_disk / "cache")
    with pytest.raises(CapacityError, match=r"full.*prune") as refused:
        await images.ensure(spec_of(layout, Layer().add("big", os.urandom(content_bytes))), quiet)
    assert refused.value.reason == "DiskFull"
    assert leftovers(small_disk / "cache") == []
    assert (await images.ensure(spec_of(layout, small_layer(), tag="v2"), quiet)).path.exists()


async def test_no_room_for_a_scratch_disk(small_disk: Path, images: LocalImages) -> None:
    filler = small_disk / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(4 * 1024**2))
    with pytest.raises(CapacityError):
        await images.scratch(small_disk / "scratch", 64 * 1024**2)
    assert list(small_disk.iterdir()) == [filler]


async def test_removal_frees_real_blocks(images: LocalImages, cache: Path, layout: Layout) -> None:
    root: RootImage = await images.ensure(spec_of(layout, Layer().add("big", os.urandom(1_000_000))), quiet)
    assert root.size_bytes > 1_000_000
    assert await images.remove(root.digest) == root.size_bytes
    assert leftovers(cache) == []

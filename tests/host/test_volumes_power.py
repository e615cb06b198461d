"""Power cuts, for real: the pool's medium is copied while it is mounted, and the pool goes on from the copy.

Killing a process would prove nothing: the page cache survives it. What was acknowledged must be in the copy, and what was
not flushed must be missing from it, or this test would not see a build that forgets its fsync.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from primordia.drivers.volumes_btrfs import disk, ioctl
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.node.volumes.disks import Disks
from primordia.testing.volumes import BLOCK, RealPool, carry, content, put, real_pool, stream

SIZE = 1 << 20


def block(letter: bytes) -> bytes:
    return letter * BLOCK


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[RealPool]:
    async with real_pool(tmp_path / "pool") as made:
        yield made


@pytest.fixture
async def owner(tmp_path: Path) -> MemoryVolumes:
    """An owner on another node, with three snapshots of volume `a`."""
    (tmp_path / "owner").mkdir()
    volumes = MemoryVolumes(tmp_path / "owner")
    await volumes.create("a", SIZE)
    for number in (1, 2, 3):
        await put(await volumes.disk("a"), number * 5 * BLOCK, bytes([number]) * BLOCK)
        await volumes.cut("a", epoch=1)
    return volumes


async def acknowledge(pool: RealPool, owner: MemoryVolumes, number: int) -> None:
    """The replica takes a delta, as far as its acknowledgement."""
    delta = await owner.changes("a", number, since=number - 1)
    assert await pool.volumes.accept(delta, stream(await owner.read("a", number, delta.ranges)))


async def test_what_was_acknowledged_is_there_and_what_was_not_flushed_is_gone(pool: RealPool, owner: MemoryVolumes) -> None:
    await pool.volumes.create("own", SIZE)
    await put(await pool.volumes.disk("own"), 0, b"s" * BLOCK, flush=False)
    snapshot = await pool.volumes.cut("own", epoch=1)
    await carry(owner, pool.volumes, "a", 1)
    disk = await pool.volumes.disk("own")
    await put(disk, BLOCK, b"f" * BLOCK)
    await put(disk, 9 * BLOCK, b"u" * BLOCK, flush=False)
    await acknowledge(pool, owner, 2)

    await pool.cut_power()

    seen = (await pool.volumes.disk("own")).read_bytes()
    assert seen[: 2 * BLOCK] == b"s" * BLOCK + b"f" * BLOCK
    assert seen[2 * BLOCK :] == bytes(SIZE - 2 * BLOCK), "the power cut lost nothing: it was none"
    assert await pool.volumes.snapshots("own") == (snapshot,)
    assert await pool.volumes.verify("own", 1) == ()
    info = await pool.volumes.find("a")
    assert info is not None
    assert (info.newest, info.pending) == (1, 2)
    published = await pool.volumes.settle("a")
    assert published is not None
    assert published.number == 2
    assert await content(pool.volumes, "a", 2) == await content(owner, "a", 2)
    await carry(owner, pool.volumes, "a", 3, since=2)


def photographer(pool: RealPool) -> tuple[list[Path], Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Pictures of the pool as a power cut would leave it, and what has one taken before each call of a function."""
    pictures: list[Path] = []

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            pictures.append(pool.picture(str(len(pictures))))
            return real(*args, **kwargs)

        return call

    return pictures, watched


async def test_a_build_without_fsync_is_seen(pool: RealPool, owner: MemoryVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    await carry(owner, pool.volumes, "a", 1)
    with monkeypatch.context() as mutant:
        mutant.setattr(os, "fsync", lambda _: None)
        await acknowledge(pool, owner, 2)
    await pool.cut_power()
    info = await pool.volumes.find("a")
    assert info is not None
    assert (info.newest, info.pending) == (1, 0), "a lost acknowledgement would go unnoticed"
    await carry(owner, pool.volumes, "a", 2, since=1)


async def test_an_owner_whose_power_was_cut_lets_its_disk_go_and_loses_nothing_that_was_flushed(
    pool: RealPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment of a second cut, while that goes on: what was flushed is in a snapshot, or put aside as a tail."""
    await pool.volumes.create("own", SIZE)
    await put(await pool.volumes.disk("own", epoch=2), 0, block(b"1"))
    await pool.volumes.cut("own", epoch=2)
    await put(await pool.volumes.disk("own"), BLOCK, block(b"f"))
    await put(await pool.volumes.disk("own"), 9 * BLOCK, block(b"u"), flush=False)
    await pool.cut_power()
    flushed = block(b"1") + block(b"f") + bytes(SIZE - 2 * BLOCK)
    assert (await pool.volumes.disk("own")).read_bytes() == flushed
    pictures, watched = photographer(pool)
    with monkeypatch.context() as watch:
        watch.setattr(os, "fsync", watched(os.fsync))
        watch.setattr(Path, "rename", watched(Path.rename))
        watch.setattr(Path, "unlink", watched(Path.unlink))
        watch.setattr(ioctl, "snapshot", watched(ioctl.snapshot))
        await disks_of(pool, tmp_path).hand_back("own", 2)
    info = await pool.volumes.find("own")
    assert info is not None
    assert (info.written_here, info.newest, info.tails) == (False, 1, (2,))
    pictures.append(pool.picture("end"))
    assert len(pictures) > 10

    for step, picture in enumerate(pictures):
        await pool.become(picture)
        await disks_of(pool, tmp_path).hand_back("own", 2)
        info = await pool.volumes.find("own")
        assert info is not None
        assert not info.written_here
        numbers = [each.number for each in await pool.volumes.snapshots("own")]
        assert (numbers, info.tails) in (([1, 2], ()), ([1], (2,))), step
        await pool.volumes.clone("own", "seen", number=2, tail=bool(info.tails))
        assert (await pool.volumes.disk("seen")).read_bytes() == flushed, step


def disks_of(pool: RealPool, folder: Path) -> Disks:
    unused: Any = None
    return Disks(pool.volumes, unused, "n1", make_filesystem=unused, grow_guest=unused, intents=folder / "intents")


async def test_a_power_cut_between_any_two_steps(pool: RealPool, owner: MemoryVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    await pool.volumes.create("own", SIZE)
    await put(await pool.volumes.disk("own"), 0, b"1" * BLOCK)
    await pool.volumes.cut("own", epoch=1)
    old = await content(pool.volumes, "own", 1)
    await put(await pool.volumes.disk("own"), 0, b"2" * BLOCK)
    await carry(owner, pool.volumes, "a", 1)
    pictures, watched = photographer(pool)
    with monkeypatch.context() as watch:
        watch.setattr(os, "fsync", watched(os.fsync))
        watch.setattr(Path, "rename", watched(Path.rename))
        watch.setattr(ioctl, "snapshot", watched(ioctl.snapshot))
        watch.setattr(Path, "unlink", watched(Path.unlink))
        watch.setattr(disk, "write_piece", watched(disk.write_piece))
        await pool.volumes.cut("own", epoch=1)
        was_cut = len(pictures)
        await acknowledge(pool, owner, 2)
        accepted = len(pictures)
        await pool.volumes.settle("a")
        settled = len(pictures)
        await pool.volumes.restore("own", 1, epoch=2)
        pictures.append(pool.picture("end"))
    assert len(pictures) > 20

    for step, picture in enumerate(pictures):
        await pool.become(picture)
        numbers = [each.number for each in await pool.volumes.snapshots("own")]
        assert numbers in ([[1], [1, 2]] if step < was_cut else [[1, 2]] if step < settled else [[1, 2], [1, 2, 3]])
        for number in numbers:
            assert await pool.volumes.verify("own", number) == ()
        seen = (await pool.volumes.disk("own")).read_bytes()
        assert seen == (old if 3 in numbers else b"2" * BLOCK + old[BLOCK:])
        held = await pool.volumes.find("a")
        assert held is not None
        assert max(held.newest, held.pending) == 2 or step < accepted
        await pool.volumes.settle("a")
        for manifest in await pool.volumes.snapshots("a"):
            assert await content(pool.volumes, "a", manifest.number) == await content(owner, "a", manifest.number)
    assert numbers == [1, 2, 3]


async def test_a_power_cut_while_a_large_delta_is_laid(pool: RealPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are the journal's own: whatever the moment, what was acknowledged is whole, and so is the snapshot before."""
    (tmp_path / "owner").mkdir()
    owner = MemoryVolumes(tmp_path / "owner")
    await owner.create("a", 8 * SIZE)
    for number in (1, 2):
        await put(await owner.disk("a"), number * BLOCK, os.urandom(6 * SIZE + 100))
        await owner.cut("a", epoch=1)
    pictures, watched = photographer(pool)
    await carry(owner, pool.volumes, "a", 1)
    with monkeypatch.context() as watch:
        for what, name in ((os, "fsync"), (Path, "rename"), (Path, "unlink"), (ioctl, "snapshot")):
            watch.setattr(what, name, watched(getattr(what, name)))
        watch.setattr(disk, "share", watched(disk.share))
        await acknowledge(pool, owner, 2)
        accepted = len(pictures)
        await pool.volumes.settle("a")
        pictures.append(pool.picture("end"))
    assert len(pictures) - accepted > 6 + 4, "the pieces are shared"

    for step, picture in enumerate(pictures):
        await pool.become(picture)
        held = await pool.volumes.find("a")
        assert held is not None
        assert max(held.newest, held.pending) == 2 or step < accepted
        await pool.volumes.settle("a")
        for manifest in await pool.volumes.snapshots("a"):
            assert await pool.volumes.verify("a", manifest.number) == ()
            assert await content(pool.volumes, "a", manifest.number) == await content(owner, "a", manifest.number)

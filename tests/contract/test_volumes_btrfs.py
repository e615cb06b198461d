"""The btrfs body keeps the volumes contract, on a real pool in a loop file."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from volumes_contract import SIZE, Corrupt, VolumesContract, broken_off_after

from primordia.domain.ranges import total
from primordia.drivers.volumes_btrfs import disk, ioctl
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.drivers.volumes_btrfs.journal import JournalWriter
from primordia.kit.errors import ConflictError, NotFoundError, TemporaryError
from primordia.ports.volumes import Partial, Piece
from primordia.testing.volumes import RealPool, carry, content, put, real_pool, stream


class TestBtrfsVolumes(VolumesContract):
    @pytest.fixture
    async def volumes(self, tmp_path: Path) -> AsyncIterator[BtrfsVolumes]:
        async with real_pool(tmp_path / "one") as pool:
            yield pool.volumes

    @pytest.fixture
    async def second(self, tmp_path: Path) -> AsyncIterator[RealPool]:
        async with real_pool(tmp_path / "two") as pool:
            yield pool

    @pytest.fixture
    def other(self, second: RealPool) -> BtrfsVolumes:
        return second.volumes

    @pytest.fixture
    def corrupt(self, second: RealPool) -> Corrupt:
        def flip(volume: str, number: int, offset: int) -> None:
            snapshot = second.point / "volumes" / volume / "snapshots" / f"{number:012d}"
            ioctl.set_readonly(snapshot, False)
            descriptor = os.open(snapshot / "disk", os.O_RDWR)
            try:
                (byte,) = os.pread(descriptor, 1, offset)
                os.pwrite(descriptor, bytes([byte ^ 1]), offset)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            ioctl.set_readonly(snapshot, True)

        return flip

    async def test_where_writing_fails_nothing_of_the_delta_is_kept(
        self, volumes: BtrfsVolumes, other: BtrfsVolumes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is found out when the next part has come, or never comes."""
        await volumes.create("a", 16 * SIZE)
        await put(await volumes.disk("a"), 0, os.urandom(12 * SIZE))
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 1)
        pieces = await volumes.read("a", 1, delta.ranges)
        real = JournalWriter.append

        def fails(writer: JournalWriter, piece: Piece) -> None:
            if piece.range.offset >= 5 * SIZE:
                raise OSError(errno.EROFS, "read-only")
            real(writer, piece)

        for count in (9, 12):
            with monkeypatch.context() as broken:
                broken.setattr(JournalWriter, "append", fails)
                with pytest.raises((TemporaryError, ConnectionResetError)):
                    await other.accept(delta, broken_off_after(pieces, count))
            assert await other.partial("a") is None
            assert await other.find("a") is None
        await carry(volumes, other, "a", 1)
        assert await other.verify("a", 1) == ()

    async def test_who_is_cancelled_while_it_is_written_goes_on(self, volumes: BtrfsVolumes, other: BtrfsVolumes) -> None:
        await volumes.create("a", 24 * SIZE)
        await put(await volumes.disk("a"), 0, os.urandom(22 * SIZE))
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 1)
        left, done = list(await volumes.read("a", 1, delta.ranges)), 0
        for count in (1, 5, 9):
            asked = asyncio.Event()
            work = asyncio.ensure_future(other.accept(delta, stalled(left[:count], asked), begin=done))
            await asked.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            left, done = left[count:], done + total(each.range for each in left[:count])
            assert await other.partial("a") == Partial(delta, done)
        assert await other.accept(delta, stream(left), begin=done)
        await other.settle("a")
        assert await content(other, "a", 1) == (await volumes.disk("a")).read_bytes()

    async def test_what_is_refused_at_its_end_is_not_kept_where_nobody_waits(
        self, volumes: BtrfsVolumes, other: BtrfsVolumes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its writer is closed by then."""
        await volumes.create("a", SIZE)
        await put(await volumes.disk("a"), 0, b"1")
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 1)
        finishing, may_go_on = asyncio.Event(), threading.Event()
        loop, finish, check = asyncio.get_running_loop(), JournalWriter.finish, other._check_not_ended

        def waits(writer: JournalWriter) -> None:
            loop.call_soon_threadsafe(finishing.set)
            assert may_go_on.wait(60)
            finish(writer)

        def refuses(volume: str, ended: int) -> None:
            if may_go_on.is_set():
                raise ConflictError("It is of another epoch by now.")
            check(volume, ended)

        monkeypatch.setattr(JournalWriter, "finish", waits)
        monkeypatch.setattr(other, "_check_not_ended", refuses)
        work = asyncio.ensure_future(other.accept(delta, stream(await volumes.read("a", 1, delta.ranges))))
        await finishing.wait()
        work.cancel()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await other.partial("a") is None
        assert await other.find("a") is None

    async def test_a_snapshot_that_is_deleted_while_it_is_verified_is_not_there(
        self, volumes: BtrfsVolumes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await volumes.create("a", SIZE)
        await volumes.cut("a", epoch=1)
        await put(await volumes.disk("a"), 0, b"2")
        await volumes.cut("a", epoch=1)
        real = disk.opened

        def late(path: Path) -> Any:
            volumes._get("a").remove(1)
            return real(path)

        monkeypatch.setattr(disk, "opened", late)
        with pytest.raises(NotFoundError):
            await volumes.verify("a", 1)

    async def test_whoever_asks_a_closed_pool_is_refused_in_words(self, volumes: BtrfsVolumes) -> None:
        await volumes.create("a", SIZE)
        await volumes.close()
        with pytest.raises(TemporaryError, match="The pool is closed"):
            await volumes.cut("a", epoch=1)

    async def test_what_is_published_is_told_while_the_next_is_built(
        self, volumes: BtrfsVolumes, other: BtrfsVolumes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An owner asks a holder what it has: that must not wait for what has long been acknowledged."""
        await volumes.create("a", SIZE)
        await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        await put(await volumes.disk("a"), 0, b"2")
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 2, since=1)
        assert await other.accept(delta, stream(await volumes.read("a", 2, delta.ranges)))
        told, may_go_on = threading.Event(), threading.Event()
        real = disk.hash_chunks

        def slow(*args: Any) -> None:
            told.set()
            assert may_go_on.wait(30)
            real(*args)

        monkeypatch.setattr(disk, "hash_chunks", slow)
        settling = asyncio.ensure_future(other.settle("a"))
        try:
            await asyncio.to_thread(told.wait, 30)
            assert [each.number for each in await other.snapshots("a")] == [1]
        finally:
            may_go_on.set()
        assert await settling == delta.manifest
        assert [each.number for each in await other.snapshots("a")] == [1, 2]


async def stalled(pieces: Sequence[Piece], asked: asyncio.Event) -> AsyncIterator[Piece]:
    """A connection that says nothing after these."""
    for each in pieces:
        yield each
    asked.set()
    await asyncio.Event().wait()

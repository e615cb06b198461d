"""Random lives of volumes against a trivial model: every published snapshot is, bit for bit, what the model says it is.

The model knows a disk as bytes, and a snapshot as the bytes it had. On the other side are an owner's pool, and a holder's that
gets deltas: whole ones from any base that the rules allow, ones that break off and go on, ones from a base that it has not.
Bits flip in snapshots, which an audit finds and puts aside; daemons die, and on btrfs the power fails. Hypothesis finds the
shortest life that goes wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primordia.domain.ranges import Range, total
from primordia.domain.snapshots import CHUNK_BYTES, Manifest
from primordia.drivers.volumes_btrfs import ioctl
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.errors import ConflictError
from primordia.ports.volumes import Piece, Volumes
from primordia.testing.volumes import BLOCK, RealPool, content, discard, real_pool, stream, write

CHUNKS = 6
LARGEST = 2 * CHUNKS

Op = tuple[Any, ...]
disks = st.sampled_from([0, 0, 0, 0, 1, 2])
small = st.integers(0, 7)
blocks = st.integers(0, LARGEST * CHUNK_BYTES // BLOCK)
writes = st.tuples(
    st.just("write"), disks, st.integers(0, CHUNKS * CHUNK_BYTES), st.integers(1, 3 * BLOCK), small, st.booleans()
)
steps = st.tuples(st.just("step"), disks, blocks, small)
"""A block written, and a cut: what most lives consist of."""
sends = st.tuples(st.just("send"), disks, st.sampled_from([0, 0, 1, 2]), st.booleans())
OPS = st.one_of(
    *(writes, steps, steps, steps, sends, sends),
    st.tuples(st.just("discard"), disks, blocks, st.integers(1, 40)),
    st.tuples(st.just("grow"), disks, st.integers(0, 2)),
    st.tuples(st.just("cut"), disks, st.sampled_from(["", "", "a", "b"]), st.booleans()),
    st.tuples(st.just("remove"), disks, small),
    st.tuples(st.just("remove"), disks, small),
    st.tuples(st.just("restore"), disks, small),
    st.tuples(st.just("clone"), disks, small),
    st.tuples(st.just("break off"), disks, small),
    st.tuples(st.just("misfit"), disks, small),
    st.tuples(st.just("flip"), disks, small, st.booleans(), st.integers(0, CHUNKS * CHUNK_BYTES - 1)),
    st.tuples(st.just("crash"), disks, st.booleans()),
)
LIVES = st.lists(OPS, min_size=20, max_size=60)


@dataclass
class Disk:
    """One volume as it should be: the disk, the owner's snapshots by number, the holder's."""

    live: bytearray
    snapshots: dict[int, bytes] = field(default_factory=dict)
    held: dict[int, bytes] = field(default_factory=dict)
    removed: dict[int, bytes] = field(default_factory=dict)
    epoch: int = 1
    highest: int = 0


class Site:
    """A pool that can be damaged and can fail."""

    volumes: Volumes

    def flip(self, volume: str, number: int, offset: int) -> None:
        """Flip a bit of a snapshot."""
        raise NotImplementedError

    async def fail(self, power: bool) -> None:
        """The process dies, or the power fails; then all goes on."""


class MemorySite(Site):
    """A pool in memory forgets what its process forgets, so it does not fail."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.volumes: MemoryVolumes = MemoryVolumes(folder)

    def flip(self, volume: str, number: int, offset: int) -> None:
        self.volumes.corrupt(volume, number, offset)


class RealSite(Site):
    """A pool on a loop device."""

    def __init__(self, pool: RealPool) -> None:
        self._pool = pool

    @property
    def volumes(self) -> BtrfsVolumes:  # type: ignore[override]
        return self._pool.volumes

    def flip(self, volume: str, number: int, offset: int) -> None:
        snapshot = self._pool.point / "volumes" / volume / "snapshots" / f"{number:012d}"
        ioctl.set_readonly(snapshot, False)
        descriptor = os.open(snapshot / "disk", os.O_RDWR)
        try:
            (byte,) = os.pread(descriptor, 1, offset)
            os.pwrite(descriptor, bytes([byte ^ 1]), offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        ioctl.set_readonly(snapshot, True)

    async def fail(self, power: bool) -> None:
        if power:
            await self._pool.cut_power()
            return
        await self._pool.volumes.close()
        self._pool.volumes = await BtrfsVolumes.open(self._pool.point)


class Life:
    """Carries operations out on both sides. Whatever an operation asks for that there is not, it lets be."""

    def __init__(self, owner: Site, holder: Site, prefix: str) -> None:
        self._owner = owner
        self._holder = holder
        self._prefix = prefix
        self.disks: dict[str, Disk] = {}
        self._power = True

    async def begin(self) -> None:
        await self._owner.volumes.create(f"{self._prefix}-0", CHUNKS * CHUNK_BYTES)
        self.disks[f"{self._prefix}-0"] = Disk(bytearray(CHUNKS * CHUNK_BYTES))

    async def end(self) -> None:
        for site in (self._owner, self._holder):
            for each in await site.volumes.list():
                if each.name.startswith(self._prefix):
                    await site.volumes.destroy(each.name)

    async def do(self, op: Op) -> None:
        """One operation, and a look at the volume that it was about."""
        word, which, *rest = op
        name = sorted(self.disks)[int(which) % len(self.disks)]
        act: Callable[..., Awaitable[None]] = getattr(self, f"_{word.replace(' ', '_')}")
        await act(name, self.disks[name], *rest)
        await self.check(name)

    async def check(self, name: str) -> None:
        """What is published on both sides is what the model has, and says of itself what it is."""
        disk = self.disks[name]
        for site, expected in ((self._owner, disk.snapshots), (self._holder, disk.held)):
            found = await site.volumes.snapshots(name) if await site.volumes.find(name) is not None else ()
            assert [each.number for each in found] == sorted(expected)
            for manifest in found:
                assert await content(site.volumes, name, manifest.number) == expected[manifest.number]
                assert manifest.size_bytes == len(expected[manifest.number])
        assert (await self._owner.volumes.disk(name)).read_bytes() == disk.live

    async def audit(self) -> None:
        """Nothing that is published is damaged."""
        for name, disk in self.disks.items():
            for site, expected in ((self._owner, disk.snapshots), (self._holder, disk.held)):
                for number in expected:
                    assert await site.volumes.verify(name, number) == ()

    # ------------------------------------------------------------ the disk

    async def _write(self, name: str, disk: Disk, offset: int, length: int, seed: int, flush: bool) -> None:
        offset = min(offset, len(disk.live) - length)
        data = random.Random(seed).randbytes(length) if seed else bytes(length)
        write(await self._owner.volumes.disk(name), offset, data, flush=flush)
        disk.live[offset : offset + length] = data

    async def _step(self, name: str, disk: Disk, block: int, seed: int) -> None:
        await self._write(name, disk, block * BLOCK, BLOCK, seed + 1, False)
        await self._cut(name, disk, "", False)

    async def _discard(self, name: str, disk: Disk, block: int, count: int) -> None:
        offset = block * BLOCK % len(disk.live)
        length = min(count * BLOCK, len(disk.live) - offset)
        discard(await self._owner.volumes.disk(name), offset, length)
        disk.live[offset : offset + length] = bytes(length)

    async def _grow(self, name: str, disk: Disk, chunks: int) -> None:
        size = min(len(disk.live) + chunks * CHUNK_BYTES, LARGEST * CHUNK_BYTES)
        await self._owner.volumes.grow(name, max(size, len(disk.live)))
        disk.live.extend(bytes(max(0, size - len(disk.live))))

    # ------------------------------------------------------------ snapshots

    async def _cut(self, name: str, disk: Disk, checkpoint: str, always: bool) -> None:
        before = max(disk.snapshots, default=0)
        made = await self._owner.volumes.cut(name, epoch=disk.epoch, checkpoint=checkpoint, always=always)
        if made.number == before and not (checkpoint or always):
            assert disk.snapshots[before] == disk.live  # nothing had changed
            return
        assert made.number > disk.highest
        assert made.number == 1 or not before or made.parent
        disk.highest = made.number
        disk.snapshots[made.number] = bytes(disk.live)

    async def _remove(self, name: str, disk: Disk, which: int) -> None:
        number = _pick(sorted(disk.snapshots)[:-1], which)
        if number:
            await self._owner.volumes.remove(name, number)
            disk.removed[number] = disk.snapshots.pop(number)

    async def _restore(self, name: str, disk: Disk, which: int) -> None:
        number = _pick(sorted(disk.snapshots), which)
        if not number:
            return
        disk.epoch += 1
        made = await self._owner.volumes.restore(name, number, epoch=disk.epoch)
        assert (made.number > disk.highest, made.epoch) == (True, disk.epoch)
        disk.highest = made.number
        disk.live = bytearray(disk.snapshots[number])
        disk.snapshots[made.number] = bytes(disk.live)
        with pytest.raises(ConflictError):
            await self._owner.volumes.cut(name, epoch=disk.epoch - 1)

    async def _clone(self, name: str, disk: Disk, which: int) -> None:
        if len(self.disks) >= 3:
            return
        number = _pick([0, *sorted(disk.snapshots)], which)
        into = f"{self._prefix}-{len(self.disks)}"
        await self._owner.volumes.clone(name, into, number=number)
        self.disks[into] = Disk(bytearray(disk.snapshots[number] if number else disk.live))
        await self.check(into)

    # ------------------------------------------------------------ deltas

    async def _route(self, name: str, disk: Disk, which: int) -> tuple[int, int] | None:
        """A snapshot that the holder may get, and what of the owner's it has in common; the holder forgets where nothing is.

        An epoch is over for a holder as soon as it was offered anything of a later one, though that broke off.
        """
        newest_held = max(disk.held, default=0)
        there = await self._holder.volumes.find(name)
        seen = there.epoch if there is not None else 0
        published = await self._owner.volumes.snapshots(name)
        offered = [each.number for each in published if each.number > newest_held and each.epoch >= seen]
        target = _pick(sorted(offered, reverse=True), which)
        if not target:
            return None
        if not disk.held:
            return target, 0
        root = (await self._holder.volumes.snapshots(name))[-1].root
        common = [each.number for each in await self._owner.volumes.snapshots(name) if each.root == root]
        base = max((each for each in common if each < target), default=0)
        if not base:
            await self._holder.volumes.destroy(name)
            disk.held.clear()
        return target, base

    async def _send(self, name: str, disk: Disk, which: int, settle: bool) -> None:
        route = await self._route(name, disk, which)
        if route is None:
            return
        delta = await self._owner.volumes.changes(name, route[0], since=route[1])
        pieces = await self._owner.volumes.read(name, route[0], delta.ranges)
        assert await self._holder.volumes.accept(delta, stream(pieces))
        assert not await self._holder.volumes.accept(delta, stream(pieces)) or not settle  # once more is no harm
        await self._holder.volumes.settle(name)
        disk.held[route[0]] = disk.snapshots[route[0]]

    async def _break_off(self, name: str, disk: Disk, which: int) -> None:
        """The link breaks in the middle; the same delta goes on where it was."""
        route = await self._route(name, disk, which)
        if route is None:
            return
        delta = await self._owner.volumes.changes(name, route[0], since=route[1])
        pieces = await self._owner.volumes.read(name, route[0], delta.ranges)
        with contextlib.suppress(ConnectionResetError):
            await self._holder.volumes.accept(delta, _broken_off(_halved(pieces), which))
        await self.check(name)
        partial = await self._holder.volumes.partial(name)
        done = partial.bytes_done if partial is not None and partial.delta == delta else 0
        rest = _after(_halved(pieces), done)
        assert total(each.range for each in rest) + done == total(delta.ranges)
        await self._holder.volumes.accept(delta, stream(rest), begin=done)
        await self._holder.volumes.settle(name)
        disk.held[route[0]] = disk.snapshots[route[0]]

    async def _misfit(self, name: str, disk: Disk, which: int) -> None:
        """A delta from a content that the holder has not."""
        if not disk.held or len(disk.snapshots) < 2:
            return
        there: Sequence[Manifest] = await self._owner.volumes.snapshots(name)
        newest = (await self._holder.volumes.snapshots(name))[-1]
        base = there[which % (len(there) - 1)]
        if base.root == newest.root or (there[-1].number, there[-1].root) == (newest.number, newest.root):
            return
        delta = await self._owner.volumes.changes(name, there[-1].number, since=base.number)
        pieces = await self._owner.volumes.read(name, there[-1].number, delta.ranges)
        with pytest.raises(ConflictError):
            await self._holder.volumes.accept(delta, stream(pieces))

    # ------------------------------------------------------------ what goes wrong

    async def _flip(self, name: str, disk: Disk, which: int, holder: bool, offset: int) -> None:
        site, expected = (self._holder, disk.held) if holder else (self._owner, disk.snapshots)
        number = _pick(sorted(expected), which)
        if not number:
            return
        offset = min(offset, len(expected[number]) - 1)
        await asyncio.to_thread(site.flip, name, number, offset)
        damaged = await site.volumes.verify(name, number)
        assert any(each.offset <= offset < each.end for each in damaged)
        await site.volumes.quarantine(name, number)
        del expected[number]

    async def _crash(self, name: str, disk: Disk, holder: bool) -> None:
        """Either pool's process dies, or (once: it copies the pool) its power fails. What was written is flushed before, for
        the model has no more."""
        power = self._power and len(disk.snapshots) % 2 == 1
        self._power = self._power and not power
        for each in self.disks:
            descriptor = os.open(await self._owner.volumes.disk(each), os.O_RDWR)
            os.fsync(descriptor)
            os.close(descriptor)
        await (self._holder if holder else self._owner).fail(power)
        if power:
            for each in self.disks:
                await self._see_again(each, self.disks[each])

    async def _see_again(self, name: str, disk: Disk) -> None:
        """What was removed or put aside last may be back, for its end need not last: whole, or to be found damaged again."""
        for site, expected in ((self._owner, disk.snapshots), (self._holder, disk.held)):
            found = await site.volumes.snapshots(name) if await site.volumes.find(name) is not None else ()
            for number in {each.number for each in found} - set(expected):
                if await site.volumes.verify(name, number):
                    await site.volumes.quarantine(name, number)
                else:
                    expected[number] = disk.removed[number]


def _pick(numbers: Sequence[int], which: int) -> int:
    return numbers[which % len(numbers)] if numbers else 0


def _halved(pieces: Sequence[Piece]) -> list[Piece]:
    """The same in smaller pieces, so that there is a middle to break off in."""
    smaller = []
    for each in pieces:
        for offset in range(0, each.range.length, 2 * BLOCK):
            part = Range(each.range.offset + offset, min(2 * BLOCK, each.range.length - offset))
            smaller.append(Piece(part, each.data[offset : offset + part.length]))
    return smaller


def _after(pieces: Sequence[Piece], bytes_done: int) -> list[Piece]:
    left = []
    for each in pieces:
        done = min(each.range.length, bytes_done)
        bytes_done -= done
        if done < each.range.length:
            left.append(Piece(Range(each.range.offset + done, each.range.length - done), each.data[done:]))
    return left


async def _broken_off(pieces: Sequence[Piece], which: int) -> AsyncIterator[Piece]:
    for each in pieces[: which % (len(pieces) + 1)]:
        yield each
    raise ConnectionResetError


async def _live(owner: Site, holder: Site, prefix: str, ops: list[Op]) -> None:
    life = Life(owner, holder, prefix)
    await life.begin()
    try:
        for op in ops:
            await life.do(op)
        for name in life.disks:
            await life.check(name)
        await life.audit()
    finally:
        await life.end()


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def test_lives_in_memory(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        owner, holder = MemorySite(tmp_path / "owner"), MemorySite(tmp_path / "holder")
        count = 0

        @settings(max_examples=60, deadline=None, suppress_health_check=QUIET, database=None)
        @given(LIVES)
        def live(ops: list[Op]) -> None:
            nonlocal count
            count += 1
            runner.run(_live(owner, holder, f"m{count}", ops))

        live()


def test_lives_on_btrfs(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            owner, holder = (
                RealSite(runner.run(stack.enter_async_context(real_pool(tmp_path / name)))) for name in ("owner", "holder")
            )
            count = 0

            @settings(max_examples=30, deadline=None, suppress_health_check=QUIET, database=None)
            @given(LIVES)
            def live(ops: list[Op]) -> None:
                nonlocal count
                count += 1
                runner.run(_live(owner, holder, f"b{count}", ops))

            live()
        finally:
            runner.run(stack.aclose())

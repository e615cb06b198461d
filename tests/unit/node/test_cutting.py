"""Snapshots by the clock and on demand: when a cut is made, what is kept, and that the pool's trouble is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from primordia.domain import cadence
from primordia.domain.snapshots import Manifest
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.errors import CapacityError, ConflictError
from primordia.ports.volumes import PoolStatus
from primordia.testing.cuts import CutWorld, cut_world
from primordia.testing.virtual import VirtualClock, run_virtual
from primordia.testing.volumes import BLOCK, write
from primordia.wire.data import SnapshotRequest
from primordia.wire.resources import Event, Volume
from primordia.wire.volumes import LastSync


class Pool(MemoryVolumes):
    """A pool whose cuts take time, of the virtual kind, and that can be unwell."""

    clock = VirtualClock()
    cost_s = 0.0
    under_way = 0
    most_under_way = 0
    cuts = 0
    problems: tuple[str, ...] = ()

    async def pool(self) -> PoolStatus:
        status = await super().pool()
        return PoolStatus(status.total_bytes, status.used_bytes, status.free_bytes, status.reserve_bytes, self.problems)

    async def cut(self, volume: str, *, epoch: int, checkpoint: str = "", always: bool = False) -> Manifest:
        self.under_way += 1
        self.cuts += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.clock.sleep(self.cost_s)
            return await super().cut(volume, epoch=epoch, checkpoint=checkpoint, always=always)
        finally:
            self.under_way -= 1


def in_world(folder: Path, test: Callable[[CutWorld, Pool], Awaitable[None]]) -> None:
    """Run a test under virtual time."""

    async def main() -> None:
        clock = VirtualClock()
        start_s = clock.boottime()
        pool = Pool(folder, now=lambda: 1_700_000_000 + clock.boottime() - start_s)
        async with cut_world(pool, clock, folder) as world:
            await test(world, pool)

    run_virtual(main())


async def dirty(world: CutWorld, uid: str, letter: bytes, offset: int = 0) -> None:
    write(await world.pool.disk(uid), offset, letter * BLOCK, flush=False)


def test_the_clock_cuts_what_changed_and_nothing_else(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        owned, idle = await world.volume("a"), await world.volume("idle")
        told: list[int] = []
        owned.on_cut.append(lambda made: told.append(made.number))
        world.cut_by_the_clock()
        await world.clock.sleep(2)
        for letter in b"abcde":
            await dirty(world, owned.uid, bytes([letter]))
            await world.clock.sleep(1)
        await world.clock.sleep(30)
        assert told == [1, 2, 3, 4, 5, 6]  # the first is of the empty disk
        assert len(await pool.snapshots(idle.uid)) == 1
        assert pool.cuts == 7
        assert owned.newest is not None and owned.newest.number == 6
        stored = await world.registry.get(Volume, "a", "default")
        assert 1 <= stored.status.number <= 6

    in_world(tmp_path, test)


def test_a_cut_on_demand_of_what_did_not_change_tells_nobody(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        owned = await world.volume("a")
        first = await world.cutter.cut(owned)
        told: list[Manifest] = []
        owned.on_cut.append(told.append)
        assert await world.cutter.cut(owned) == first
        assert told == []
        assert (await world.cutter.cut(owned, always=True)).number == 2
        assert [each.number for each in told] == [2]

    in_world(tmp_path, test)


def test_a_cut_that_fails_as_none_should_is_not_tried_all_the_time(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        await world.volume("a")
        tried = 0

        async def broken(volume: str, **options: object) -> Manifest:
            nonlocal tried
            tried += 1
            raise OSError("a bug")

        pool.cut = broken  # type: ignore[method-assign]
        world.cut_by_the_clock()
        await world.clock.sleep(21)
        assert 4 <= tried <= 5

    in_world(tmp_path, test)


def test_a_cut_that_costs_much_is_made_less_often(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        owned = await world.volume("a", last=1000)
        pool.cost_s = 0.5
        world.cut_by_the_clock()
        for second in range(60):
            await dirty(world, owned.uid, b"x", BLOCK * second)
            await world.clock.sleep(1)
        assert 10 <= pool.cuts <= 13

    in_world(tmp_path, test)


@pytest.mark.parametrize(("cost_s", "wait_s"), [(0.0, 1.0), (0.09, 1.0), (0.11, 2.0), (0.5, 5.0)])
def test_beats_are_let_pass_by_what_a_cut_costs(cost_s: float, wait_s: float) -> None:
    assert cadence.due_s(100.0, cost_s, 1.0) == pytest.approx(100.0 + wait_s)
    assert cadence.due_s(100.4, 0, 1.0) == pytest.approx(101.0)


def test_many_volumes_are_cut_side_by_side_and_not_all_at_once(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        all_owned = [await world.volume(f"v{number}") for number in range(20)]
        pool.cost_s = 0.01
        world.cut_by_the_clock()
        await world.clock.sleep(2)
        assert all(each.newest is not None for each in all_owned)
        assert 2 <= pool.most_under_way <= 6

    in_world(tmp_path, test)


def test_old_snapshots_go_and_needed_ones_stay(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        owned = await world.volume("a", last=3, hourly=0, daily=0)
        world.cutter.needed = lambda uid: frozenset({2})
        synced = await world.registry.mutate(Volume, "a", "default", lambda stored: _synced(stored, 4), status=True)
        await world.until(lambda: owned.volume.status.last_sync == synced.status.last_sync)
        for number in range(12):
            await dirty(world, owned.uid, b"%02d" % number)
            if number == 5:
                await world.service.snapshot("default", "a", SnapshotRequest(checkpoint="before"))
            else:
                await world.cutter.cut(owned)
        numbers = [each.number for each in await pool.snapshots(owned.uid)]
        assert numbers == [2, 4, 6, 10, 11, 12]
        await world.clock.sleep(1)
        stored = await world.registry.get(Volume, "a", "default")
        assert [(each.name, each.number) for each in stored.status.checkpoints] == [("before", 6)]

    def _synced(stored: Volume, number: int) -> Volume:
        status = msgspec.structs.replace(stored.status, last_sync=LastSync(epoch=1, number=number))
        return msgspec.structs.replace(stored, status=status)

    in_world(tmp_path, test)


def test_a_pool_that_is_unwell_pauses_the_cuts_and_says_so_once(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        owned = await world.volume("a")
        world.tasks.start(world.events.run(), name="events")
        world.cut_by_the_clock()
        await world.clock.sleep(2)
        pool.problems = ("The pool is read-only; see dmesg.",)
        before = pool.cuts
        await dirty(world, owned.uid, b"x")
        await world.clock.sleep(60)
        assert pool.cuts == before
        assert "read-only" in world.cutter.trouble(owned.uid)
        pool.problems = ()
        await world.clock.sleep(10)
        assert pool.cuts == before + 1
        assert not world.cutter.trouble(owned.uid)
        events = [each for each in (await world.registry.list(Event, "default")).items]
        assert sorted((each.reason, each.count) for each in events) == [("SnapshotFailed", 1), ("SnapshotsGoOn", 1)]

    in_world(tmp_path, test)


def test_no_room_and_an_old_epoch_are_told_and_do_not_end_the_loop(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        owned, other = await world.volume("a"), await world.volume("b")
        failures: list[Exception] = [CapacityError("The pool has no room."), ConflictError("Epoch 1 is over.")]

        async def failing(volume: str, **options: object) -> Manifest:
            if volume == owned.uid and failures:
                raise failures.pop()
            return await Pool.cut(pool, volume, **options)  # type: ignore[arg-type]

        pool.cut = failing  # type: ignore[method-assign]
        world.cut_by_the_clock()
        await world.clock.sleep(2)
        assert other.newest is not None and owned.newest is None
        assert "over" in world.cutter.trouble(owned.uid)
        await world.clock.sleep(20)
        assert owned.newest is not None

    in_world(tmp_path, test)


def test_what_is_written_while_a_cut_is_made_is_in_the_next(tmp_path: Path) -> None:
    async def test(world: CutWorld, pool: Pool) -> None:
        owned = await world.volume("a")
        pool.cost_s = 0.05
        world.cut_by_the_clock()
        await world.clock.sleep(3)
        for turn in range(40):
            await dirty(world, owned.uid, bytes([65 + turn % 20]), BLOCK * turn)
            await world.clock.sleep(0.07)
        await world.clock.sleep(3)
        newest = (await pool.snapshots(owned.uid))[-1]
        assert await pool.touched([owned.uid]) == frozenset()
        assert newest == owned.newest

    in_world(tmp_path, test)

"""What every body of the volumes port promises. A body's test file gives `volumes`, `other` (a second pool) and `corrupt`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from primordia.domain.ranges import Range, total
from primordia.domain.snapshots import CHUNK_BYTES
from primordia.kit.errors import AlreadyExistsError, CapacityError, ConflictError, InvalidError, NotFoundError
from primordia.ports.volumes import READ_BYTES, Partial, Piece, Volumes
from primordia.testing.volumes import BLOCK, carry, content, discard, put, stream

SIZE = 1 << 20
Corrupt = Callable[[str, int, int], None]


def block(letter: bytes) -> bytes:
    """A block of one letter."""
    return letter * BLOCK


async def broken_off(pieces: tuple[Piece, ...]) -> AsyncIterator[Piece]:
    """A connection that dies after the first piece."""
    yield pieces[0]
    raise ConnectionResetError


def split(pieces: Sequence[Piece], chance: random.Random) -> list[Piece]:
    """The same bytes in other pieces, most of them of no round length."""
    smaller = []
    for each in pieces:
        at = 0
        while at < each.range.length:
            length = min(chance.choice([BLOCK, CHUNK_BYTES, 3 * CHUNK_BYTES + 17, SIZE]), each.range.length - at)
            smaller.append(Piece(Range(each.range.offset + at, length), each.data[at : at + length]))
            at += length
    return smaller


async def broken_off_after(pieces: Sequence[Piece], count: int) -> AsyncIterator[Piece]:
    """A connection that dies after so many pieces."""
    for each in pieces[:count]:
        await asyncio.sleep(0)
        yield each
    raise ConnectionResetError


class VolumesContract:
    """Subclassed for each body."""

    async def test_a_volume_is_sparse_and_zero(self, volumes: Volumes) -> None:
        before = await volumes.pool()
        made = await volumes.create("a", 64 * SIZE - 1)
        assert (made.size_bytes, made.newest, made.written_here) == (64 * SIZE, 0, True)
        disk = await volumes.disk("a")
        assert disk.stat().st_size == 64 * SIZE
        assert disk.stat().st_blocks * 512 < SIZE
        after = await volumes.pool()
        assert after.problems == ()
        assert after.used_bytes - before.used_bytes < SIZE
        assert [each.name for each in await volumes.list()] == ["a"]
        with pytest.raises(AlreadyExistsError):
            await volumes.create("a", SIZE)
        await volumes.destroy("a")
        await volumes.destroy("a")
        assert await volumes.find("a") is None
        assert not disk.exists()

    async def test_bad_requests_are_refused(self, volumes: Volumes) -> None:
        for name in ("", "../etc", "A", "a/b", "-", "a" * 64, ".."):
            with pytest.raises(InvalidError):
                await volumes.create(name, SIZE)
        with pytest.raises(InvalidError):
            await volumes.create("a", 0)
        with pytest.raises(CapacityError):
            await volumes.create("a", 1 << 50)
        assert await volumes.list() == ()
        with pytest.raises(NotFoundError):
            await volumes.disk("absent")
        with pytest.raises(NotFoundError):
            await volumes.cut("absent", epoch=1)

    async def test_what_was_not_touched_need_not_be_cut(self, volumes: Volumes) -> None:
        for name in ("a", "idle"):
            await volumes.create(name, SIZE)
            disk = await volumes.disk(name)
            await put(disk, 0, block(b"x"))
        assert await volumes.touched(["a", "idle", "absent"]) == {"a", "idle"}  # never cut
        await asyncio.sleep(0.3)
        newest = {name: await volumes.cut(name, epoch=1) for name in ("a", "idle")}
        assert await volumes.touched(["a", "idle"]) == frozenset()
        disk = await volumes.disk("a")
        await put(disk, CHUNK_BYTES, block(b"y"), flush=False)
        assert await volumes.touched(["a", "idle"]) == {"a"}
        assert (await volumes.cut("a", epoch=1)).number == newest["a"].number + 1
        await put(disk, CHUNK_BYTES, block(b"z"), flush=False)  # at once: hardly a tick later
        assert await volumes.touched(["a", "idle"]) == {"a"}
        await asyncio.sleep(0.3)
        await volumes.cut("a", epoch=1)
        assert await volumes.touched(["a"]) == frozenset()
        await asyncio.to_thread(discard, disk, 0, BLOCK)
        assert await volumes.touched(["a"]) == {"a"}
        await asyncio.sleep(0.3)
        await volumes.cut("a", epoch=1)
        await volumes.grow("a", 2 * SIZE)
        assert await volumes.touched(["a"]) == {"a"}
        await volumes.cut("a", epoch=1)
        await volumes.restore("a", 1, epoch=2)
        assert await volumes.touched(["idle"]) == frozenset()

    async def test_a_snapshot_is_what_the_disk_was(self, volumes: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        await put(disk, 0, block(b"x"))
        first = await volumes.cut("a", epoch=1)
        assert (first.number, first.parent, first.size_bytes, first.epoch) == (1, "", SIZE, 1)
        assert total(first.changed) < CHUNK_BYTES
        assert await volumes.cut("a", epoch=1) == first  # nothing changed
        await put(disk, 5 * CHUNK_BYTES, block(b"y"), flush=False)
        second = await volumes.cut("a", epoch=1)
        assert (second.number, second.parent) == (2, first.root)
        assert second.changed == (Range(5 * CHUNK_BYTES, BLOCK),)
        await put(disk, 0, block(b"z"))
        expected = bytearray(SIZE)
        expected[:BLOCK] = block(b"x")
        assert await content(volumes, "a", 1) == bytes(expected)
        expected[5 * CHUNK_BYTES : 5 * CHUNK_BYTES + BLOCK] = block(b"y")
        assert await content(volumes, "a", 2) == bytes(expected)
        assert await volumes.snapshots("a") == (first, second)

    async def test_equal_content_has_an_equal_root(self, volumes: Volumes) -> None:
        for name in ("a", "b"):
            await volumes.create(name, SIZE)
            await put(await volumes.disk(name), 3 * BLOCK, block(b"q"))
        await put(await volumes.disk("b"), SIZE - BLOCK, block(b"w"))
        one = await volumes.cut("a", epoch=1)
        await volumes.cut("b", epoch=1)
        await put(await volumes.disk("b"), SIZE - BLOCK, bytes(BLOCK))
        other = await volumes.cut("b", epoch=1)
        assert one.root == other.root  # kept incrementally, it is the same as made anew
        assert other.number == 2

    async def test_numbers_are_never_used_again(self, volumes: Volumes) -> None:
        await volumes.create("a", SIZE)
        for _ in range(3):
            await volumes.cut("a", epoch=1, always=True)
        await volumes.quarantine("a", 3)
        assert (await volumes.cut("a", epoch=1, always=True)).number == 4
        await volumes.remove("a", 1)
        assert [each.number for each in await volumes.snapshots("a")] == [2, 4]
        with pytest.raises(ConflictError):
            await volumes.remove("a", 4)
        info = await volumes.find("a")
        assert info is not None
        assert info.aside == (3,)

    async def test_checkpoints_have_names(self, volumes: Volumes) -> None:
        await volumes.create("a", SIZE)
        assert (await volumes.cut("a", epoch=1, checkpoint="before-upgrade")).checkpoint == "before-upgrade"
        assert (await volumes.cut("a", epoch=1, checkpoint="again")).number == 2
        await volumes.label("a", 1, "")
        assert [each.checkpoint for each in await volumes.snapshots("a")] == ["", "again"]
        with pytest.raises(InvalidError):
            await volumes.label("a", 1, "../x")

    async def test_deltas_make_the_same_snapshots_elsewhere(self, volumes: Volumes, other: Volumes) -> None:
        chance = random.Random(7)
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        held = 0
        for number in range(1, 5):
            for _ in range(6):
                length = chance.choice((512, BLOCK, 3 * BLOCK))
                await put(disk, chance.randrange(0, SIZE - length, 512), chance.randbytes(length))
            await volumes.cut("a", epoch=1)
            if number == 2:
                continue  # two snapshots in one delta
            await carry(volumes, other, "a", number, since=held)
            held = number
        assert [each.number for each in await other.snapshots("a")] == [1, 3, 4]
        for number in (1, 3, 4):
            assert await content(other, "a", number) == await content(volumes, "a", number)
            assert await other.verify("a", number) == ()

    async def test_a_delta_is_whole_or_absent(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        await put(disk, 0, block(b"1"))
        await put(disk, 4 * CHUNK_BYTES, block(b"2"))
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 1)
        pieces = await volumes.read("a", 1, delta.ranges)
        with pytest.raises(ConnectionResetError):
            await other.accept(delta, broken_off(pieces))
        assert await other.find("a") is None
        flipped = Piece(pieces[0].range, b"\x00" + pieces[0].data[1:])
        for bad in (pieces[:1], pieces[1:], (*pieces, pieces[0]), (flipped, *pieces[1:]), (pieces[0], pieces[0])):
            with pytest.raises(InvalidError):
                await other.accept(delta, stream(bad))
        assert await other.find("a") is None
        await carry(volumes, other, "a", 1)
        assert not await other.accept(delta, stream(pieces))  # a repeated one

    async def test_a_delta_goes_on_where_it_was_cut_off(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        for chunk in (0, 3, 5):
            await put(disk, chunk * CHUNK_BYTES, random.Random(chunk).randbytes(2 * BLOCK))
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 1)
        pieces = await volumes.read("a", 1, delta.ranges)
        done = pieces[0].range.length
        assert await other.partial("a") is None
        with pytest.raises(ConnectionResetError):
            await other.accept(delta, broken_off(pieces))
        assert await other.partial("a") == Partial(delta, done)
        for begin in (done - 1, done + BLOCK):
            with pytest.raises(ConflictError) as caught:
                await other.accept(delta, stream(pieces[1:]), begin=begin)
            assert caught.value.reason == "OtherOffset"
            with pytest.raises(ConnectionResetError):  # so it begins anew, and is cut off again
                await other.accept(delta, broken_off(pieces))
        with pytest.raises(ConnectionResetError):
            await other.accept(delta, broken_off(pieces[1:]), begin=done)
        done += pieces[1].range.length
        assert await other.partial("a") == Partial(delta, done)
        assert await other.find("a") is None
        assert await other.accept(delta, stream(pieces[2:]), begin=done)
        assert await other.partial("a") is None
        await other.settle("a")
        assert await content(other, "a", 1) == await content(volumes, "a", 1)
        assert await other.verify("a", 1) == ()

    @pytest.mark.parametrize("end", ["destroy", "retire"])
    @pytest.mark.parametrize("breaks", [False, True])
    async def test_what_is_deleted_while_it_comes_does_not_come_back(
        self, volumes: Volumes, other: Volumes, end: str, breaks: bool
    ) -> None:
        await volumes.create("a", SIZE)
        for chunk in (0, 3):
            await put(await volumes.disk("a"), chunk * CHUNK_BYTES, block(b"1"))
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 1)
        first, second = await volumes.read("a", 1, delta.ranges)

        async def deleted_meanwhile() -> AsyncIterator[Piece]:
            yield first
            await getattr(other, end)("a")
            if breaks:
                raise ConnectionResetError
            yield second

        with pytest.raises((ConnectionResetError, ConflictError)) as caught:
            await other.accept(delta, deleted_meanwhile())
        assert breaks or getattr(caught.value, "reason", "") == "Destroyed"
        assert await other.find("a") is None and await other.partial("a") is None
        await carry(volumes, other, "a", 1)  # it is wanted here again
        assert await content(other, "a", 1) == await content(volumes, "a", 1)

    async def test_a_large_delta_arrives_in_any_pieces_and_breaks_off_anywhere(self, volumes: Volumes, other: Volumes) -> None:
        """It is written while more of it comes: nothing of it may be lost, or laid where it does not belong."""
        chance = random.Random(7)
        await volumes.create("a", 24 * SIZE)
        disk = await volumes.disk("a")
        await put(disk, 5 * BLOCK, chance.randbytes(17 * SIZE))
        for number in (1, 2):
            await asyncio.to_thread(discard, disk, number * 3 * SIZE + BLOCK, SIZE)
            for _ in range(60):
                await put(
                    disk, chance.randrange(23 * SIZE), chance.randbytes(chance.choice([1, BLOCK, CHUNK_BYTES])), flush=False
                )
            await put(disk, 6 * SIZE + BLOCK, chance.randbytes(9 * SIZE))
            await volumes.cut("a", epoch=1)
            delta = await volumes.changes("a", number, since=number - 1)
            left, done = split(await volumes.read("a", number, delta.ranges), chance), 0
            while len(left) > 8:
                count = chance.randrange(len(left))
                with pytest.raises(ConnectionResetError):
                    await other.accept(delta, broken_off_after(left, count), begin=done)
                done += total(each.range for each in left[:count])
                left = left[count:]
                assert await other.partial("a") == (Partial(delta, done) if done else None)
            assert await other.accept(delta, stream(left), begin=done)
            await other.settle("a")
            assert await content(other, "a", number) == disk.read_bytes()
            assert await other.verify("a", number) == ()

    async def test_a_lie_is_not_kept(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        await put(await volumes.disk("a"), 0, block(b"1"))
        await put(await volumes.disk("a"), 4 * CHUNK_BYTES, block(b"2"))
        await volumes.cut("a", epoch=1)
        delta = await volumes.changes("a", 1)
        pieces = await volumes.read("a", 1, delta.ranges)
        flipped = Piece(pieces[0].range, b"\x00" + pieces[0].data[1:])
        with pytest.raises(ConnectionResetError):
            await other.accept(delta, broken_off((flipped,)))
        with pytest.raises(InvalidError):
            await other.accept(delta, stream(pieces[1:]), begin=pieces[0].range.length)
        assert await other.partial("a") is None
        await carry(volumes, other, "a", 1)
        with pytest.raises(ConnectionResetError):
            await put(await volumes.disk("a"), 0, block(b"3"))
            await volumes.cut("a", epoch=1)
            following = await volumes.changes("a", 2, since=1)
            await other.accept(following, broken_off(await volumes.read("a", 2, following.ranges)))
        assert await other.partial("a") is not None
        await other.destroy("a")
        assert await other.partial("a") is None

    async def test_notes_lie_beside_the_data(self, volumes: Volumes) -> None:
        with pytest.raises(NotFoundError):
            await volumes.note("a", b"x")
        await volumes.create("a", SIZE)
        assert await volumes.notes("a") == b""
        await volumes.note("a", b"one")
        await volumes.note("a", b"two")
        assert await volumes.notes("a") == b"two"

    async def test_hostile_deltas_are_refused(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        await put(await volumes.disk("a"), 0, block(b"1"))
        await volumes.cut("a", epoch=3)
        delta = await volumes.changes("a", 1)
        said = delta.manifest
        for bad in (
            replace(delta, manifest=replace(said, volume="../../etc/x")),
            replace(delta, manifest=replace(said, size_bytes=SIZE + 1)),
            replace(delta, manifest=replace(said, size_bytes=1 << 60)),
            replace(delta, manifest=replace(said, root="../x")),
            replace(delta, manifest=replace(said, number=0)),
            replace(delta, manifest=replace(said, checkpoint="a/b")),
            replace(delta, ranges=(Range(-BLOCK, BLOCK),)),
            replace(delta, ranges=(Range(SIZE, BLOCK),)),
            replace(delta, ranges=(Range(BLOCK, BLOCK), Range(0, BLOCK))),
        ):
            with pytest.raises(InvalidError):
                await other.accept(bad, stream(()))
        assert await other.list() == ()

    async def test_what_does_not_fit_is_refused(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        for number in (1, 2, 3):
            await put(disk, number * CHUNK_BYTES, block(b"n"))
            await volumes.cut("a", epoch=2)
        await carry(volumes, other, "a", 2)
        skipping = await volumes.changes("a", 3, since=1)
        with pytest.raises(ConflictError) as caught:
            await other.accept(skipping, stream(()))
        assert caught.value.reason == "OtherBase"
        good = await volumes.changes("a", 3, since=2)
        for manifest, reason in (
            (replace(good.manifest, epoch=1), "StaleEpoch"),
            (replace(good.manifest, number=1), "OldNumber"),
        ):
            with pytest.raises(ConflictError) as caught:
                await other.accept(replace(good, manifest=manifest), stream(()))
            assert caught.value.reason == reason
        with pytest.raises(ConflictError) as caught:
            await volumes.accept(good, stream(()))
        assert caught.value.reason == "WrittenHere"
        with pytest.raises(ConflictError) as caught:
            await volumes.cut("a", epoch=1)
        assert caught.value.reason == "StaleEpoch"
        await carry(volumes, other, "a", 3, since=2)

    async def test_a_replica_becomes_the_owner_and_back(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        await put(await volumes.disk("a"), 0, block(b"1"))
        first = await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        await put(await volumes.disk("a"), 0, block(b"2"))
        tail = await volumes.cut("a", epoch=1)  # which the new owner lacks
        await put(await other.disk("a"), BLOCK, block(b"3"))
        taken = await other.cut("a", epoch=2)
        assert (taken.number, taken.parent, taken.epoch) == (2, first.root, 2)
        await volumes.release("a")
        with pytest.raises(ConflictError):
            await volumes.cut("a", epoch=2)
        await volumes.quarantine("a", tail.number)
        await carry(other, volumes, "a", 2, since=1)
        assert await content(volumes, "a", 2) == block(b"1") + block(b"3") + bytes(SIZE - 2 * BLOCK)
        with pytest.raises(ConflictError):  # the old owner's word is over
            await volumes.accept(replace(await other.changes("a", 1), manifest=tail), stream(()))

    async def test_a_tail_stays_until_the_volume_is_destroyed(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        for text in (b"1", b"2", b"3"):
            await put(await volumes.disk("a"), 0, block(text))
            await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        kept = {each.number: each for each in await volumes.snapshots("a")}
        await volumes.release("a")
        for number in (3, 2):
            await volumes.quarantine("a", number, tail=True)
        assert await volumes.tails("a") == (kept[2], kept[3])
        info = await volumes.find("a")
        assert info is not None
        assert (info.newest, info.aside, info.tails) == (1, (2, 3), (2, 3))
        await put(await other.disk("a"), 0, block(b"4"))
        await other.cut("a", epoch=2)
        await carry(other, volumes, "a", 2, since=1)
        await volumes.clone("a", "tail", number=3, tail=True)
        assert (await volumes.disk("tail")).read_bytes()[:BLOCK] == block(b"3")
        with pytest.raises(NotFoundError):
            await volumes.clone("a", "none", number=9, tail=True)

        await volumes.retire("a")
        await volumes.retire("a")
        info = await volumes.find("a")
        assert info is not None
        assert (info.written_here, info.newest, info.pending, info.tails) == (False, 0, 0, (2, 3))
        assert await volumes.snapshots("a") == ()
        await carry(other, volumes, "a", 2)  # a copy is wanted here again
        assert await content(volumes, "a", 2) == await content(other, "a", 2)
        await volumes.retire("a")
        await volumes.create("a", SIZE, epoch=3)
        assert (await volumes.cut("a", epoch=3)).number == 4
        assert len(await volumes.tails("a")) == 2
        await volumes.destroy("a")
        assert await volumes.find("a") is None
        await other.retire("a")  # nothing was put aside there
        assert await other.find("a") is None

    async def test_an_older_epoch_does_not_open_the_disk(self, volumes: Volumes) -> None:
        await volumes.create("a", SIZE)
        assert await volumes.disk("a", epoch=3) == await volumes.disk("a")
        info = await volumes.find("a")
        assert info is not None
        assert info.epoch == 3
        with pytest.raises(ConflictError) as caught:
            await volumes.disk("a", epoch=2)
        assert caught.value.reason == "StaleEpoch"

    async def test_restore_gives_old_content_a_new_number(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        await put(await volumes.disk("a"), 0, block(b"1"))
        first = await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        await put(await volumes.disk("a"), 7 * CHUNK_BYTES, block(b"2"))
        second = await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 2, since=1)
        await put(await volumes.disk("a"), 0, block(b"3"))
        restored = await volumes.restore("a", 1, epoch=2)
        assert (restored.number, restored.parent, restored.root, restored.epoch) == (3, second.root, first.root, 2)
        assert (await volumes.disk("a")).read_bytes() == await content(volumes, "a", 1)
        delta = await carry(volumes, other, "a", 3, since=2)
        assert total(delta.ranges) <= 2 * CHUNK_BYTES
        await put(await volumes.disk("a"), BLOCK, block(b"4"))
        fourth = await volumes.cut("a", epoch=2)
        assert (fourth.number, fourth.changed) == (4, (Range(BLOCK, BLOCK),))
        await carry(volumes, other, "a", 4, since=3)
        assert await content(other, "a", 4) == (await volumes.disk("a")).read_bytes()

    async def test_a_disk_grows_and_copies_follow(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        await put(disk, 0, block(b"1"))
        await volumes.cut("a", epoch=1)
        assert (await volumes.grow("a", 3 * SIZE - 5)).size_bytes == 3 * SIZE
        with pytest.raises(InvalidError):
            await volumes.grow("a", SIZE)
        assert (await volumes.cut("a", epoch=1)).size_bytes == 3 * SIZE
        await put(disk, 2 * SIZE, block(b"2"))
        await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        await carry(volumes, other, "a", 3, since=1)
        assert await content(other, "a", 3) == disk.read_bytes()
        restored = await volumes.restore("a", 1, epoch=2)  # smaller again
        assert restored.size_bytes == (await volumes.disk("a")).stat().st_size == SIZE
        await carry(volumes, other, "a", 4, since=3)
        assert await content(other, "a", 4) == await content(volumes, "a", 1)

    async def test_clones_go_their_own_way(self, volumes: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        await put(disk, 0, block(b"1"))
        await volumes.cut("a", epoch=1)
        await put(disk, 0, block(b"2"), flush=False)
        await volumes.clone("a", "now")
        await volumes.clone("a", "then", number=1)
        await put(await volumes.disk("then"), BLOCK, block(b"3"))
        assert (await volumes.disk("now")).read_bytes()[: 2 * BLOCK] == block(b"2") + bytes(BLOCK)
        assert (await volumes.disk("then")).read_bytes()[: 2 * BLOCK] == block(b"1") + block(b"3")
        assert disk.read_bytes()[: 2 * BLOCK] == block(b"2") + bytes(BLOCK)
        await volumes.destroy("a")
        promoted = await volumes.cut("then", epoch=1)
        assert (promoted.number, promoted.parent) == (1, "")
        assert (await content(volumes, "then", 1))[: 2 * BLOCK] == block(b"1") + block(b"3")
        with pytest.raises(AlreadyExistsError):
            await volumes.clone("then", "now")

    async def test_a_clone_hides_nothing_from_the_next_cut(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        await put(disk, 0, b"1" * 4 * CHUNK_BYTES)
        await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        await put(disk, 0, block(b"2"))
        await asyncio.to_thread(discard, disk, 2 * CHUNK_BYTES, CHUNK_BYTES)
        await volumes.clone("a", "then", number=1)
        second = await volumes.cut("a", epoch=1)
        assert second.number == 2
        await carry(volumes, other, "a", 2, since=1)
        for each in (volumes, other):
            assert await content(each, "a", 2) == disk.read_bytes()
            assert await each.verify("a", 2) == ()

    async def test_a_copy_that_takes_over_has_changed_nothing(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        await put(await volumes.disk("a"), 0, block(b"1"))
        await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        await other.disk("a", epoch=2)
        assert (await other.cut("a", epoch=2)).number == 1
        await other.clone("a", "then", number=1)
        assert (await other.cut("a", epoch=2)).number == 1

    async def test_corruption_is_found_put_aside_and_healed(self, volumes: Volumes, other: Volumes, corrupt: Corrupt) -> None:
        await volumes.create("a", SIZE)
        for number in (1, 2):
            await put(await volumes.disk("a"), number * CHUNK_BYTES, block(b"n"))
            await volumes.cut("a", epoch=1)
            await carry(volumes, other, "a", number, since=number - 1)
        assert await other.verify("a", 2) == ()
        corrupt("a", 2, 2 * CHUNK_BYTES + 17)
        damaged = await other.verify("a", 2)
        assert any(each.offset <= 2 * CHUNK_BYTES + 17 < each.end for each in damaged)
        await other.quarantine("a", 2)
        assert [each.number for each in await other.snapshots("a")] == [1]
        await carry(volumes, other, "a", 2, since=1)
        assert await other.verify("a", 2) == ()
        assert await content(other, "a", 2) == await content(volumes, "a", 2)

    async def test_reads_are_bounded(self, volumes: Volumes) -> None:
        await volumes.create("a", SIZE)
        await volumes.cut("a", epoch=1)
        with pytest.raises(InvalidError):
            await volumes.read("a", 1, [Range(0, 2 * SIZE)])
        with pytest.raises(InvalidError):
            await volumes.read("a", 1, [Range(0, READ_BYTES + 1)])
        with pytest.raises(NotFoundError):
            await volumes.read("a", 2, [Range(0, BLOCK)])
        assert await volumes.read("a", 1, [Range(BLOCK, BLOCK)]) == (Piece(Range(BLOCK, BLOCK), b""),)

    async def test_discards_reach_the_copies(self, volumes: Volumes, other: Volumes) -> None:
        await volumes.create("a", SIZE)
        disk = await volumes.disk("a")
        await put(disk, 0, b"d" * 4 * CHUNK_BYTES)
        await volumes.cut("a", epoch=1)
        await carry(volumes, other, "a", 1)
        await asyncio.to_thread(discard, disk, CHUNK_BYTES, 2 * CHUNK_BYTES)
        second = await volumes.cut("a", epoch=1)
        assert second.number == 2
        await carry(volumes, other, "a", 2, since=1)
        middle = (await content(other, "a", 2))[CHUNK_BYTES : 3 * CHUNK_BYTES]
        assert middle == bytes(2 * CHUNK_BYTES)
        assert await content(other, "a", 2) == disk.read_bytes()

    async def test_many_cuts_at_once_follow_one_another(self, volumes: Volumes) -> None:
        await volumes.create("a", SIZE)
        cuts = await asyncio.gather(*(volumes.cut("a", epoch=1, always=True) for _ in range(4)))
        assert sorted(each.number for each in cuts) == [1, 2, 3, 4]
        assert [each.number for each in await volumes.snapshots("a")] == [1, 2, 3, 4]

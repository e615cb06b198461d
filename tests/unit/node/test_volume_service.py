"""What is asked of a volume: snapshots, checkpoints, restores, clones, images; and what a daemon that died leaves of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from primordia.client.disk_images import DamagedImageError, ImageReader, ImageWriter
from primordia.domain.ranges import Range
from primordia.domain.snapshots import Manifest
from primordia.drivers.guest_fake import FakeAgent, FakeGuest
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, PrimordiaError, TemporaryError
from primordia.node.volumes import standing as still
from primordia.node.volumes.births import Births
from primordia.node.volumes.restoring import ANNOTATION
from primordia.ports.store import StoreUnavailableError
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform
from primordia.testing.cuts import NODE, SIZE, CutWorld, cut_world
from primordia.testing.virtual import VirtualClock, run_virtual
from primordia.testing.volumes import BLOCK, content, write
from primordia.wire.data import CloneRequest, ImportRequest, RestoreRequest, SnapshotRequest
from primordia.wire.deltas import DeltaReader, DeltaWriter, Part
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import Data

NS = "default"


def in_world(folder: Path, test: Callable[[CutWorld], Awaitable[None]]) -> None:
    """Run a test under virtual time, over a pool in memory."""

    async def main() -> None:
        clock = VirtualClock()
        pool = MemoryVolumes(folder, now=lambda: 1_700_000_000 + clock.boottime())
        async with cut_world(pool, clock, folder) as world:
            await test(world)

    run_virtual(main())


async def fill(world: CutWorld, uid: str, letter: bytes, offset: int = 0) -> None:
    write(await world.pool.disk(uid), offset, letter * BLOCK, flush=False)


async def with_lifeform(world: CutWorld, mode: str = "Running") -> Lifeform:
    """The lifeform whose data the volume shop-main is."""
    made = make_lifeform("shop", operating_mode=mode)
    context = msgspec.structs.replace(made.spec.contexts[0], data=Data(size="1Mi"))
    spec = msgspec.structs.replace(made.spec, contexts=(context,))
    return await world.registry.create(msgspec.structs.replace(made, spec=spec))


async def stored(world: CutWorld, name: str) -> Volume:
    return await world.registry.get(Volume, name, NS)


def test_a_restore_brings_the_content_back_and_keeps_what_was(tmp_path: Path) -> None:
    async def test(world: CutWorld) -> None:
        owned = await world.volume("shop-main", lifeform="shop")
        await with_lifeform(world)
        await fill(world, owned.uid, b"a")
        await world.service.snapshot(NS, "shop-main", SnapshotRequest(checkpoint="good"))
        await world.clock.sleep(7)
        await fill(world, owned.uid, b"b")
        told: list[Manifest] = []
        owned.on_cut.append(told.append)
        done = await world.service.restore(NS, "shop-main", RestoreRequest(to="good"))
        assert (done.number, done.epoch, done.source.number, done.before.number) == (3, 2, 1, 2)
        assert done.restarted and done.lost_seconds == pytest.approx(7, abs=0.2)
        assert [each.number for each in told] == [2, 3]
        assert (await content(world.pool, owned.uid, 2))[:1] == b"b"
        assert (await content(world.pool, owned.uid, 3))[:1] == b"a"
        volume = await stored(world, "shop-main")
        assert (volume.status.epoch, volume.status.number) == (2, 3)
        assert volume.status.last_sync is not None
        assert (volume.status.last_sync.epoch, volume.status.last_sync.number, volume.status.last_sync.copies) == (2, 3, ())
        assert ANNOTATION not in volume.metadata.annotations
        assert (await world.registry.get(Lifeform, "shop", NS)).spec.operating_mode == "Running"
        await fill(world, owned.uid, b"c")
        assert (await world.cutter.cut(owned)).epoch == 2

    in_world(tmp_path, test)


def test_a_lifeform_that_was_suspended_stays_so_and_none_is_none(tmp_path: Path) -> None:
    async def test(world: CutWorld) -> None:
        owned = await world.volume("shop-main", lifeform="shop")
        await world.cutter.cut(owned)
        assert not (await world.service.restore(NS, "shop-main", RestoreRequest(to="1"))).restarted
        await with_lifeform(world, "Suspended")
        done = await world.service.restore(NS, "shop-main", RestoreRequest(to="1"))
        assert (done.restarted, done.epoch) == (False, 3)
        assert (await world.registry.get(Lifeform, "shop", NS)).spec.operating_mode == "Suspended"

    in_world(tmp_path, test)


def test_while_it_does_not_stop_nothing_is_restored(tmp_path: Path) -> None:
    async def test(world: CutWorld) -> None:
        owned = await world.volume("shop-main", lifeform="shop")
        await with_lifeform(world)
        await fill(world, owned.uid, b"a")
        await world.cutter.cut(owned)
        owned.users.append(_Running())  # type: ignore[arg-type]
        seen: list[str] = []
        world.tasks.start(_watch_mode(world, seen), name="watch")
        with pytest.raises(TemporaryError, match="did not stop"):
            await world.service.restore(NS, "shop-main", RestoreRequest(to="1"))
        assert "Suspended" in seen
        volume = await stored(world, "shop-main")
        assert (volume.status.epoch, ANNOTATION in volume.metadata.annotations) == (1, False)
        assert (await world.registry.get(Lifeform, "shop", NS)).spec.operating_mode == "Running"
        assert (await world.cutter.cut(owned)).epoch == 1

    in_world(tmp_path, test)


async def _watch_mode(world: CutWorld, seen: list[str]) -> None:
    while True:
        seen.append((await world.registry.get(Lifeform, "shop", NS)).spec.operating_mode)
        await world.clock.sleep(1)


class _Running:
    """A context with a microVM, as far as the keeper looks at it."""

    machine = object()
    guest: Any = None
    spec = SimpleNamespace(wanted="Running")


def test_a_restore_that_was_cut_off_anywhere_is_finished_by_the_next_daemon(tmp_path: Path) -> None:
    """The daemon dies before each of the writes and changes of the pool that a restore makes."""
    for at in range(5):
        folder = tmp_path / str(at)
        folder.mkdir()

        async def test(world: CutWorld, at: int = at) -> None:
            owned = await world.volume("shop-main", lifeform="shop")
            await with_lifeform(world)
            await fill(world, owned.uid, b"a")
            await world.cutter.cut(owned)
            await fill(world, owned.uid, b"b")
            before = _dies_at(world, at)
            with pytest.raises(_Dead):
                await world.service.restorer._begin_and_finish(owned, (await world.pool.snapshots(owned.uid))[0])
            before()
            owned.volume = await stored(world, "shop-main")
            begun = ANNOTATION in owned.volume.metadata.annotations
            world.keeper._tell_listeners(owned.uid)  # the next daemon sees the volume
            await world.clock.sleep(10)
            volume = await stored(world, "shop-main")
            newest = (await world.pool.snapshots(owned.uid))[-1]
            assert ANNOTATION not in volume.metadata.annotations
            assert (await world.registry.get(Lifeform, "shop", NS)).spec.operating_mode == "Running"
            assert (await content(world.pool, owned.uid, newest.number))[:1] == b"a"
            assert (await world.pool.disk(owned.uid)).read_bytes()[:1] == (b"a" if begun else b"b")
            assert volume.status.epoch == newest.epoch == (2 if begun else 1)
            assert begun or at == 0

        in_world(folder, test)


def test_a_restore_whose_end_cannot_be_written_is_finished_later_and_never_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine goes away between the change of the content and that of the object."""

    async def test(world: CutWorld) -> None:
        owned = await world.volume("shop-main", lifeform="shop")
        await with_lifeform(world)
        for letter in (b"a", b"b", b"c"):
            await fill(world, owned.uid, letter)
            await world.cutter.cut(owned)

        async def silence(*args: Any, **kwargs: Any) -> Any:
            raise StoreUnavailableError("No answer.")

        restore = world.pool.restore

        async def restore_and_lose_the_engine(*args: Any, **kwargs: Any) -> Manifest:
            made = await restore(*args, **kwargs)
            monkeypatch.setattr(world.registry.store, "txn", silence)
            return made

        monkeypatch.setattr(world.pool, "restore", restore_and_lose_the_engine)
        with pytest.raises(StoreUnavailableError):
            await world.service.restore(NS, "shop-main", RestoreRequest(to="1"))
        with pytest.raises(ConflictError, match="being restored"):
            await world.service.restore(NS, "shop-main", RestoreRequest(to="2"))
        monkeypatch.undo()
        await world.clock.sleep(30)
        volume = await stored(world, "shop-main")
        assert (volume.status.epoch, ANNOTATION in volume.metadata.annotations) == (2, False)
        assert (await world.registry.get(Lifeform, "shop", NS)).spec.operating_mode == "Running"
        assert (await world.pool.disk(owned.uid)).read_bytes()[:1] == b"a"

    in_world(tmp_path, test)


class _Dead(BaseException):
    """Nothing that the restore itself would handle."""


def _dies_at(world: CutWorld, number: int) -> Callable[[], None]:
    """Fail before the n-th effect; the answer lets them all through again."""
    effects = [(world.registry.store, "txn"), (world.pool, "cut"), (world.pool, "restore"), (world.registry.store, "txn")]
    effects.append((world.service.restorer, "_record"))
    # 0: before the intent; 1: before the cut; 2: before the pool's restore; 3: after it, before the record; 4: the same again
    target, name = effects[{0: 0, 1: 1, 2: 2, 3: 4, 4: 4}[number]]
    real = getattr(target, name)

    async def die(*args: Any, **kwargs: Any) -> Any:
        raise _Dead

    setattr(target, name, die)
    return lambda: setattr(target, name, real)


def test_a_clone_has_the_content_and_its_own_life(tmp_path: Path) -> None:
    async def test(world: CutWorld) -> None:
        owned = await world.volume("a", lifeform="shop")
        await fill(world, owned.uid, b"a")
        await world.service.snapshot(NS, "a", SnapshotRequest(checkpoint="first"))
        await fill(world, owned.uid, b"b")
        now = await world.service.clone(NS, "a", CloneRequest(name="now"))
        then = await world.service.clone(NS, "a", CloneRequest(name="then", source="first"))
        for name, uid, letter in (("now", now.uid, b"b"), ("then", then.uid, b"a")):
            volume = await stored(world, name)
            assert (volume.metadata.uid, volume.status.node, volume.status.phase) == (uid, NODE, "Available")
            assert (volume.spec.lifeform, volume.spec.size) == ("", "1Mi")
            assert volume.metadata.finalizers
            assert (await world.pool.disk(uid)).read_bytes()[:1] == letter
        with pytest.raises(AlreadyExistsError):
            await world.service.clone(NS, "a", CloneRequest(name="now"))
        with pytest.raises(NotFoundError, match="first"):
            await world.service.clone(NS, "a", CloneRequest(name="other", source="second"))
        assert len(await world.pool.list()) == 3

    in_world(tmp_path, test)


def test_content_without_an_object_goes_with_the_next_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: CutWorld) -> None:
        owned = await world.volume("a")
        create = world.service._births.create

        async def die(*_: Any) -> Any:
            raise _Dead

        for name in ("create", "_settle"):
            monkeypatch.setattr(world.service._births, name, die)
        with pytest.raises(_Dead):
            await world.service.clone(NS, "a", CloneRequest(name="lost"))
        monkeypatch.setattr(world.service._births, "create", create)
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # it dies before it has forgotten
        kept = await world.service.clone(NS, "a", CloneRequest(name="kept"))
        monkeypatch.undo()
        assert len(await world.pool.list()) == 3
        again = Births(world.pool, world.registry, NODE, tmp_path / "births")
        going_on = await world.service.clone(NS, "a", CloneRequest(name="going-on"))
        await again.clear()
        assert {each.name for each in await world.pool.list()} == {owned.uid, kept.uid, going_on.uid}
        assert not list((tmp_path / "births").iterdir())

    in_world(tmp_path, test)


async def _sent(stream: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """In pieces of another size."""
    rest = b""
    async for chunk in stream:
        rest += chunk
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest:
        yield rest


@pytest.mark.parametrize("name", ["disk.img", "disk.img.gz", "disk.img.zst"])
def test_an_image_goes_out_and_comes_in_again(tmp_path: Path, name: str) -> None:
    async def test(world: CutWorld) -> None:
        owned = await world.volume("a", size_bytes=4 * SIZE)
        rng = random.Random(name)
        for _ in range(40):
            await fill(world, owned.uid, rng.randbytes(1), rng.randrange(4 * SIZE // BLOCK) * BLOCK)
        reader, writer = DeltaReader(), None
        async for chunk in _sent(world.service.export(NS, "a"), 1000):
            for part in reader.feed(chunk):
                assert reader.header is not None
                writer = writer or ImageWriter(tmp_path / name, reader.header.delta.manifest.size_bytes)
                writer.put(part)
        assert reader.header is not None and writer is not None
        reader.close()
        writer.finish(reader.header.delta.manifest.root)
        writer.close()
        image = ImageReader(tmp_path / name)
        assert image.delta.manifest.root == reader.header.delta.manifest.root
        made = await world.service.import_(NS, ImportRequest(name="b", size_bytes=5 * SIZE), _sent(_encoded(image), 777))
        original = (await world.pool.disk(owned.uid)).read_bytes()
        assert (await world.pool.disk(made.uid)).read_bytes() == original + bytes(SIZE)
        volume = await stored(world, "b")
        assert (volume.spec.size, volume.status.node, made.root) == ("5Mi", NODE, image.delta.manifest.root)

    in_world(tmp_path, test)


def test_an_image_of_another_content_is_not_shown(tmp_path: Path) -> None:
    for name in ("disk.img", "disk.img.gz"):
        writer = ImageWriter(tmp_path / name, SIZE)
        writer.put(Part(Range(0, BLOCK), b"x" * BLOCK))
        with pytest.raises(DamagedImageError):
            writer.finish("0" * 64)
        writer.close()
    assert list(tmp_path.iterdir()) == []


async def _encoded(image: ImageReader, damage: Callable[[bytes], bytes] = lambda frame: frame) -> AsyncIterator[bytes]:
    writer = DeltaWriter()
    yield writer.header(image.delta)
    for part in image.parts():
        yield damage(writer.part(part))
    yield writer.end()


def test_an_image_that_arrives_damaged_or_half_leaves_nothing(tmp_path: Path) -> None:
    async def test(world: CutWorld) -> None:
        file = tmp_path / "disk.img"
        file.write_bytes(random.Random(1).randbytes(300_000) + bytes(500_000) + b"end")
        image = ImageReader(file)

        async def half() -> AsyncIterator[bytes]:
            async for chunk in _encoded(image):
                yield chunk
                break

        async def cut_off() -> AsyncIterator[bytes]:
            async for chunk in half():
                yield chunk
            raise ConnectionResetError

        flipped = _encoded(image, lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]))
        for stream in (half(), flipped, _nothing(), _encoded(image, lambda frame: b"")):
            with pytest.raises(InvalidError):
                await world.service.import_(NS, ImportRequest(name="b", size_bytes=0), stream)
        with pytest.raises(ConnectionResetError):
            await world.service.import_(NS, ImportRequest(name="b", size_bytes=0), cut_off())
        with pytest.raises(InvalidError):
            await world.service.import_(NS, ImportRequest(name="b", size_bytes=SIZE // 2), _encoded(image))
        assert await world.pool.list() == ()
        assert not list((tmp_path / "births").glob("*"))
        with pytest.raises(NotFoundError):
            await stored(world, "b")
        await world.service.import_(NS, ImportRequest(name="b", size_bytes=0), _encoded(image))

    in_world(tmp_path, test)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def test_a_volume_of_another_node_or_without_a_disk_is_told(tmp_path: Path) -> None:
    async def test(world: CutWorld) -> None:
        with pytest.raises(NotFoundError):
            await world.service.snapshots(NS, "absent")
        await world.volume("a")
        await _give_away(world.registry, "a")
        await world.until(lambda: not world.keeper.owned)
        with pytest.raises(PrimordiaError, match="not of node"):
            await world.service.snapshots(NS, "a")

    in_world(tmp_path, test)


async def _give_away(registry: Registry, name: str) -> None:
    def change(volume: Volume) -> Volume:
        return msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, node="n2"))

    await registry.mutate(Volume, name, NS, change, status=True)


# ---------------------------------------------------------------- standing still


@asynccontextmanager
async def running(world: CutWorld, guest: FakeGuest) -> AsyncIterator[None]:
    """A guest runs with the volume."""
    owned = world.keeper.find(NS, "a")
    assert owned is not None
    live = _Running()
    live.guest = guest
    owned.users.append(live)  # type: ignore[arg-type]
    try:
        yield
    finally:
        owned.users.clear()


class _Guest:
    """The data calls of a guest that a test makes slow or deaf."""

    def __init__(self) -> None:
        self.agent = FakeAgent.__new__(FakeAgent)
        self.agent.data_still = None
        self.deaf = False
        self.stood: list[bool] = []

    async def freeze_data(self, deadline_s: float) -> None:
        if self.deaf:
            await asyncio.get_running_loop().create_future()
        self.agent.still_data(deadline_s)

    async def thaw_data(self) -> None:
        self.agent.thaw_data()


@pytest.mark.parametrize(("case", "quiesced"), [("well", True), ("deaf", False), ("slow cut", False), ("died", False)])
def test_a_guest_stands_still_for_a_cut_or_the_cut_says_that_it_did_not(tmp_path: Path, case: str, quiesced: bool) -> None:
    async def test(world: CutWorld) -> None:
        owned = await world.volume("a")
        guest = _Guest()
        guest.deaf = case == "deaf"
        cut = world.pool.cut

        async def watched(volume: str, **options: Any) -> Manifest:
            await world.clock.sleep(still.DEADLINE_S + 1 if case == "slow cut" else 0.01)
            guest.stood.append(guest.agent.data_still is not None)
            return await cut(volume, **options)

        world.pool.cut = watched  # type: ignore[method-assign]
        if case == "died":
            guest.freeze_data = _gone  # type: ignore[method-assign]
        async with running(world, guest):  # type: ignore[arg-type]
            taken = await world.service.snapshot(NS, "a", SnapshotRequest(quiesce=True))
        assert (taken.quiesced, guest.stood) == (quiesced, [quiesced])
        assert bool(taken.note) != quiesced
        assert guest.agent.data_still is None
        assert taken.snapshot.number == 1 and owned.newest is not None
        taken = await world.service.snapshot(NS, "a", SnapshotRequest(quiesce=True))
        assert taken.quiesced and not taken.note  # nothing runs: it stands

    in_world(tmp_path, test)


async def _gone(deadline_s: float) -> None:
    raise TemporaryError("The channel to the guest's agent was closed.")

"""The informer: equal to the store, every step told once, whatever happens to the watch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from primordia.drivers.store_memory import MemoryStore
from primordia.ports.store import Compare, Delete, Listing, Put, StoreUnavailableError, TxnResult, WatchBatch
from primordia.registry.codec import Change, with_metadata
from primordia.registry.informer import Informer
from primordia.registry.registry import Registry
from primordia.testing.store import HandClock, settle
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Node, NodeSpec, Secret


class FlakyStore(MemoryStore):
    """A memory store that can be away: lists and watches fail, and watches under way break."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__(clock)
        self.away = False
        self.lists = 0
        self._broken = asyncio.Event()

    def cut(self) -> None:
        self.away = True
        self._broken.set()

    def mend(self) -> None:
        self.away = False
        self._broken = asyncio.Event()

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        self._check()
        self.lists += 1
        return await super().list(prefix, limit=limit, after=after, revision=revision)

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        self._check()
        async with super().watch(prefix, after_revision=after_revision) as batches:
            yield self._until_broken(batches)

    async def _until_broken(self, batches: AsyncIterator[WatchBatch]) -> AsyncIterator[WatchBatch]:
        broken = asyncio.ensure_future(self._broken.wait())
        following: asyncio.Future[WatchBatch] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(batches))
                await asyncio.wait({following, broken}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise StoreUnavailableError("The store is away.")
                yield following.result()
        finally:
            for future in (broken, following):
                if future is not None:
                    future.cancel()
                    await asyncio.gather(future, return_exceptions=True)

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailableError("The store is away.")


class World:
    """A registry, an informer that runs, and what it told."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.store = FlakyStore(self.clock)
        self.registry = Registry(self.store, self.clock)
        self.informer = Informer(self.registry, Node, rng=random.Random(1))
        self.told: list[Change[Node]] = []
        self.informer.subscribe(self.told.append)

    async def create(self, *names: str, **spec: bool) -> None:
        for name in names:
            await self.registry.create(Node(metadata=ObjectMeta(name=name), spec=NodeSpec(**spec)))

    async def stored(self) -> tuple[Node, ...]:
        return (await self.registry.list(Node)).items

    def steps(self) -> list[str]:
        """What was told, as +name, -name or =name."""
        return [f"{'+' if each.old is None else '-' if each.new is None else '='}{name_of(each)}" for each in self.told]


def name_of(change: Change[Node]) -> str:
    obj = change.new or change.old
    assert obj is not None
    return obj.metadata.name


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.create("a", "b")
    task = asyncio.create_task(world.informer.run())
    await world.informer.synced()
    yield world
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.store.close()


def cordoned(obj: Node) -> Node:
    return msgspec.structs.replace(obj, spec=NodeSpec(unschedulable=True))


async def test_the_cache_follows_the_store(world: World) -> None:
    await world.create("c")
    await world.registry.mutate(Node, "a", "", cordoned)
    await world.registry.delete(Node, "b")
    await settle()
    assert world.steps() == ["+a", "+b", "+c", "=a", "-b"]
    assert world.informer.items() == await world.stored()
    found = world.informer.get("a")
    assert found is not None
    assert found.spec.unschedulable
    assert world.informer.get("b") is None


async def test_a_chain_of_changes_has_no_gap(world: World) -> None:
    for number in range(20):
        await world.registry.mutate(Node, "a", "", lambda obj, n=number: with_metadata(obj, labels={"n": str(n)}))  # type: ignore[misc]
    await settle()
    chain = [change for change in world.told if name_of(change) == "a"]
    assert len(chain) == 21
    for before, after in itertools.pairwise(chain):
        assert before.new == after.old


async def test_an_outage_is_waited_out_without_listing_again(world: World) -> None:
    lists = world.store.lists
    world.store.cut()
    await world.clock.advance(30)
    await world.create("c")
    await world.registry.delete(Node, "a")
    world.store.mend()
    await world.clock.advance(10)
    assert world.steps() == ["+a", "+b", "+c", "-a"]
    assert world.store.lists == lists


async def test_after_compaction_it_lists_again_and_tells_the_difference(world: World) -> None:
    unchanged = world.informer.get("b")
    world.store.cut()
    await settle()
    await world.create("c")
    await world.registry.mutate(Node, "c", "", cordoned)
    await world.registry.delete(Node, "a")
    await world.create("a2")
    await world.store.compact((await world.store.status()).revision)
    world.store.mend()
    await world.clock.advance(20)
    assert world.steps() == ["+a", "+b", "-a", "+a2", "+c"]
    assert world.informer.resyncs == 2
    assert world.informer.get("b") is unchanged
    assert world.informer.items() == await world.stored()


async def test_another_object_under_the_same_name_is_gone_and_new(world: World) -> None:
    world.store.cut()
    await settle()
    await world.registry.delete(Node, "a")
    await world.create("a")
    await world.store.compact((await world.store.status()).revision)
    world.store.mend()
    await world.clock.advance(20)
    assert world.steps() == ["+a", "+b", "-a", "+a"]
    assert world.told[2].old != world.told[3].new


async def test_what_becomes_unreadable_stays_as_it_was_known(world: World) -> None:
    """A newer version's object must not look like a deletion: its node would stop a running microVM."""
    await world.store.txn([], [Put("/primordia/nodes/a", b'{"kind":"Node","metadata":{"name":"a"},"future":1}')])
    await settle()
    assert world.informer.get("a") is not None
    world.store.cut()
    await world.create("c")
    await world.store.compact((await world.store.status()).revision)
    world.store.mend()
    await world.clock.advance(20)
    assert world.steps() == ["+a", "+b", "+c"]
    assert world.informer.get("a") is not None


async def test_a_failing_subscriber_ends_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: Change[Node]) -> None:
        raise RuntimeError("broken subscriber")

    world.informer.subscribe(fail)
    late: list[Change[Node]] = []
    world.informer.subscribe(late.append)
    assert [name_of(change) for change in late] == ["a", "b"]
    await world.create("c")
    await settle()
    assert world.steps() == ["+a", "+b", "+c"]
    assert [name_of(change) for change in late] == ["a", "b", "c"]
    assert "broken subscriber" in caplog.text


async def test_indexes_follow(world: World) -> None:
    world.informer.index("cordoned", lambda obj: obj.spec.unschedulable)
    world.informer.index("zone", lambda obj: obj.metadata.labels.get("zone"))
    await world.create("c", unschedulable=True)
    await world.registry.mutate(Node, "a", "", lambda obj: with_metadata(cordoned(obj), labels={"zone": "z"}))
    await settle()
    assert [obj.metadata.name for obj in world.informer.by_index("cordoned", True)] == ["a", "c"]
    assert [obj.metadata.name for obj in world.informer.by_index("cordoned", False)] == ["b"]
    assert [obj.metadata.name for obj in world.informer.by_index("zone", "z")] == ["a"]
    await world.registry.delete(Node, "a")
    await settle()
    assert world.informer.by_index("zone", "z") == ()
    assert world.informer.by_index("zone", None) == ()


async def test_it_waits_for_a_store_that_comes_late() -> None:
    world = World()
    world.store.cut()
    task = asyncio.create_task(world.informer.run())
    await world.clock.advance(60)
    assert not world.informer.is_synced
    world.store.mend()
    await world.create("a")
    await world.clock.advance(10)
    assert world.informer.is_synced
    assert world.steps() == ["+a"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.store.close()


async def test_one_namespace() -> None:
    world = World()
    informer = Informer(world.registry, Secret, namespace="x")
    task = asyncio.create_task(informer.run())
    await informer.synced()
    for namespace in ("x", "y"):
        await world.registry.create(Secret(metadata=ObjectMeta(name="s", namespace=namespace)))
    await settle()
    assert [obj.metadata.namespace for obj in informer.items()] == ["x"]
    assert informer.get("s", "x") is not None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.store.close()


@pytest.mark.parametrize("seed", range(20))
async def test_it_ends_equal_to_the_store_whatever_happens(seed: int) -> None:
    """A seeded world of changes, outages and compactions; a mirror built from what was told is the store."""
    world, rng = World(), random.Random(seed)
    mirror: dict[str, Node] = {}

    def apply(change: Change[Node]) -> None:
        assert mirror.get(name_of(change)) == change.old
        if change.new is None:
            del mirror[name_of(change)]
        else:
            mirror[name_of(change)] = change.new

    failures: list[AssertionError] = []

    def checked(change: Change[Node]) -> None:
        try:
            apply(change)
        except AssertionError as error:
            failures.append(error)

    world.informer.subscribe(checked)
    task = asyncio.create_task(world.informer.run())
    for _ in range(150):
        await random_step(world, rng)
    world.store.mend()
    await world.clock.advance(60)
    assert not failures
    assert tuple(mirror[name] for name in sorted(mirror)) == await world.stored() == world.informer.items()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.store.close()


async def random_step(world: World, rng: random.Random) -> None:
    key = f"/primordia/nodes/n{rng.randrange(6)}"
    operations: Sequence[Put | Delete] = [Delete(key)]
    if rng.random() < 0.7:
        obj = Node(metadata=ObjectMeta(name=key.rsplit("/", 1)[1], uid=f"u{rng.randrange(3)}", generation=rng.randrange(99)))
        operations = [Put(key, msgspec.json.encode(obj))]
    result: TxnResult = await world.store.txn([Compare(key, "mod", 0)] if rng.random() < 0.2 else [], operations)
    match rng.randrange(12):
        case 0:
            world.store.cut()
        case 1:
            world.store.mend()
        case 2:
            await world.store.compact(result.revision)
        case 3 | 4:
            await world.clock.advance(rng.choice([0.1, 1, 7]))
        case 5 | 6:
            await settle(3)


async def test_100_000_objects_are_affordable() -> None:
    world = World()
    values = [Node(metadata=ObjectMeta(name=f"n{number:06d}", uid=f"u{number}")) for number in range(100_000)]
    for start in range(0, len(values), 500):
        await world.store.txn(
            [], [Put(f"/primordia/nodes/{obj.metadata.name}", msgspec.json.encode(obj)) for obj in values[start : start + 500]]
        )
    world.informer.index("kind", lambda obj: obj.metadata.name[-1])
    task = asyncio.create_task(world.informer.run())
    await world.informer.synced()
    assert len(world.informer.items()) == 100_000
    assert len(world.informer.by_index("kind", "7")) == 10_000
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.store.close()

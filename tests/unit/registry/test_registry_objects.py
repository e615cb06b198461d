"""The registry's rules: revisions, generations, finalizers, preconditions, and what cannot be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from primordia.drivers.store_memory import MemoryStore
from primordia.kit.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, PermanentError
from primordia.ports.store import CompactedError, Compare, Put, StoreUnavailableError, TxnResult
from primordia.registry import keys
from primordia.registry.births import create_with_uid
from primordia.registry.codec import with_metadata
from primordia.registry.registry import Registry, same, unchanged
from primordia.registry.together import write_together
from primordia.testing.store import HandClock
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Image, Node, NodeSpec, NodeStatus, Secret


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    clock = HandClock()
    store = MemoryStore(clock)
    yield Registry(store, clock)
    await store.close()


def node(name: str = "n1", **meta: object) -> Node:
    return Node(metadata=ObjectMeta(name=name, **meta))  # type: ignore[arg-type]


def secret(name: str, namespace: str = "default", **data: str) -> Secret:
    return Secret(metadata=ObjectMeta(name=name, namespace=namespace), data=data)


def cordoned(obj: Node) -> Node:
    return msgspec.structs.replace(obj, spec=NodeSpec(unschedulable=True))


def at(obj: Node, address: str) -> Node:
    return msgspec.structs.replace(obj, status=NodeStatus(address=address))


async def test_create_gives_identity(registry: Registry) -> None:
    made = await registry.create(node(uid="mine", resource_version="99", labels={"a": "b"}))
    meta = made.metadata
    assert meta.uid not in {"", "mine"}
    assert meta.resource_version == "2"
    assert (meta.generation, meta.labels, meta.creation_timestamp) == (1, {"a": "b"}, "2026-01-01T00:16:40Z")
    assert await registry.get(Node, "n1") == made
    assert (await registry.create(secret("s"))).metadata.generation == 0


async def test_create_refuses_what_exists(registry: Registry) -> None:
    await registry.create(secret("s"))
    with pytest.raises(AlreadyExistsError, match="Secret default/s exists already"):
        await registry.create(secret("s"))
    await registry.create(secret("s", "other"))


async def test_names_can_be_generated(registry: Registry) -> None:
    prefix = Node(metadata=ObjectMeta(generate_name="worker-"))
    names = {(await registry.create(prefix)).metadata.name for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("worker-") and len(name) > len("worker-") for name in names)


@pytest.mark.parametrize(("name", "namespace"), [("", "d"), ("a/b", "d"), ("a", ""), ("a", "d/e"), ("a\0", "d")])
async def test_a_name_is_one_segment(registry: Registry, name: str, namespace: str) -> None:
    with pytest.raises(InvalidError, match="metadata"):
        await registry.create(secret(name, namespace))
    with pytest.raises(InvalidError):
        await registry.get(Secret, name, namespace)


async def test_the_resource_version_is_not_stored(registry: Registry) -> None:
    made = await registry.create(node())
    item = await registry.store.get(keys.key_of_object(made))
    assert item is not None
    assert b"resourceVersion" not in item.value
    assert msgspec.json.decode(item.value)["kind"] == "Node"


async def test_missing_things_are_named(registry: Registry) -> None:
    for call in (registry.get(Secret, "s", "d"), registry.update(secret("s", "d")), registry.delete(Secret, "s", "d")):
        with pytest.raises(NotFoundError, match="Secret d/s does not exist"):
            await call


# ---------------------------------------------------------------- updates


async def test_update_changes_spec_and_labels_and_keeps_the_rest(registry: Registry) -> None:
    made = await registry.update_status(at(await registry.create(node()), "10.0.0.1"))
    wanted = with_metadata(cordoned(at(made, "forged")), labels={"x": "y"}, creation_timestamp="1999", generation=77)
    changed = await registry.update(wanted)
    assert changed.spec.unschedulable
    assert changed.status.address == "10.0.0.1"
    assert changed.metadata.labels == {"x": "y"}
    assert changed.metadata.creation_timestamp == made.metadata.creation_timestamp
    assert changed.metadata.uid == made.metadata.uid
    assert changed == await registry.get(Node, "n1")


async def test_generation_counts_changes_of_the_spec_only(registry: Registry) -> None:
    obj = await registry.create(node())
    obj = await registry.update(with_metadata(obj, labels={"x": "y"}))
    obj = await registry.update_status(at(obj, "10.0.0.1"))
    assert obj.metadata.generation == 1
    obj = await registry.update(cordoned(obj))
    assert obj.metadata.generation == 2


async def test_a_change_of_nothing_is_not_written(registry: Registry) -> None:
    obj = await registry.create(node())
    assert await registry.update(obj) == obj
    assert await registry.update_status(obj) == obj
    assert (await registry.store.status()).revision == int(obj.metadata.resource_version)


async def test_a_stale_version_and_a_foreign_uid_conflict(registry: Registry) -> None:
    old = await registry.create(node())
    await registry.update(cordoned(old))
    with pytest.raises(ConflictError, match="Node n1 was not changed: it is at version 3 and not 2"):
        await registry.update(with_metadata(old, labels={"x": "y"}))
    with pytest.raises(ConflictError, match="version 3"):
        await registry.update_status(at(old, "a"))
    with pytest.raises(ConflictError, match="another object of that name"):
        await registry.update(with_metadata(old, resource_version="", uid="other"))
    unguarded = await registry.update(with_metadata(old, resource_version="", labels={"x": "y"}))
    assert unguarded.metadata.labels == {"x": "y"}


async def test_status_is_for_kinds_that_have_one(registry: Registry) -> None:
    made = await registry.create(secret("s"))
    with pytest.raises(PermanentError, match="Secret has no status"):
        await registry.update_status(made)
    changed = await registry.update(msgspec.structs.replace(made, data={"a": "MQ=="}))
    assert changed.data == {"a": "MQ=="}


async def test_mutate_from_many_sides_loses_nothing(registry: Registry) -> None:
    await registry.create(node())

    async def label(number: int) -> None:
        await registry.mutate(Node, "n1", "", lambda obj: with_metadata(obj, labels={**obj.metadata.labels, f"l{number}": "x"}))

    await asyncio.gather(*(label(number) for number in range(20)))
    assert len((await registry.get(Node, "n1")).metadata.labels) == 20


async def test_mutate_reads_again_when_it_lost(registry: Registry) -> None:
    await registry.create(node())
    tries: list[str] = []

    def change(obj: Node) -> Node:
        tries.append(obj.metadata.resource_version)
        if len(tries) == 1:
            other = with_metadata(obj, labels={"other": "x"})
            registry.store._commit([Put("/primordia/nodes/n1", msgspec.json.encode(other))])  # type: ignore[attr-defined]
        return at(obj, "a")

    done = await registry.mutate(Node, "n1", "", change, status=True)
    assert tries == ["2", "3"]
    assert (done.status.address, done.metadata.labels) == ("a", {"other": "x"})


async def test_mutate_of_what_is_known_reads_nothing_while_that_is_true(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await registry.create(node("n1"))
    seen: list[str] = []

    def change(obj: Node) -> Node:
        seen.append(obj.metadata.resource_version)
        return with_metadata(obj, labels={**obj.metadata.labels, str(len(seen)): "x"})

    async def never(key: str) -> None:
        raise AssertionError(f"{key} was read")

    with monkeypatch.context() as blind:
        blind.setattr(registry.store, "get", never)
        second = await registry.mutate(Node, "n1", "", change, known=made)
        third = await registry.mutate(Node, "n1", "", change, known=made)  # which it is no more
    assert seen == [made.metadata.resource_version, made.metadata.resource_version, second.metadata.resource_version]
    assert set(third.metadata.labels) == {"1", "3"}
    assert third == await registry.get(Node, "n1")


async def test_what_is_only_believed_refuses_nothing(registry: Registry) -> None:
    made = await registry.create(node("n1"))
    now = await registry.mutate(Node, "n1", "", lambda obj: with_metadata(obj, labels={"ready": "x"}))

    def change(obj: Node) -> Node | None:
        if not obj.metadata.labels:
            raise ConflictError("It is not ready.")
        return with_metadata(obj, labels={"done": "x"})

    assert (await registry.mutate(Node, "n1", "", change, known=made)).metadata.labels == {"done": "x"}
    assert (await registry.mutate(Node, "n1", "", lambda obj: None, known=now)).metadata.labels == {"done": "x"}
    with pytest.raises(NotFoundError):
        await registry.delete(Node, "n1")
        await registry.mutate(Node, "n1", "", change, known=made)


async def test_mutate_may_decide_against_it(registry: Registry) -> None:
    made = await registry.create(node())
    assert await registry.mutate(Node, "n1", "", lambda _: None) == made
    with pytest.raises(NotFoundError):
        await registry.mutate(Node, "n2", "", lambda obj: obj)


# ---------------------------------------------------------------- deletion


async def test_delete_without_finalizers_removes(registry: Registry) -> None:
    made = await registry.create(node())
    gone = await registry.delete(Node, "n1")
    assert int(gone.metadata.resource_version) > int(made.metadata.resource_version)
    with pytest.raises(NotFoundError):
        await registry.get(Node, "n1")


async def test_finalizers_hold_an_object_until_the_last_is_gone(registry: Registry) -> None:
    made = await registry.create(node(finalizers=("a", "b")))
    marked = await registry.delete(Node, "n1")
    assert marked.metadata.deletion_timestamp == "2026-01-01T00:16:40Z"
    assert marked.metadata.generation == made.metadata.generation
    assert await registry.delete(Node, "n1") == marked
    with pytest.raises(InvalidError, match=r"metadata\.finalizers: c cannot be added"):
        await registry.update(with_metadata(marked, finalizers=("a", "b", "c")))
    left = await registry.update(with_metadata(marked, finalizers=("b",), deletion_timestamp=None))
    assert left.metadata.deletion_timestamp == marked.metadata.deletion_timestamp
    await registry.update(with_metadata(left, finalizers=()))
    with pytest.raises(NotFoundError):
        await registry.get(Node, "n1")


GONE = Compare("somebody", "mod", 7)
"""A guard that does not hold."""


class HastyClock(HandClock):
    """Time passes when somebody waits."""

    async def sleep(self, seconds: float) -> None:
        self._now += seconds


class Unanswered:
    """A store whose first `lost` transactions get no answer, `done` or not."""

    def __init__(self, registry: Registry, monkeypatch: pytest.MonkeyPatch, *, done: bool, lost: int = 1) -> None:
        self.calls = 0
        registry.clock = HastyClock()
        txn = registry.store.txn

        async def answer(*args: Any, **kwargs: Any) -> TxnResult:
            self.calls += 1
            result = await txn(*args, **kwargs) if done or self.calls > lost else None
            if self.calls <= lost or result is None:
                raise StoreUnavailableError("No answer.")
            return result

        monkeypatch.setattr(registry.store, "txn", answer)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("finalizers", [(), ("somebody",)])
async def test_a_deletion_without_an_answer_is_looked_for(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, done: bool, finalizers: tuple[str, ...]
) -> None:
    await registry.create(node(finalizers=finalizers))
    store = Unanswered(registry, monkeypatch, done=done)
    await registry.delete(Node, "n1")
    assert store.calls == 2
    if finalizers:
        assert (await registry.get(Node, "n1")).metadata.deletion_timestamp is not None
    else:
        with pytest.raises(NotFoundError):
            await registry.get(Node, "n1")


@pytest.mark.parametrize("done", [True, False])
async def test_a_creation_without_an_answer_is_done_once(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    store = Unanswered(registry, monkeypatch, done=done, lost=2)
    made = await registry.create(node())
    assert store.calls == 3
    assert made == await registry.get(Node, "n1")
    with pytest.raises(AlreadyExistsError):
        await registry.create(node())


@pytest.mark.parametrize("done", [True, False])
async def test_a_birth_without_an_answer_happens_once(registry: Registry, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    store = Unanswered(registry, monkeypatch, done=done, lost=2)
    born = await create_with_uid(registry, with_metadata(node(), uid="mine"))
    assert store.calls == 3
    assert born == await registry.get(Node, "n1")
    with pytest.raises(AlreadyExistsError):
        await create_with_uid(registry, with_metadata(node(), uid="another"))


async def test_a_birth_without_an_answer_is_not_taken_for_another(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    other = await registry.create(node())
    Unanswered(registry, monkeypatch, done=False)
    with pytest.raises(AlreadyExistsError):
        await create_with_uid(registry, with_metadata(node(), uid="mine"))
    assert await registry.get(Node, "n1") == other


@pytest.mark.parametrize("done", [True, False])
async def test_a_change_without_an_answer_is_done_once(registry: Registry, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    made = await registry.create(node())
    store = Unanswered(registry, monkeypatch, done=done)
    changed = await registry.update(cordoned(made))
    assert store.calls == 2
    assert changed == await registry.get(Node, "n1")
    assert int(changed.metadata.resource_version) == int(made.metadata.resource_version) + 1


@pytest.mark.parametrize("done", [True, False])
async def test_what_is_written_together_without_an_answer_is_written_once(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    made = await registry.create(node())
    store = Unanswered(registry, monkeypatch, done=done, lost=2)
    changed, born = await write_together(registry, [(made, cordoned(made)), (None, with_metadata(node(), name="n2"))])
    assert store.calls == 3
    assert changed == await registry.get(Node, "n1")
    assert born == await registry.get(Node, "n2")
    assert changed.metadata.resource_version == born.metadata.resource_version


async def test_what_another_changed_is_not_written_together(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await registry.create(node())
    await registry.update(cordoned(made))
    for wanted in (made, with_metadata(made, labels={"a": "b"})):
        Unanswered(registry, monkeypatch, done=False)
        with pytest.raises(ConflictError):
            await write_together(registry, [(made, wanted)])
    now = await registry.get(Node, "n1")
    with pytest.raises(ConflictError):  # as it is, but not by this
        Unanswered(registry, monkeypatch, done=False)
        await write_together(registry, [(now, now)], [GONE])


async def test_a_change_that_another_overtook_says_so(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await registry.create(node())
    await registry.update(cordoned(made))
    Unanswered(registry, monkeypatch, done=False)
    with pytest.raises(ConflictError):
        await registry.update(with_metadata(made, labels={"a": "b"}))


async def test_an_engine_that_stays_away_is_not_waited_for_long(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    Unanswered(registry, monkeypatch, done=False, lost=10**6)
    begun = registry.clock.boottime()
    with pytest.raises(StoreUnavailableError):
        await registry.create(node())
    assert 3 <= registry.clock.boottime() - begun < 60


async def test_delete_has_preconditions(registry: Registry) -> None:
    made = await registry.create(node())
    with pytest.raises(ConflictError, match="uid"):
        await registry.delete(Node, "n1", uid="other")
    with pytest.raises(ConflictError, match="version"):
        await registry.delete(Node, "n1", resource_version="1")
    await registry.delete(Node, "n1", uid=made.metadata.uid, resource_version=made.metadata.resource_version)


# ---------------------------------------------------------------- transactions


async def test_create_all_is_all_or_nothing(registry: Registry) -> None:
    owner = await registry.create(node("owner"))
    made = await registry.create_all([secret("a"), secret("b"), node("n2")], guards=[unchanged(owner)])
    assert {obj.metadata.resource_version for obj in made} == {"3"}
    with pytest.raises(ConflictError, match="Secret default/b exists already"):
        await registry.create_all([secret("c"), secret("b")])
    await registry.update(cordoned(owner))
    with pytest.raises(ConflictError, match="something they depend on changed"):
        await registry.create_all([secret("c")], guards=[unchanged(owner)])
    assert len(await registry.create_all([secret("c")], guards=[same(owner, 2)])) == 1
    with pytest.raises(ConflictError):
        await registry.create_all([secret("d")], guards=[Compare("/primordia/leases/n1", "create", 7)])
    assert [obj.metadata.name for obj in (await registry.list(Secret)).items] == ["a", "b", "c"]


# ---------------------------------------------------------------- lists and watches


async def test_lists_keep_to_their_namespace(registry: Registry) -> None:
    for name, namespace in (("a", "x"), ("b", "xy"), ("c", "x"), ("a", "w")):
        await registry.create(secret(name, namespace))
    page = await registry.list(Secret, "x")
    assert [obj.metadata.name for obj in page.items] == ["a", "c"]
    paths = [(obj.metadata.namespace, obj.metadata.name) for obj in (await registry.list(Secret)).items]
    assert paths == [("w", "a"), ("x", "a"), ("x", "c"), ("xy", "b")]
    assert (await registry.list(Image)).items == ()


@pytest.mark.parametrize("limit", [0, 1, 7, 499, 500, 501, 1200, 5000])
async def test_pages_are_one_state(registry: Registry, limit: int) -> None:
    expected = []
    for start in range(0, 1200, 300):
        batch = [secret(f"s{number:04d}") for number in range(start, start + 300)]
        expected.extend(await registry.create_all(batch))
    page = await registry.list(Secret, limit=limit)
    await registry.delete(Secret, "s0600", "default")
    items, revision = list(page.items), page.revision
    while page.more:
        assert len(page.items) == limit
        assert page.remaining == 1200 - len(items)
        page = await registry.list(Secret, limit=limit, after=page.after, revision=page.revision)
        items.extend(page.items)
        assert page.revision == revision
    assert items == expected
    assert (page.after, page.remaining) == ("", 0)


async def test_what_cannot_be_read_hides_itself_only(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    await registry.create(node("a"))
    for name, value in (("b", b"not json"), ("c", b'{"kind":"Node","metadata":{},"future":1}'), ("d", b"\xff")):
        await registry.store.txn([], [Put(f"/primordia/nodes/{name}", value)])
    await registry.create(node("e"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            page = await registry.list(Node)
    assert [obj.metadata.name for obj in page.items] == ["a", "e"]
    assert page.undecodable == ("b", "c", "d")
    assert registry.undecodable == 9
    assert len(caplog.records) == 3
    assert "future" in caplog.text
    with pytest.raises(PermanentError, match="Node b is stored in a form"):
        await registry.get(Node, "b")
    page = await registry.list(Node, limit=2)
    assert (len(page.items), page.more, page.after) == (1, True, "b")


async def test_a_watch_gives_typed_changes(registry: Registry) -> None:
    start = (await registry.store.status()).revision
    async with registry.watch(Node, after_revision=start) as changes:
        made = await registry.create(node())
        await registry.create(secret("not-a-node"))
        changed = await registry.update(cordoned(made))
        await registry.store.txn([], [Put("/primordia/nodes/bad", b"bad")])
        await registry.delete(Node, "n1")
        found = [await anext(changes) for _ in range(3)]
    assert [(each.old, each.new) for each in found] == [(None, made), (made, changed), (changed, None)]
    assert [each.revision for each in found] == [2, 4, 6]


async def test_a_watch_of_one_namespace_and_of_the_forgotten(registry: Registry) -> None:
    start = (await registry.store.status()).revision
    await registry.create(secret("a", "x"))
    mine = await registry.create(secret("b", "y"))
    async with registry.watch(Secret, "y", after_revision=start, bookmarks=True) as changes:
        assert (await anext(changes)).new == mine
        mark = await anext(changes)
        assert (mark.old, mark.new, mark.revision) == (None, None, 3)
    await registry.store.compact(3)
    with pytest.raises(CompactedError):
        async with registry.watch(Secret, after_revision=start) as changes:
            await anext(changes)

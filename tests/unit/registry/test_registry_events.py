"""Events: equal ones counted, never in the way, gone after an hour, bounded while the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from primordia.drivers.store_memory import MemoryStore
from primordia.ports.store import Compare, Delete, Put, StoreUnavailableError, TxnResult
from primordia.registry.events import EventRecorder
from primordia.registry.registry import Registry
from primordia.testing.store import HandClock
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Event, Node, Secret


class AwayStore(MemoryStore):
    """A memory store whose writes fail while it is away."""

    away = False

    async def txn(
        self, guards: Sequence[Compare], operations: Sequence[Put | Delete], *, read_if_failed: Sequence[str] = ()
    ) -> TxnResult:
        if self.away:
            raise StoreUnavailableError("The store is away.")
        return await super().txn(guards, operations, read_if_failed=read_if_failed)


class Desk:
    def __init__(self, **settings: int) -> None:
        self.clock = HandClock()
        self.store = AwayStore(self.clock)
        self.registry = Registry(self.store, self.clock)
        self.recorder = EventRecorder(self.registry, "node", "n1", **settings)

    async def events(self) -> list[Event]:
        return sorted((await self.registry.list(Event)).items, key=lambda event: event.message)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    task = asyncio.create_task(desk.recorder.run())
    yield desk
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await desk.store.close()


NODE = Node(metadata=ObjectMeta(name="n1", uid="u1"))
SECRET = Secret(metadata=ObjectMeta(name="s", namespace="x", uid="u2"))


async def test_an_event_says_about_whom_by_whom_and_when(desk: Desk) -> None:
    desk.recorder.record(SECRET, "Mounted", "in /run", warning=True)
    await desk.clock.advance(1)
    (event,) = await desk.events()
    assert event.metadata.namespace == "x"
    assert event.metadata.name.startswith("s.")
    assert (event.involved_object.kind, event.involved_object.name, event.involved_object.uid) == ("Secret", "s", "u2")
    assert (event.reason, event.message, event.type, event.count) == ("Mounted", "in /run", "Warning", 1)
    assert (event.source.component, event.source.host) == ("node", "n1")
    assert event.first_timestamp == event.last_timestamp == event.metadata.creation_timestamp


async def test_equal_events_are_one_with_a_count(desk: Desk) -> None:
    for _ in range(5):
        desk.recorder.record(NODE, "BackOff", "restarting")
    desk.recorder.record(NODE, "BackOff", "other words")
    await desk.clock.advance(10)
    desk.recorder.record(NODE, "BackOff", "restarting")
    await desk.clock.advance(1)
    other, event = await desk.events()
    assert (other.count, event.count) == (1, 6)
    assert event.first_timestamp is not None
    assert event.last_timestamp is not None
    assert event.last_timestamp > event.first_timestamp
    assert event.metadata.namespace == "default"


async def test_a_flood_is_few_writes(desk: Desk) -> None:
    before = (await desk.store.status()).revision
    for _ in range(100):
        for _ in range(100):
            desk.recorder.record(NODE, "Flood", "again")
        await desk.clock.advance(0.01)
    await desk.clock.advance(1)
    (event,) = await desk.events()
    assert event.count == 10_000
    assert (await desk.store.status()).revision - before <= 6


async def test_events_are_gone_an_hour_after_the_last(desk: Desk) -> None:
    desk.recorder.record(NODE, "A", "a")
    desk.recorder.record(NODE, "B", "b")
    await desk.clock.advance(1800)
    desk.recorder.record(NODE, "B", "b")
    await desk.clock.advance(1790)
    assert len(await desk.events()) == 2
    await desk.clock.advance(400)
    assert [event.reason for event in await desk.events()] == ["B"]
    await desk.clock.advance(4000)
    assert await desk.events() == []
    desk.recorder.record(NODE, "B", "b")
    await desk.clock.advance(1)
    assert [event.count for event in await desk.events()] == [1]


async def test_an_outage_keeps_what_fits_and_counts_the_rest() -> None:
    desk = Desk(queue=10)
    desk.store.away = True
    task = asyncio.create_task(desk.recorder.run())
    for number in range(15):
        desk.recorder.record(NODE, "R", f"{number:02d}")
        desk.recorder.record(NODE, "R", f"{number:02d}")
    await desk.clock.advance(60)
    assert desk.recorder.dropped == 10
    desk.store.away = False
    await desk.clock.advance(60)
    assert [(event.message, event.count) for event in await desk.events()] == [(f"{n:02d}", 2) for n in range(10)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await desk.store.close()


async def test_what_is_remembered_is_bounded() -> None:
    desk = Desk(remembered=5)
    for number in range(50):
        desk.recorder.record(NODE, "R", str(number))
    assert len(desk.recorder._tallies) == 5
    await desk.store.close()


async def test_a_lease_that_was_lost_is_replaced(desk: Desk) -> None:
    desk.recorder.record(NODE, "A", "a")
    await desk.clock.advance(1)
    await desk.store.revoke(desk.recorder._lease)
    assert await desk.events() == []
    desk.recorder.record(NODE, "B", "b")
    await desk.clock.advance(1)
    assert [event.reason for event in await desk.events()] == ["B"]


async def test_nothing_an_object_is_can_raise(desk: Desk) -> None:
    desk.recorder.record(Node(metadata=ObjectMeta()), "A", "a" * 100_000)
    desk.recorder.record(Node(metadata=ObjectMeta(name="a/b")), "A", "a")
    desk.recorder.record(None, "A", "a")  # type: ignore[arg-type]
    desk.recorder.record(NODE, "B", "b" * 100_000)
    await desk.clock.advance(5)
    events = await desk.events()
    assert "B" in [event.reason for event in events]
    assert max(len(event.message) for event in events) == 1024
    assert not desk.recorder._waiting


async def test_flush_writes_what_waits() -> None:
    desk = Desk()
    desk.recorder.record(NODE, "A", "a")
    await desk.recorder.flush()
    assert len(await desk.events()) == 1
    desk.store.away = True
    desk.recorder.record(NODE, "A", "a")
    with pytest.raises(StoreUnavailableError):
        await desk.recorder.flush()
    desk.store.away = False
    await desk.recorder.flush()
    assert (await desk.events())[0].count == 2
    await desk.store.close()

"""A cache brought up to date by force, while its own watch is late or ahead."""

from __future__ import annotations

import asyncio
import contextlib

from primordia.drivers.store_memory import MemoryStore
from primordia.ports.store import Listing
from primordia.registry.codec import Change
from primordia.registry.informer import Informer
from primordia.registry.registry import Registry
from primordia.sim.objects import make_node
from primordia.sim.store import FaultyStore
from primordia.sim.virtual import VirtualClock, run_virtual
from primordia.wire.resources import Node


class SlowLists(FaultyStore):
    """Reads the list at once and hands it over `hold_s` later."""

    hold_s = 0.0

    async def list(self, prefix: str, *, limit: int = 0, after: str = "", revision: int = 0) -> Listing:
        found = await super().list(prefix, limit=limit, after=after, revision=revision)
        await asyncio.sleep(self.hold_s)
        return found


class World:
    def __init__(self) -> None:
        clock = VirtualClock()
        self.memory = MemoryStore(clock)
        self.sure = Registry(self.memory, clock)
        self.store = SlowLists(self.memory)
        self.informer = Informer(Registry(self.store, clock), Node)
        self.task = asyncio.create_task(self.informer.run())

    def names(self) -> list[str]:
        return [node.metadata.name for node in self.informer.items()]

    async def close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.memory.close()


def test_what_a_late_watch_has_not_told_yet_is_there_after_a_refresh_and_told_once() -> None:
    async def main() -> None:
        world = World()
        await world.informer.synced()
        world.store.late_s = 50.0
        told: list[Change[Node]] = []
        world.informer.subscribe(told.append)
        await world.sure.create(make_node("a"))
        await world.sure.create(make_node("b"))
        await world.sure.delete(Node, "a")
        assert world.names() == []
        await world.informer.refresh()
        assert world.names() == ["b"]
        await asyncio.sleep(500)
        assert world.names() == ["b"] and len(told) == 1
        await world.close()

    run_virtual(main())


def test_a_list_that_the_watch_has_overtaken_takes_nothing_back() -> None:
    async def main() -> None:
        world = World()
        await world.informer.synced()
        await world.sure.create(make_node("a"))
        world.store.hold_s = 10.0
        refreshing = asyncio.create_task(world.informer.refresh())
        await asyncio.sleep(1)
        await world.sure.create(make_node("b"))
        await world.sure.delete(Node, "a")
        await refreshing
        assert world.names() == ["b"]
        await world.close()

    run_virtual(main())


def test_who_has_unsubscribed_is_told_nothing() -> None:
    async def main() -> None:
        world = World()
        await world.informer.synced()
        told: list[Change[Node]] = []
        world.informer.subscribe(told.append)
        world.informer.unsubscribe(told.append)
        world.informer.unsubscribe(told.append)
        await world.sure.create(make_node("a"))
        await asyncio.sleep(1)
        assert world.names() == ["a"] and told == []
        await world.close()

    run_virtual(main())

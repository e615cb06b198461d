"""What a writer tells its own cache: known at once, told once, never against what the store says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from primordia.drivers.store_memory import MemoryStore
from primordia.kit.errors import ConflictError
from primordia.registry.codec import Change
from primordia.registry.informer import Informer
from primordia.registry.registry import Registry
from primordia.sim.store import FaultyStore
from primordia.sim.virtual import VirtualClock, run_virtual
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Node, NodeSpec


class Ground:
    """A registry, and an informer whose watch may be stalled."""

    def __init__(self) -> None:
        clock = VirtualClock()
        self.memory = MemoryStore(clock)
        self.registry = Registry(self.memory, clock)
        self.store = FaultyStore(self.memory)
        self.informer = Informer(Registry(self.store, clock), Node)
        self.told: list[tuple[bool | None, bool | None]] = []
        self.informer.subscribe(self._hear)

    def _hear(self, change: Change[Node]) -> None:
        self.told.append(tuple(None if node is None else node.spec.unschedulable for node in (change.old, change.new)))  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self.informer.run())
        try:
            await self.informer.synced()
            await asyncio.sleep(1)
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            await self.memory.close()

    async def cordon(self, node: Node, value: bool) -> Node:
        return await self.registry.amend(node, msgspec.structs.replace(node, spec=NodeSpec(unschedulable=value)))


def test_what_is_learnt_is_known_before_the_watch_and_told_once() -> None:
    async def story() -> None:
        ground = Ground()
        async with ground.running():
            ground.store.stall(True)
            first = await ground.registry.create(Node(metadata=ObjectMeta(name="n1")))
            second = await ground.cordon(first, True)
            ground.informer.learn(second)
            assert ground.informer.get("n1") == second
            ground.store.stall(False)
            await asyncio.sleep(1)
            # The watch tells of the creation and of the change: both are known, and the older must not come back.
            assert ground.informer.get("n1") == second
            assert ground.told == [(None, True)]
            third = await ground.cordon(second, False)
            await asyncio.sleep(1)
            assert ground.informer.get("n1") == third
            assert ground.told == [(None, True), (True, False)]

    run_virtual(story())


def test_what_was_deleted_since_does_not_come_back_by_being_learnt() -> None:
    async def story() -> None:
        ground = Ground()
        async with ground.running():
            node = await ground.registry.create(Node(metadata=ObjectMeta(name="n1")))
            gone = await ground.registry.delete(Node, "n1")
            await asyncio.sleep(1)
            ground.informer.learn(node)
            ground.informer.learn(gone)
            assert ground.informer.get("n1") is None

    run_virtual(story())


def test_a_list_that_was_made_before_takes_nothing_back() -> None:
    async def story() -> None:
        ground = Ground()
        async with ground.running():
            ground.store.latency_s = 10
            refresh = asyncio.get_running_loop().create_task(ground.informer.refresh())
            ground.store.stall(True)
            await asyncio.sleep(0)
            node = await ground.registry.create(Node(metadata=ObjectMeta(name="n1")))
            ground.informer.learn(node)
            ground.store.stall(False)
            await refresh
            assert ground.informer.get("n1") == node

    run_virtual(story())


def test_a_change_that_is_told_twice_counts_once() -> None:
    async def story() -> None:
        ground = Ground()
        ground.store.repeat = 1.0
        async with ground.running():
            node = await ground.registry.create(Node(metadata=ObjectMeta(name="n1")))
            await asyncio.sleep(1)
            await ground.cordon(node, True)
            await asyncio.sleep(1)
            assert ground.told == [(None, False), (False, True)]

    run_virtual(story())


def test_amend_writes_over_what_was_read_and_nothing_else() -> None:
    async def story() -> None:
        ground = Ground()
        async with ground.running():
            node = await ground.registry.create(Node(metadata=ObjectMeta(name="n1")))
            await ground.cordon(node, True)
            with pytest.raises(ConflictError, match="n1"):
                await ground.cordon(node, True)

    run_virtual(story())

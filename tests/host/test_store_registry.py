"""The registry, an informer and events over a real engine, through its restart."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from primordia.kit.clock import SystemClock
from primordia.kit.errors import ConflictError
from primordia.ports.store import StoreUnavailableError
from primordia.registry.events import EventRecorder
from primordia.registry.informer import Informer
from primordia.registry.registry import Registry
from primordia.testing.store import Engine, own_engine
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Event, Node, NodeSpec, NodeStatus

__all__ = ["own_engine"]

DEADLINE_S = 60


async def until_equal(informer: Informer[Node], registry: Registry) -> None:
    """Wait until the cache is the store, while the engine may be away."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                if informer.items() == (await registry.list(Node)).items:
                    return
            except StoreUnavailableError:
                pass
            await asyncio.sleep(0.05)


async def test_objects_caches_and_events_outlive_the_engines_restart(own_engine: Engine) -> None:
    store = own_engine.store()
    registry = Registry(store, SystemClock())
    informer, recorder = Informer(registry, Node), EventRecorder(registry, "test", "n1")
    tasks = [asyncio.create_task(each.run()) for each in (informer, recorder)]
    try:
        await informer.synced()
        made = await registry.create(Node(metadata=ObjectMeta(name="n1", finalizers=("f",))))
        for number in range(1200):
            await registry.create(Node(metadata=ObjectMeta(name=f"m{number:04d}")))
        await until_equal(informer, registry)
        recorder.record(made, "Made", "it is there")

        await asyncio.to_thread(own_engine.kill)
        recorder.record(made, "Away", "the engine is gone")
        with pytest.raises(StoreUnavailableError):
            await registry.get(Node, "n1")
        await asyncio.to_thread(own_engine.start)

        changed = await registry.mutate(
            Node, "n1", "", lambda obj: msgspec.structs.replace(obj, status=NodeStatus(address="10.77.0.1")), status=True
        )
        with pytest.raises(ConflictError):
            await registry.update(msgspec.structs.replace(made, spec=NodeSpec(unschedulable=True)))
        marked = await registry.delete(Node, "n1", uid=changed.metadata.uid)
        assert marked.metadata.deletion_timestamp
        await until_equal(informer, registry)
        assert informer.get("n1") == marked
        assert informer.resyncs == 1
        async with asyncio.timeout(DEADLINE_S):
            while {event.reason for event in (await registry.list(Event)).items} != {"Made", "Away"}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()

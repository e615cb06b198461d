"""When status is written: the first change at once, those that follow soon after it together."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from primordia.drivers.store_memory import MemoryStore
from primordia.node.status import StatusWriter
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform
from primordia.testing.virtual import VirtualClock, run_virtual
from primordia.wire.resources import Lifeform, LifeformStatus


def test_a_change_alone_is_written_at_once_and_a_burst_in_one() -> None:
    async def main() -> None:
        clock = VirtualClock()
        store = MemoryStore(clock)
        registry = Registry(store, clock)
        lifeform = await registry.create(make_lifeform("shop"))
        writer = StatusWriter(registry, clock)
        running = asyncio.get_running_loop().create_task(writer.run())
        await clock.sleep(1.0)

        begun = clock.boottime()
        writer.put(lifeform, LifeformStatus(phase="Starting"))
        while (await registry.get(Lifeform, "shop", "default")).status.phase != "Starting":
            await clock.sleep(0.001)
        assert clock.boottime() - begun < 0.01

        before = store.revision
        for epoch in range(1, 40):
            writer.put(lifeform, LifeformStatus(phase="Running", epoch=epoch))
            await clock.sleep(0.001)
        await clock.sleep(1.0)
        assert (await registry.get(Lifeform, "shop", "default")).status.epoch == 39
        assert store.revision - before == 1

        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await store.close()

    run_virtual(main())


def test_a_passing_status_that_is_overtaken_soon_is_never_written_and_one_that_lasts_is() -> None:
    async def main() -> None:
        clock = VirtualClock()
        store = MemoryStore(clock)
        registry = Registry(store, clock)
        quick, slow = [await registry.create(make_lifeform(name)) for name in ("quick", "slow")]
        writer = StatusWriter(registry, clock)
        running = asyncio.get_running_loop().create_task(writer.run())
        await clock.sleep(1.0)

        before, begun = store.revision, clock.boottime()
        writer.put(quick, LifeformStatus(phase="Preparing"), passing=True)
        writer.put(slow, LifeformStatus(phase="Preparing"), passing=True)
        await clock.sleep(0.1)
        writer.put(quick, LifeformStatus(phase="Booting"), passing=True)
        assert store.revision == before
        await clock.sleep(0.1)
        writer.put(quick, LifeformStatus(phase="Running"))
        await clock.sleep(0.01)
        assert (await registry.get(Lifeform, "quick", "default")).status.phase == "Running"
        assert store.revision - before == 1

        while clock.boottime() - begun < 0.45:
            writer.put(slow, LifeformStatus(phase="Booting"), passing=True)
            await clock.sleep(0.01)
        assert store.revision - before == 1
        await clock.sleep(0.1)
        assert (await registry.get(Lifeform, "slow", "default")).status.phase == "Booting"
        assert store.revision - before == 2

        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await store.close()

    run_virtual(main())


def test_an_object_that_is_not_as_it_was_known_any_more_is_read_again_and_keeps_what_others_wrote() -> None:
    async def main() -> None:
        clock = VirtualClock()
        store = MemoryStore(clock)
        registry = Registry(store, clock)
        known = await registry.create(make_lifeform("shop"))
        current = await registry.mutate(Lifeform, "shop", "default", _labelled)
        writer = StatusWriter(registry, clock)
        writer.put(known, LifeformStatus(phase="Running"))
        assert await writer.flush()
        after = await registry.get(Lifeform, "shop", "default")
        assert (after.status.phase, after.metadata.labels) == ("Running", current.metadata.labels)
        await store.close()

    run_virtual(main())


def _labelled(lifeform: Lifeform) -> Lifeform:
    return msgspec.structs.replace(lifeform, metadata=msgspec.structs.replace(lifeform.metadata, labels={"tier": "front"}))

"""When status is written: the first change at once, those that follow soon after it together."""

from __future__ import annotations

import asyncio
import contextlib

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

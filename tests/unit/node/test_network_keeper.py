"""When the network is made what it should be: once for what comes together, and at once when somebody waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from primordia.drivers.net_memory import MemoryNetwork
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.errors import TemporaryError
from primordia.node.network import NetworkKeeper
from primordia.ports.network import Endpoint, NetworkState, PublicationFault
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.testing.virtual import VirtualClock, run_virtual
from primordia.wire.resources import Context


class Here:
    """A node with forks that wait."""

    def __init__(self) -> None:
        self.forks: list[str] = []

    def addresses(self) -> Mapping[str, str]:
        return {}

    def links(self) -> Mapping[str, str]:
        return {}

    def newcomers(self) -> tuple[Context, ...]:
        return ()

    def waiting(self) -> tuple[Endpoint, ...]:
        return tuple(Endpoint(uid, f"10.128.0.{number}", uid) for number, uid in enumerate(self.forks, 1))


class Applied(MemoryNetwork):
    """One that takes twenty milliseconds for a change, and fails as often as it is told to."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self.states: list[tuple[str, ...]] = []
        self.failures = 0

    async def apply(self, state: NetworkState) -> tuple[PublicationFault, ...]:
        await self._clock.sleep(0.02)
        if self.failures:
            self.failures -= 1
            raise TemporaryError("The filter cannot be changed.")
        self.states.append(tuple(each.uid for each in state.endpoints))
        return await super().apply(state)


@contextlib.asynccontextmanager
async def kept(clock: VirtualClock) -> AsyncIterator[tuple[NetworkKeeper, Here, Applied]]:
    store, here, network = MemoryStore(clock), Here(), Applied(clock)
    await network.start()
    informers = Informers(Registry(store, clock))
    keeper = NetworkKeeper(network, informers, clock, "n1")
    tasks = [asyncio.ensure_future(informers.run()), asyncio.ensure_future(keeper.run(here, lambda faults: None))]
    await informers.synced()
    await keeper.settled()
    await clock.sleep(1.0)
    network.states.clear()
    try:
        yield keeper, here, network
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()


def test_what_nothing_depends_on_yet_waits_for_what_matters_and_is_applied_with_it() -> None:
    async def main() -> None:
        clock = VirtualClock()
        async with kept(clock) as (keeper, here, network):
            here.forks.append("a")
            keeper.changed(lazily=True)
            await clock.sleep(0.1)
            assert network.states == []
            here.forks.append("b")
            keeper.changed()
            await clock.sleep(0.05)
            assert network.states == [("a", "b")]
            await clock.sleep(1.0)
            assert network.states == [("a", "b")]
            here.forks.append("c")
            keeper.changed(lazily=True)
            await clock.sleep(0.3)
            assert network.states[1:] == [("a", "b", "c")]

    run_virtual(main())


def test_whoever_waits_does_not_wait_for_further_changes() -> None:
    async def main() -> None:
        clock = VirtualClock()
        async with kept(clock) as (keeper, here, network):
            here.forks.append("a")
            keeper.changed(lazily=True)
            begun = clock.boottime()
            await keeper.settled()
            assert network.states == [("a",)]
            assert clock.boottime() - begun < 0.03
            here.forks.append("b")
            keeper.changed()
            await clock.sleep(0.001)
            here.forks.append("c")
            keeper.changed(lazily=True)
            await keeper.settled()
            assert network.states[1:] == [("a", "b", "c")]

    run_virtual(main())


def test_a_change_that_fails_is_made_again_and_whoever_waits_for_it_waits() -> None:
    async def main() -> None:
        clock = VirtualClock()
        async with kept(clock) as (keeper, here, network):
            network.failures = 2
            here.forks.append("a")
            keeper.changed()
            await keeper.settled()
            assert network.states == [("a",)]

    run_virtual(main())

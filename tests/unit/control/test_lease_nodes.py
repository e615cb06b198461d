"""Nodes that fall silent and come back, owners put right, and a whole leader: under virtual time, over the memory store."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import msgspec

from primordia.control.lifebook import LifeBook
from primordia.control.nodes import NodeMonitor
from primordia.control.owners import settle_owners
from primordia.daemon.leading import Leading
from primordia.domain.lease import lease_key
from primordia.ports.store import Put
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.keys import key_of_object
from primordia.registry.ownership import Owner, owner_key, owner_put, read_owner
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform, make_node
from primordia.sim.store import FaultyStore
from primordia.sim.virtual import run_virtual
from primordia.testing.control import ControlWorld
from primordia.wire.conditions import find
from primordia.wire.resources import Context, Lifeform, Node


class LeaseWorld(ControlWorld):
    """Controllers, a node monitor, and nodes with leases of their own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.leases: dict[str, int] = {}
        self.monitor_store = FaultyStore(self.memory, random.Random(seed))

    async def monitor(self) -> None:
        """Start a monitor, as a fresh leader would."""
        registry = Registry(self.monitor_store, self.clock)
        informers = Informers(registry)
        events = EventRecorder(self.sure, "controller", "test", rng=random.Random(1))
        book = LifeBook(self.monitor_store, self.clock)
        monitor = NodeMonitor(registry, informers, book, self.clock, events, rng=random.Random(2))
        self._tasks += [asyncio.create_task(each) for each in (informers.run(), book.run(), events.run(), monitor.run())]

    async def live(self, name: str) -> None:
        """The node takes a lease; nothing renews it unless `until` time passes in `keep`."""
        self.leases[name] = await self.memory.grant(10**6)
        await self.memory.txn([], [Put(lease_key(name), b"{}", self.leases[name])])

    async def die(self, name: str) -> None:
        await self.memory.revoke(self.leases.pop(name))

    async def ready(self, name: str) -> tuple[str, str]:
        found = find((await self.sure.get(Node, name)).status.conditions, "Ready")
        return ("", "") if found is None else (found.status, found.reason)

    def is_ready(self, name: str, status: str) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            return (await self.ready(name))[0] == status

        return check

    def phase(self, name: str, phase: str) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            lifeform = await self.lifeform(name)
            return lifeform is not None and lifeform.status.phase == phase

        return check


def play(story: Callable[[LeaseWorld], Awaitable[None]], *nodes: Node) -> None:
    async def main() -> None:
        world = LeaseWorld()
        try:
            await world.begin()
            for node in nodes or (make_node("n1"), make_node("n2", memory="1Gi")):
                await world.sure.create(node)
                await world.live(node.metadata.name)
            await world.start()
            await world.monitor()
            await story(world)
        finally:
            await world.close()

    run_virtual(main())


def test_a_silent_node_is_unknown_and_true_again_when_it_is_back() -> None:
    async def story(world: LeaseWorld) -> None:
        await world.clock.sleep(60)
        before = (await world.memory.status()).revision
        await world.clock.sleep(3600)
        assert (await world.memory.status()).revision == before, "nothing is written while nothing changes"
        await world.die("n1")
        await world.until(world.is_ready("n1", "Unknown"))
        assert await world.ready("n1") == ("Unknown", "NodeLeaseExpired")
        assert (await world.ready("n2"))[0] == "True"
        await world.live("n1")
        await world.until(world.is_ready("n1", "True"))
        reasons = [reason for reason, _ in await world.events()]
        assert "NodeLeaseExpired" in reasons and "NodeReady" in reasons

    play(story)


def test_a_lifeform_on_a_silent_node_is_unknown_stays_there_and_shows_its_state_again() -> None:
    async def story(world: LeaseWorld) -> None:
        await world.sure.create(make_lifeform("shop"))
        await world.until(world.phase("shop", "Running"))
        before = await world.contexts()
        node = before["shop.main"].spec.node
        await world.die(node)
        await world.until(world.phase("shop", "Unknown"))
        await world.clock.sleep(3600)
        lifeform = await world.lifeform("shop")
        assert lifeform is not None and lifeform.status.phase == "Unknown"
        ready = find(lifeform.status.conditions, "Ready")
        assert ready is not None and (ready.status, ready.reason) == ("Unknown", "NodeUnknown")
        assert (lifeform.status.node, lifeform.status.epoch) == (node, 1)
        assert await world.contexts() == before, "nothing was made elsewhere"
        await world.live(node)
        await world.until(world.phase("shop", "Running"))
        assert await world.contexts() == before

    play(story)


def test_nothing_is_placed_on_a_silent_node_until_it_is_back() -> None:
    async def story(world: LeaseWorld) -> None:
        await world.die("n1")
        await world.until(world.is_ready("n1", "Unknown"))
        await world.sure.create(make_lifeform("shop"))
        await world.clock.sleep(60)
        assert await world.contexts() == {}
        await world.live("n1")
        await world.until(world.phase("shop", "Running"))

    play(story, make_node("n1"))


def test_a_new_leader_judges_what_happened_while_nobody_led() -> None:
    async def story(world: LeaseWorld) -> None:
        await world.kill()
        await world.die("n1")
        await world.clock.sleep(60)
        assert (await world.ready("n1"))[0] == "True"
        await world.monitor()
        await world.until(world.is_ready("n1", "Unknown"))

    play(story)


def test_late_watches_and_lost_answers_delay_a_verdict_and_never_make_a_false_one() -> None:
    async def story(world: LeaseWorld) -> None:
        store, rng = world.monitor_store, random.Random(5)
        store.late_s, store.latency_s, store.lose = 5.0, 1.0, lambda: rng.random() < 0.3
        for _ in range(30):
            await world.die("n1")
            await world.clock.sleep(rng.uniform(0, 8))
            await world.live("n1")
            await world.clock.sleep(rng.uniform(0, 8))
            if rng.random() < 0.2:
                store.cut_watches()
        await world.until(world.is_ready("n1", "True"), within_s=600)
        await world.die("n1")
        await world.until(world.is_ready("n1", "Unknown"), within_s=600)
        assert (await world.ready("n2"))[0] == "True"

    play(story)


def test_an_owner_comes_with_the_contexts_and_goes_after_them() -> None:
    async def story(world: LeaseWorld) -> None:
        lifeform = await world.sure.create(make_lifeform("shop", "a", "b"))
        key = owner_key(lifeform.metadata.uid)
        await world.until(world.phase("shop", "Running"))
        contexts = await world.contexts()
        placed = next(iter(contexts.values())).spec
        item = await world.memory.get(key)
        assert item is not None and read_owner(item) == Owner(placed.node, placed.epoch)
        for context in contexts.values():
            stored = await world.memory.get(key_of_object(context))
            assert stored is not None and stored.create_revision == item.create_revision, "in one transaction"
        world.nodes.hold_finalizers = True
        await world.sure.delete(Lifeform, "shop", "default")
        await world.clock.sleep(5)
        assert await world.memory.get(key) is not None, "as long as a context may run"
        world.nodes.hold_finalizers = False
        await world.sure.mutate(Context, "shop.a", "default", _labelled)

        async def gone() -> bool:
            return await world.lifeform("shop") is None

        await world.until(gone)
        assert await world.memory.get(key) is None

    play(story)


def _labelled(context: Context) -> Context:
    """A change that makes the pretended node look again."""
    meta = msgspec.structs.replace(context.metadata, labels={**context.metadata.labels, "look": "again"})
    return msgspec.structs.replace(context, metadata=meta)


def test_a_beginning_leader_puts_owners_right() -> None:
    async def story(world: LeaseWorld) -> None:
        lifeform = await world.sure.create(make_lifeform("shop"))
        await world.until(world.phase("shop", "Running"))
        key = owner_key(lifeform.metadata.uid)
        good = await world.memory.get(key)
        informers = Informers(world.sure)
        for kind in (Lifeform, Context):
            informers.of(kind)
        task = asyncio.create_task(informers.run())
        await informers.synced()
        assert await settle_owners(world.sure, informers) == 0
        await world.memory.txn([], [owner_put("nobody", "n1", 1)])
        await world.store.txn([], [Put(key, b"", 0)])
        assert await settle_owners(world.sure, informers) == 1
        assert await world.memory.get(owner_key("nobody")) is None
        await world.memory.txn([], [owner_put(lifeform.metadata.uid, "n2", 7)])
        assert await settle_owners(world.sure, informers) == 0, "another owner is not ours to overrule"
        lease = await world.memory.grant(5)
        await world.memory.txn([], [Put(key, b"", lease)])
        await world.memory.revoke(lease)
        assert await settle_owners(world.sure, informers) == 1
        mended = await world.memory.get(key)
        assert good is not None and mended is not None and mended.value == good.value
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    play(story)


def test_leadership_moves_and_the_soup_goes_on() -> None:
    """Three daemons' leading parts; the leader is ended in order, cut from the store, and comes back."""

    async def main() -> None:
        world = LeaseWorld()
        await world.begin()
        await world.sure.create(make_node("n1"))
        await world.live("n1")
        stores = {name: FaultyStore(world.memory) for name in "abc"}
        parts: dict[str, Leading] = {}
        tasks: dict[str, list[asyncio.Task[None]]] = {}
        for name, store in stores.items():
            informers = Informers(Registry(store, world.clock))
            events = EventRecorder(world.sure, "controller", name, rng=random.Random(1))
            parts[name] = Leading(store, informers, world.clock, events, name, "x")
            tasks[name] = [asyncio.create_task(each) for each in (informers.run(), parts[name].run())]
        number = 0

        async def serves() -> None:
            """Whoever leads, a new lifeform comes to run."""
            nonlocal number
            number += 1
            await world.sure.create(make_lifeform(f"shop{number}"))
            await world.until(world.phase(f"shop{number}", "Running"), within_s=60)

        def leader() -> str:
            (name,) = [name for name, part in parts.items() if part.leader.leads]
            return name

        try:
            await serves()
            first = leader()
            stores[first].away = True
            await serves()
            second = leader()
            assert second != first
            stores[first].away = False
            await serves()
            for task in tasks[second]:
                task.cancel()
            await asyncio.gather(*tasks[second], return_exceptions=True)
            await serves()
            third = leader()
            assert third != second
        finally:
            for task in (task for each in tasks.values() for task in each):
                task.cancel()
            await asyncio.gather(*(task for each in tasks.values() for task in each), return_exceptions=True)
            await world.close()

    run_virtual(main())

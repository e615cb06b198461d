"""A soup whose nodes can die: controllers with everything that a leader runs, and nodes with leases, lives and copies.

The nodes only pretend; what they say of a dead node's volumes is what a test has given them to hold.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from primordia.control.deaths import DeathWatch
from primordia.control.lifebook import LifeBook
from primordia.control.main import Controllers
from primordia.control.nodes import NodeMonitor
from primordia.control.readings import LeaseReadings
from primordia.domain.lease import DEATHS, death_key, lease_key, life_key
from primordia.domain.timings import Timings
from primordia.ports.store import Compare, Delete, Put
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.lives import Death, Held, Holding, Life, death_put, holding_key, read_death
from primordia.registry.registry import Registry
from primordia.sim.objects import make_node
from primordia.sim.store import CutError
from primordia.testing.control import ControlWorld
from primordia.testing.virtual import run_virtual
from primordia.wire.conditions import find
from primordia.wire.meta import Condition
from primordia.wire.resources import Lifeform, Node, Volume
from primordia.wire.volumes import CopyState, LastSync, VolumeCopy

TTL_S = 6


class SurvivalWorld(ControlWorld):
    """`power_off` a node and see what becomes of what it ran; `holds` says what copies a node has, by volume uid."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.holds: dict[str, dict[str, Held]] = {}
        self.mute: set[str] = set()
        self.lives: dict[str, int] = {}
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self.leases: dict[str, int] = {}

    # ------------------------------------------------------------ nodes

    async def add_node(self, node: Node) -> None:
        """A node that lives from now on."""
        await self.sure.create(node)
        await self.power_on(node.metadata.name)

    async def power_on(self, name: str) -> None:
        """The node begins a life."""
        self.nodes.silent.discard(name)
        lease = self.leases[name] = await self.memory.grant(TTL_S)
        value = msgspec.json.encode(Life(name, boot_id=f"boot-{self.lives.get(name, 0)}"))
        guard = Compare(lease_key(name), "create", 0)
        result = await self.memory.txn([guard], [Put(lease_key(name), value, lease), Put(life_key(name), value)])
        assert result.done
        self.lives[name] = result.revision
        self._supervisors[name] = asyncio.create_task(self._supervise(name, lease))
        self._side.append(self._supervisors[name])

    async def power_off(self, name: str) -> None:
        """The node stops, and says nothing any more: its lease runs out."""
        self.nodes.silent.add(name)
        self._supervisors[name].cancel()

    async def prove_death(self, name: str) -> None:
        """The node's fence has killed all, says so, and begins no new life yet."""
        await self.power_off(name)
        death = Death(self.lives[name], "node", "it was fenced", at=self.clock.wall().isoformat())
        guard = Compare(lease_key(name), "create", self.lives[name])
        assert (await self.memory.txn([guard], [death_put(name, death), Delete(lease_key(name))])).done

    async def revoke(self, name: str) -> None:
        """An operator ends the lease of a node that lives; its link is gone as well."""
        await self.power_off(name)
        await self.memory.revoke(self.leases[name])

    async def _supervise(self, name: str, lease: int) -> None:
        while True:
            await self.memory.keep_alive(lease)
            await self._answer(name)
            await self.clock.sleep(1.0)

    async def _answer(self, name: str) -> None:
        """Say what is held of the dead, once for each death."""
        if name in self.mute:
            return
        for item in (await self.memory.list(DEATHS)).items:
            dead, death = item.key.removeprefix(DEATHS), read_death(item)
            owned = {each.metadata.uid for each in (await self.sure.list(Volume)).items if each.status.node == dead}
            mine = {uid: held for uid, held in self.holds.get(name, {}).items() if uid in owned}
            key = holding_key(dead, name)
            assert death is not None
            found = await self.memory.get(key)
            if found is None or msgspec.json.decode(found.value, type=Holding).life != death.life:
                await self.memory.txn([], [Put(key, msgspec.json.encode(Holding(death.life, mine)))])

    # ------------------------------------------------------------ controllers

    async def start(self) -> None:
        """Start all that a leader runs, as a fresh process would."""
        self.died.clear()
        registry = Registry(self.store, self.clock)
        informers = Informers(registry)
        events = EventRecorder(self.sure, "controller", "test", rng=random.Random(self.rng.random()))
        book = LifeBook(self.store, self.clock)
        readings = LeaseReadings(self.store, book, self.clock, Timings())
        deaths = DeathWatch(registry, informers, book, readings, self.clock)
        monitor = NodeMonitor(registry, informers, book, self.clock, events, held=deaths.held, rng=random.Random(1))
        deaths.on_verdict = monitor.look_at
        self.controllers = Controllers(
            registry, informers, self.clock, events, rng=random.Random(self.rng.random()), deaths=deaths
        )
        parts = (informers.run(), book.run(), readings.run(), deaths.run(), monitor.run(), self.controllers.run())
        self._tasks = [asyncio.create_task(events.run()), asyncio.create_task(self._until_cut(*parts))]

    async def _until_cut(self, *parts: Coroutine[Any, Any, None]) -> None:
        """All of a process, until the store cuts it off."""
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part)
        except BaseExceptionGroup as group:
            if group.subgroup(CutError) is None:
                raise
        finally:
            self.died.set()

    # ------------------------------------------------------------ looking, and arranging

    async def the(self, name: str) -> Lifeform:
        """The lifeform, which is there."""
        found = await self.lifeform(name)
        assert found is not None
        return found

    async def volume(self, name: str = "shop.main") -> Volume:
        return await self.sure.get(Volume, name, "default")

    async def ready(self, node: str) -> tuple[str, str]:
        found = find((await self.sure.get(Node, node)).status.conditions, "Ready")
        return ("", "") if found is None else (found.status, found.reason)

    async def death(self, node: str) -> Death | None:
        return read_death(await self.memory.get(death_key(node)))

    async def said(self, name: str) -> Condition | None:
        """What is said of its recovery."""
        return find((await self.the(name)).status.conditions, "Recovered")

    def waits(self, name: str, reason: str) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            found = await self.said(name)
            return found is not None and (found.status, found.reason) == ("False", reason)

        return check

    def moved(self, name: str, epoch: int) -> Callable[[], Awaitable[bool]]:
        """Whether it runs in that epoch."""

        async def check() -> bool:
            lifeform = await self.lifeform(name)
            return lifeform is not None and (lifeform.status.epoch, lifeform.status.phase) == (epoch, "Running")

        return check

    async def synced(self, name: str, number: int, *copies: str, in_sync: bool = True) -> Volume:
        """The volume's owner has synced that snapshot onto these copies, and says so; the copies hold it."""
        now = self.clock.wall().isoformat()

        def told(volume: Volume) -> Volume:
            state: CopyState = "InSync" if in_sync else "Behind"
            status = msgspec.structs.replace(
                volume.status,
                number=number,
                size_bytes=2**30,
                last_sync=LastSync(epoch=volume.status.epoch, number=number, at=now, copies=copies),
                copies=tuple(VolumeCopy(node=each, number=number, state=state) for each in copies),
            )
            return msgspec.structs.replace(volume, status=status)

        volume = await self.sure.mutate(Volume, name, "default", told, status=True)
        for each in copies:
            self.hold(each, volume, number)
        return volume

    def hold(self, node: str, volume: Volume, number: int, epoch: int = 0) -> None:
        """The node has that snapshot, cut now."""
        held = Held(epoch or volume.status.epoch, number, f"root-{number}", self.clock.wall().isoformat())
        self.holds.setdefault(node, {})[volume.metadata.uid] = held


RACKS = tuple(make_node(f"n{i}", rack=f"r{i}", pool="10Gi") for i in (1, 2, 3))


def play_survival(story: Callable[[SurvivalWorld], Awaitable[None]], nodes: tuple[Node, ...] = RACKS, seed: int = 0) -> None:
    """Play a story under virtual time, in a soup of these nodes: three on a rack each, unless told otherwise."""

    async def main() -> None:
        world = SurvivalWorld(seed)
        try:
            await world.begin()
            for node in nodes:
                await world.add_node(node)
            await world.start()
            await story(world)
        finally:
            await world.close()

    run_virtual(main())

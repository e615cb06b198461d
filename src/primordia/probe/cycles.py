"""One probe: a soup, its workloads, and cycle after cycle a fault, its healing, and a look at what must hold.

After each cycle every node is ready, every volume is protected, every workload has had a new sync acknowledged; no record that
was acknowledged is missing, and nobody has written in an epoch that was over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import ended
from primordia.probe import deeds
from primordia.probe.faults import KINDS, Cast, Fault, Kind, shuffled
from primordia.probe.witness import Testimony, Thaw, doubled
from primordia.probe.works import LedgerWork, RedisWork, Work, longest_gap
from primordia.testing.soup import Many, eventually, running
from primordia.wire.conditions import find, holds
from primordia.wire.resources import Lifeform, Node, Volume

SHAPE = Shape(6, 3, 1)
POOL = PoolWish(size_bytes=768 << 20)
REDIS_PORT, LEDGER_PORT = 18380, 18381
LEDGERS = 2
UNMOVED = frozenset({"kill daemon", "kill microVM", "freeze daemon"})
"""Faults after which everything is to be where it was."""

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a cycle came to. `wrong` are sentences; there must be none."""

    fault: Fault
    nodes: tuple[str, ...]
    away_s: float = 0.0
    settled_s: float = 0.0
    told: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def line(self, number: int) -> str:
        """As it is printed."""
        where = " and ".join(self.nodes)
        lasts = f" for {self.fault.seconds:g} s" if self.fault.seconds else ""
        words = [f"{number:3}. {self.fault.kind} {where}{lasts}: away {self.away_s:.1f} s, whole after {self.settled_s:.1f} s"]
        return "; ".join([*words, *self.told, *(f"WRONG: {each}" for each in self.wrong)])


@dataclass
class Probe:
    """Of a running soup."""

    soup: Many
    folder: Path
    say: Say
    outcomes: list[Outcome] = field(default_factory=list)
    thaws: list[Thaw] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.testimony = Testimony(self.folder / "witness.log")
        self.redis = RedisWork("cache", REDIS_PORT, self.soup)
        self.ledgers = [LedgerWork(f"ledger-{n}", LEDGER_PORT + n, self.soup, self.testimony) for n in range(LEDGERS)]

    @property
    def works(self) -> list[Work]:
        """All of them."""
        return [self.redis, *self.ledgers]

    async def run(self, faults: list[Fault], within_s: float = math.inf) -> list[str]:
        """Do them all, or as many as begin within so many seconds; sentences about what was wrong, none if all is well."""
        with self._witness():
            async with self.soup.client() as client:
                await running(client, self.redis.manifest(), *(each.manifest() for each in self.ledgers))
                writer = asyncio.create_task(self.redis.write(), name="probe/redis")
                try:
                    begun = time.monotonic()
                    await self._settled(client, begun)
                    for number, fault in enumerate(faults, 1):
                        if time.monotonic() - begun > within_s:
                            break
                        outcome = await self._cycle(client, fault)
                        self.outcomes.append(outcome)
                        self.say(outcome.line(number))
                        if writer.done():
                            writer.result()
                finally:
                    await ended(writer)
        return [each for outcome in self.outcomes for each in outcome.wrong]

    def summary(self) -> str:
        """One line about all of it."""
        counts = ", ".join(f"{work.name} {work.count()}" for work in self.works)
        wrong = sum(len(outcome.wrong) for outcome in self.outcomes)
        return f"{len(self.outcomes)} cycles; records acknowledged: {counts}; {wrong} violations"

    async def _cycle(self, client: AsyncClient, fault: Fault) -> Outcome:
        before = {work.name: await client.get(Lifeform, work.name) for work in self.works}
        cast = self._cast(before)
        outcome = Outcome(fault, cast.victims(fault))
        begun = time.monotonic()
        async with deeds.done(self.soup, fault, outcome.nodes):
            await asyncio.sleep(max(0.0, begun + fault.seconds - time.monotonic()))
            if fault.kind == "freeze node":
                self.thaws += [Thaw(node, time.monotonic()) for node in outcome.nodes]
        healed = time.monotonic()
        try:
            await self._settled(client, healed)
        except AssertionError as error:
            outcome.wrong.append(f"{error}; {await self._state(client)}")
        ended = time.monotonic()
        outcome.settled_s = ended - begun
        outcome.away_s = max(longest_gap(work.acknowledged_at(), begun, ended) for work in self.works)
        for work in self.works:
            await self._check(client, work, before[work.name], outcome)
        told = {each for one in self.outcomes for each in one.wrong}
        outcome.wrong += [each for each in doubled(self.testimony.read(), self.thaws) if each not in told]
        return outcome

    async def _check(self, client: AsyncClient, work: Work, before: Lifeform, outcome: Outcome) -> None:
        """What became of one workload."""
        missing: list[str] = []

        async def looked() -> bool:
            missing[:] = await work.lost()
            return True

        try:
            await eventually(f"{work.name} answers", looked)
        except AssertionError as error:
            missing.append(str(error))
        outcome.wrong += missing
        status = (await client.get(Lifeform, work.name)).status
        if status.epoch == before.status.epoch:
            return
        lost = status.recovered.lost_seconds if status.recovered is not None else 0.0
        moved = f"{work.name} went from {before.status.node} to {status.node} in epoch {status.epoch}"
        outcome.told.append(f"{moved}, lost at most {lost:g} s")
        if outcome.fault.kind in UNMOVED:
            outcome.wrong.append(f"{moved}, for nothing")

    def _cast(self, lifeforms: dict[str, Lifeform]) -> Cast:
        racks: dict[str, list[str]] = {}
        for node in self.soup.soup.nodes:
            racks.setdefault(node.rack, []).append(node.name)
        return Cast({name: lifeform.status.node for name, lifeform in lifeforms.items()}, racks)

    async def _settled(self, client: AsyncClient, since: float) -> None:
        """Everything is whole, and everybody has had something acknowledged since then."""

        async def whole() -> bool:
            return not await self._lacks(client, since)

        await eventually("everything is whole again", whole)

    async def _lacks(self, client: AsyncClient, since: float) -> list[str]:
        """What is not whole, in words."""
        found = [f"{each.metadata.name} is not ready" for each in (await client.list(Node)).items if not answers.ready(each)]
        for work in self.works:
            lifeform = await client.get(Lifeform, work.name)
            status = (await client.get(Volume, f"{work.name}.main")).status
            if not answers.ready(lifeform):
                found.append(f"{work.name} is not ready ({lifeform.status.phase} on {lifeform.status.node})")
            if not holds(status.conditions, "Protected"):
                condition = find(status.conditions, "Protected")
                found.append(f"{work.name} is not protected ({condition.message if condition else 'nobody says why'})")
            found += [f"the copy of {work.name} on {one.node} is {one.state}" for one in status.copies if one.state != "InSync"]
            if not any(at > since for at in work.acknowledged_at()):
                found.append(f"{work.name} has no new sync")
        return found

    async def _state(self, client: AsyncClient) -> str:
        try:
            return ", ".join(await self._lacks(client, 0))
        except (PrimordiaError, OSError) as error:
            return str(error)

    @contextlib.contextmanager
    def _witness(self) -> Iterator[None]:
        argv = [sys.executable, "-m", "primordia.probe.witness", self.soup.soup.name, str(self.testimony.log)]
        process = subprocess.Popen([*argv, *self.soup.names])
        try:
            yield
            assert process.poll() is None, "the witness has ended"
        finally:
            process.kill()
            process.wait()


def chosen(seed: int, cycles: int, among: Sequence[Kind] = KINDS) -> list[Fault]:
    """The faults of a seed."""
    return shuffled(random.Random(seed), cycles, among)

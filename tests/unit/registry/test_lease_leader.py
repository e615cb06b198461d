"""Leadership under virtual time: three contenders, stores that are away, a process that stands still, and what is accepted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from primordia.domain.timings import Timings
from primordia.drivers.store_memory import KeyChange, MemoryStore
from primordia.kit.errors import PrimordiaError
from primordia.ports.store import Compare, Delete, Put, Store
from primordia.registry.guarded import GuardedStore, GuardError
from primordia.registry.leader import LEADERS, Leader
from primordia.sim.store import FaultyStore
from primordia.sim.virtual import VirtualClock, run_virtual

OFFICE = f"{LEADERS}test"


class StandingClock(VirtualClock):
    """The clock of a process that may be stopped: while it is, its time stands still for it and nothing of it wakes."""

    def __init__(self) -> None:
        self.going = asyncio.Event()
        self.going.set()
        self._stopped_s = 0.0

    def stop(self) -> None:
        self._stopped_s = super().boottime()
        self.going.clear()

    def boottime(self) -> float:
        return super().boottime() if self.going.is_set() else self._stopped_s

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await self.going.wait()


class Contender:
    """One process: a leader whose work writes its name again and again."""

    def __init__(self, memory: MemoryStore, name: str, seed: int) -> None:
        self.name = name
        self.clock = StandingClock()
        self.store = FaultyStore(memory, random.Random(seed))
        self.fit = True
        self.leader = Leader(self.store, self.clock, "test", name, fit=lambda: self.fit)
        self.working = 0
        self.refused = 0
        self.task = asyncio.create_task(self.leader.run(self.work))

    async def work(self, guard: Compare) -> None:
        self.working += 1
        guarded: Store = GuardedStore(self.store, [guard])
        try:
            while True:
                try:
                    await guarded.txn([], [Put("/written", self.name.encode())])
                except GuardError:
                    self.refused += 1
                except PrimordiaError:
                    pass
                await self.clock.sleep(0.2)
        finally:
            self.working -= 1

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


class Contest:
    """Three contenders, and a judge of every accepted write."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.memory = MemoryStore(self.clock, observe=self.judge)
        self.holder = ""
        self.writes: list[tuple[float, str]] = []
        self.contenders = [Contender(self.memory, name, seed + number) for number, name in enumerate("abc")]

    def judge(self, _revision: int, changes: Sequence[KeyChange]) -> None:
        for change in changes:
            if change.key == OFFICE:
                self.holder = change.after.value.decode() if change.after is not None else ""
            elif change.key == "/written" and change.after is not None:
                assert change.after.value.decode() == self.holder, "one that does not lead has written"
                self.writes.append((self.clock.boottime(), self.holder))

    async def leader(self, *, other_than: str = "") -> Contender:
        """Wait until somebody leads and works."""
        while True:
            for each in self.contenders:
                if each.name != other_than and each.working and each.leader.leads and self.holder == each.name:
                    return each
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        for each in self.contenders:
            each.clock.going.set()
            await each.end()
        await self.memory.close()


def play(story: Callable[[Contest], Awaitable[None]], seed: int = 0) -> None:
    async def main() -> None:
        contest = Contest(seed)
        try:
            async with asyncio.timeout(3600):
                await story(contest)
        finally:
            await contest.close()

    run_virtual(main())


def test_one_of_three_leads_and_the_others_know_whom() -> None:
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        await asyncio.sleep(30)
        assert [each.working for each in contest.contenders].count(1) == 1
        assert {each.leader.leader for each in contest.contenders} == {first.name}

    play(story)


def test_after_an_orderly_end_the_next_leads_at_once() -> None:
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        begun = contest.clock.boottime()
        await first.end()
        await contest.leader(other_than=first.name)
        assert contest.clock.boottime() - begun < 1

    play(story)


def test_a_leader_without_a_store_stops_before_another_can_lead() -> None:
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        first.store.away = True
        while first.working:
            assert contest.holder == first.name
            await asyncio.sleep(0.05)
        second = await contest.leader(other_than=first.name)
        first.store.away = False
        await asyncio.sleep(20)
        assert await contest.leader() is second and not first.working
        assert first.refused == 0, "it had stopped by itself"

    play(story)


def test_what_a_stopped_process_writes_when_it_goes_on_is_refused() -> None:
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        first.clock.stop()
        second = await contest.leader(other_than=first.name)
        # Its own clock still says that no time has passed, and it writes with the guard it had.
        stale = Compare(OFFICE, "create", first.leader._state.create_revision)
        with pytest.raises(GuardError):
            await GuardedStore(first.store, [stale]).txn([], [Put("/written", b"stale")])
        first.clock.going.set()
        await asyncio.sleep(20)
        assert not first.working and await contest.leader() is second

    play(story)


def test_a_leader_whose_store_stumbles_briefly_keeps_leading() -> None:
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        revision = first.leader._state.create_revision
        for _ in range(5):
            first.store.away = True
            await asyncio.sleep(2)
            first.store.away = False
            await asyncio.sleep(3)
        assert await contest.leader() is first and first.leader._state.create_revision == revision

    play(story)


def test_one_that_comes_again_under_its_name_leads_at_once_and_anew() -> None:
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        for each in contest.contenders:
            if each is not first:
                await each.end()
        first.store.away = True  # its resignation cannot arrive: a crash
        await first.end()
        assert contest.holder == first.name
        begun, before = contest.clock.boottime(), (await contest.memory.list(OFFICE)).items[0].create_revision
        again = Contender(contest.memory, first.name, 9)
        contest.contenders.append(again)
        assert await contest.leader() is again
        assert contest.clock.boottime() - begun < 1
        assert (await contest.memory.list(OFFICE)).items[0].create_revision > before

    play(story)


@pytest.mark.parametrize("seed", range(20))
def test_through_a_stormy_hour_only_the_holder_writes_and_somebody_always_leads_again(seed: int) -> None:
    async def story(contest: Contest) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            victim = rng.choice(contest.contenders)
            trouble = rng.choice(["away", "stop", "slow", "lose", "depose"])
            if trouble == "away":
                victim.store.away = True
            elif trouble == "stop":
                victim.clock.stop()
            elif trouble == "slow":
                victim.store.latency_s = rng.uniform(1, 12)
            elif trouble == "depose":
                with contextlib.suppress(PrimordiaError):
                    await victim.leader.depose([])
            else:
                victim.store.lose = lambda: rng.random() < 0.5
            await asyncio.sleep(rng.uniform(0.1, 20))
            victim.store.away, victim.store.latency_s, victim.store.lose = False, 0.0, lambda: False
            victim.clock.going.set()
            await asyncio.sleep(rng.uniform(0, 3))
        begun = contest.clock.boottime()
        await contest.leader()
        assert contest.clock.boottime() - begun < 2 * Timings().ttl_s + Timings().refused_every_s
        assert len({name for _, name in contest.writes}) > 1

    play(story, seed)


def test_one_whose_node_is_known_to_be_gone_is_followed_at_once_and_no_other() -> None:
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        second = next(each for each in contest.contenders if each is not first)
        await contest.memory.txn([], [Put("/node", b"lives")])
        gone = Compare("/node", "create", 0)
        await asyncio.sleep(5)
        assert second.leader.leader == first.name
        assert not await second.leader.depose([gone])
        assert not await first.leader.depose([]), "nobody deposes himself"
        assert await contest.leader() is first
        first.store.away = True
        await contest.memory.txn([], [Delete("/node")])
        begun = contest.clock.boottime()
        assert await second.leader.depose([gone])
        await contest.leader(other_than=first.name)
        assert contest.clock.boottime() - begun < 1
        first.store.away = False
        await asyncio.sleep(5)
        assert not first.working, "it has heard of it"

    play(story)


def test_a_failing_work_ends_the_contender_and_frees_the_office() -> None:
    async def main() -> None:
        clock = VirtualClock()
        memory = MemoryStore(clock)

        async def work(_guard: Compare) -> None:
            raise LookupError("the work failed")

        with pytest.raises(ExceptionGroup) as caught:
            await Leader(memory, clock, "test", "a").run(work)
        assert caught.group_contains(LookupError)
        assert await memory.get(OFFICE) is None
        await memory.close()

    run_virtual(main())


def test_one_that_is_not_fit_gives_the_office_up_and_may_have_it_again():
    async def story(contest: Contest) -> None:
        first = await contest.leader()
        first.fit = False
        second = await contest.leader(other_than=first.name)
        assert not first.leader.leads and not first.working
        for each in contest.contenders:
            each.fit = each is first
        third = await contest.leader(other_than=second.name)
        assert third is first

    play(story)

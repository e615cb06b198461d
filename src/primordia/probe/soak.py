"""The engine is hurt again and again, and nothing else may notice: leaders killed under load, leaders frozen for twice a lease,
the majority gone for a minute.

Throughout no node is taken for dead, no lifeform moves, none stands still, none runs twice, and control writes are back soon.

    python -m primordia.probe.soak --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from primordia.client.aio import AsyncClient
from primordia.client.answers import decode, deleted, ready
from primordia.host.shape import Shape
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import ended
from primordia.testing.soup import Many, eventually, fetch, lifeform, many_nodes, running
from primordia.wire.engine import MEMBERS, EngineStatus, SeatStatus
from primordia.wire.resources import Context, Lifeform, Node

BACK_WITHIN_S = 3.0
STALL_S = 8.0
"""A frozen lifeform stands for as long as the engine is away; a machine with too much to do lets one stand for seconds."""
EVERY_S = 20.0
FROZEN_S = 12.0
_TICK = """
mkdir -p /www; httpd -p 8000 -h /www; n=0
while :; do n=$((n + 1)); echo $n > /www/new; mv /www/new /www/index.html; sleep 0.2; done
"""
_PORT = 18890
_SAMPLE_S = 0.5


@dataclass
class Load:
    """Writes through the API all the time, by one node after another; `done_at` is when each write was done."""

    soup: Many
    name: str
    done_at: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write as long as the body runs."""
        task = asyncio.create_task(self._run(), name="soak/load")
        try:
            yield
        finally:
            await ended(task)

    async def _run(self) -> None:
        async with self.soup.client() as client:
            while True:
                try:
                    async with asyncio.timeout(BACK_WITHIN_S):  # sooner, and it would ask anew what is about to be answered
                        await self.write(client)
                    self.done_at.append(time.monotonic())
                except (PrimordiaError, TimeoutError) as error:
                    self.errors.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.02)

    async def write(self, client: AsyncClient) -> None:
        """One of them."""
        await client.patch(Lifeform, self.name, {"metadata": {"annotations": {"touched": os.urandom(4).hex()}}})

    def gap_after(self, moment: float) -> float:
        """The longest time without a write that was done, from just before that moment on."""
        times = [moment, *(each for each in self.done_at if each > moment), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@dataclass
class Ticker:
    """A lifeform that counts; `stalls` are times of the monotonic clock, and what it had counted to then."""

    soup: Many
    node: str
    port: int
    seen: list[tuple[float, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The lifeform's."""
        return f"ticker-{self.node}"

    def manifest(self) -> Lifeform:
        """On its node, and nowhere else."""
        return lifeform(self.name, node=self.node, command=("/bin/sh", "-c", _TICK), publish=self.port)

    async def sample(self) -> None:
        """Look at it until cancelled, by its own node's address."""
        while True:
            said = await fetch(self.soup.address(self.node), self.port)
            if said and (not self.seen or self.seen[-1][1] != said):
                self.seen.append((time.monotonic(), said))
            await asyncio.sleep(_SAMPLE_S)

    def stall_s(self, since: float) -> float:
        """The longest time in which it did not count."""
        times = [since, *(at for at, _ in self.seen if at > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@dataclass
class Soak:
    """Of a soup whose engine has three servers. `say` is told how it went; the load writes the lifeform `written`."""

    soup: Many
    client: AsyncClient
    say: Callable[[str], None]
    written: str = "ticker-n1"

    @contextlib.asynccontextmanager
    async def unmoved(self) -> AsyncIterator[None]:
        """Whatever the body does, afterwards every life, microVM and epoch is what it was, and nothing stood still.

        AssertionError says what is not.
        """
        tickers = [Ticker(self.soup, node, _PORT + n) for n, node in enumerate(self.soup.names)]
        await running(self.client, *(each.manifest() for each in tickers))
        await self.all_well()
        before = await self._state()
        sampling = [asyncio.create_task(each.sample(), name=f"soak/{each.name}") for each in tickers]
        begun = time.monotonic()
        try:
            yield
        finally:
            await ended(*sampling)
        stalls = {each.name: each.stall_s(begun) for each in tickers}
        await self.all_well()
        after = await self._state()
        for each in tickers:
            await self.client.delete(Lifeform, each.name)
            await self.client.wait(Lifeform, each.name, deleted, timeout_s=60)
        assert before == after, f"something moved: {before} before, {after} after"
        assert max(stalls.values()) < STALL_S, f"a lifeform stood still: {stalls}"
        self.say(f"nothing moved, nothing restarted; the longest stall of a lifeform was {max(stalls.values()):.1f} s")

    async def leaders_killed(self, times: int, every_s: float = EVERY_S) -> list[float]:
        """Kill the leader so often under load; seconds until writes were back."""
        load, gaps = Load(self.soup, self.written), []
        async with load.running():
            for _ in range(times):
                leader = await self.leader()
                killed = time.monotonic()
                self.soup.kill(leader, "engine")
                await asyncio.sleep(every_s)
                gaps.append(load.gap_after(killed))
                self.say(f"leader on {leader} killed: writes back after {gaps[-1]:.2f} s")
        self.say(f"{len(load.done_at)} control writes done, {len(load.errors)} refused: {sorted(set(load.errors))[:5]}")
        return gaps

    async def leader_frozen(self, times: int, seconds: float = FROZEN_S) -> list[float]:
        """Freeze the leader for so long and let it go on, so often; seconds until writes were back."""
        load, gaps = Load(self.soup, self.written), []
        async with load.running():
            for _ in range(times):
                await self.all_well()
                leader = await self.leader()
                begun = time.monotonic()
                with self.soup.frozen(leader, "engine"):
                    await asyncio.sleep(seconds)
                await asyncio.sleep(2)
                gaps.append(load.gap_after(begun))
                self.say(f"leader on {leader} frozen for {seconds:g} s: writes back after {gaps[-1]:.2f} s")
        return gaps

    async def quorum_lost(self, seconds: float) -> None:
        """Freeze two of three servers for so long. Returns when the engine is whole again."""
        members = [name for name, seat in (await self.seats()).items() if seat.member]
        with contextlib.ExitStack() as stack:
            for node in members[:2]:
                stack.enter_context(self.soup.frozen(node, "engine"))
            begun = time.monotonic()
            await asyncio.sleep(seconds)
            self.say(f"the engine had no majority for {time.monotonic() - begun:.0f} s")
        back = time.monotonic()
        await self.all_well()
        self.say(f"whole again {time.monotonic() - back:.1f} s after its majority")

    async def all_well(self) -> None:
        """Wait until all servers answer and all nodes are ready."""

        async def well() -> bool:
            found = (await self.seats()).values()
            servers = len(found) == 3 and all(seat.member and seat.answers and not seat.trouble for seat in found)
            return servers and all(ready(node) for node in (await self.client.list(Node)).items)

        await eventually("all three servers answer and all nodes are ready", well)

    async def seats(self) -> dict[str, SeatStatus]:
        """The engine's servers by node."""
        found = decode(EngineStatus, await self.client.transport.request("GET", MEMBERS))
        return {seat.node: seat for seat in found.seats}

    async def leader(self) -> str:
        """The node whose engine server leads."""
        found = ""

        async def known() -> bool:
            nonlocal found
            found = next((name for name, seat in (await self.seats()).items() if seat.leader), "")
            return bool(found)

        await eventually("the engine has a leader", known)
        return found

    async def _state(self) -> dict[str, Any]:
        """What must not change. Lives may: an engine's leader that was frozen ends leases that are renewed, and whoever is not
        declared dead meanwhile goes on under its next life."""
        contexts = (await self.client.list(Context)).items
        return {
            "microVMs": self.soup.runs(),
            "restarts": {one.metadata.name: one.status.restarts for one in contexts},
            "places": {one.metadata.name: (one.spec.node, one.spec.epoch) for one in contexts},
            "supervisors": {node: self.soup.pid(node, "supervisor") for node in self.soup.names},
        }


async def soak(soup: Many, minutes: float, say: Callable[[str], None]) -> list[float]:
    """All of it; the seconds until control writes were back, each time."""
    async with soup.client() as client:
        here = Soak(soup, client, say)
        async with here.unmoved():
            gaps = await here.leaders_killed(max(1, int(minutes * 60 / EVERY_S)))
            gaps += await here.leader_frozen(max(1, round(minutes)))
            await here.quorum_lost(60 if minutes >= 1 else 20)
        return gaps


def main(arguments: Sequence[str]) -> int:
    """Run and tell."""
    parser = argparse.ArgumentParser(prog="python -m primordia.probe.soak", description="An engine that is hurt all the time.")
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES") or 10), metavar="N")
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, flush=True)

    with many_nodes(Shape(3, 3, 1)) as soup:
        gaps = asyncio.run(soak(soup, options.minutes, say))
    late = [gap for gap in gaps if gap > BACK_WITHIN_S]
    middle = sorted(gaps)[(len(gaps) - 1) // 2]
    say(f"{len(gaps)} times the engine lost its leader: writes back after {middle:.2f} s (p50), {max(gaps):.2f} s at most")
    say(f"{len(late)} of them later than {BACK_WITHIN_S:g} s")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

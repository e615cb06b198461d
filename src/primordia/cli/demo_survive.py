"""The demo's chapter that everyone waits for: the power of the node under Redis is cut, then that of a whole rack; Redis
answers elsewhere, with every write that was acknowledged, and says what it lost.

A write counts as acknowledged once a sync has returned behind it, and the Redis that took it answers still: the sync of another
one is no word about the one that was written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from primordia.cli.demo_stage import SOUP, Stage, say, until
from primordia.cli.demo_writer import connection
from primordia.cli.output import Progress
from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.client.answers import decode
from primordia.host.power import cut_power, restore_power
from primordia.host.soup import SoupFile, read_soup
from primordia.kit.errors import PermanentError, PrimordiaError, TemporaryError
from primordia.kit.paths import SoupPaths
from primordia.kit.tasks import ended
from primordia.wire.conditions import holds
from primordia.wire.engine import MEMBERS, EngineStatus
from primordia.wire.resources import Lifeform, Node, Recovered, Volume

_KEY = "synced"
_BATCH = 10
_ENOUGH = 50
_PAUSE_S = 0.02
_ANSWER_S = 2.0
_SYNC_S = 15.0
_MORE_WITHIN_S = 90.0


@dataclass
class SyncedWriter:
    """Writes numbers into a set of Redis, by whichever host takes them, and has each batch synced. `redis` is its library."""

    redis: Any
    client: AsyncClient
    volume: str
    hosts: Sequence[str]
    port: int
    acknowledged: set[int] = field(default_factory=set)
    last: float = field(default_factory=time.monotonic)
    task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write as long as the body runs."""
        task = self.task = asyncio.create_task(self._write(), name="synced-writer")
        try:
            yield
        finally:
            await ended(task)
        if not task.cancelled():
            task.result()

    async def more(self, since: float, what: str) -> float:
        """Wait until a batch is acknowledged after `since`, showing how long; its moment. Raises TemporaryError."""
        with Progress() as progress:
            while self.last <= since:
                if self.task is not None and self.task.done():
                    if not self.task.cancelled():
                        self.task.result()  # what nobody expected of a client
                    raise TemporaryError("The client that writes has ended.")
                passed = time.monotonic() - since
                if passed > _MORE_WITHIN_S:
                    raise TemporaryError(f"Redis does not answer on any node within {_MORE_WITHIN_S:.0f} s.")
                progress(f"{what}: nothing answers, {passed:.1f} s")
                await asyncio.sleep(0.05)
        return self.last

    async def lost(self) -> int:
        """How many of the acknowledged ones are not there."""
        promised = set(self.acknowledged)
        for host in self.hosts:
            with contextlib.suppress(OSError, self.redis.RedisError, TimeoutError):
                async with connection(self.redis, host, self.port) as server:
                    return len(promised - {int(each) for each in await server.smembers(_KEY)})
        raise TemporaryError("Redis does not answer on any node.")

    async def _write(self) -> None:
        numbers: Iterator[int] = itertools.count()
        for host in itertools.cycle(self.hosts):
            with contextlib.suppress(OSError, self.redis.RedisError, TimeoutError, PrimordiaError):
                async with connection(self.redis, host, self.port, timeout_s=_ANSWER_S) as server:
                    who = await _run_id(server)
                    while True:
                        batch = list(itertools.islice(numbers, _BATCH))
                        await server.sadd(_KEY, *batch)
                        async with asyncio.timeout(_SYNC_S):
                            await self.client.sync(self.volume, timeout_s=_SYNC_S)
                        if await _run_id(server) != who:
                            break
                        self.acknowledged.update(batch)
                        self.last = time.monotonic()
                        await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(_PAUSE_S)


async def _run_id(server: Any) -> str:
    """Another one for each run of Redis."""
    return str((await server.info("server"))["run_id"])


@dataclass
class Survive:
    """Of the lifeform `name`, whose context `container` is a Redis with data. `hosts` are the nodes' addresses, in order."""

    stage: Stage
    client: AsyncClient
    name: str
    container: str
    redis: Any
    hosts: Sequence[str]
    port: int

    async def happen(self) -> None:
        """Cut the power of its node, then of its rack. Raises PermanentError when anything acknowledged is lost."""
        self.stage.title("The power of its node is cut, then that of a whole rack")
        soup = read_soup(SoupPaths.of(SOUP))
        if soup is None:
            raise PermanentError("The demo's soup is gone.")
        home = await self._home()
        await self._cut(soup, (home,), "node")
        home = await self._home()
        rack = next(node.rack for node in soup.nodes if node.name == home)
        await self._cut(soup, tuple(node.name for node in soup.nodes if node.rack == rack), f"rack {rack}")

    async def _cut(self, soup: SoupFile, nodes: tuple[str, ...], what: str) -> None:
        stage = self.stage
        away = {node.index for node in soup.nodes if node.name in nodes}
        hosts = [host for index, host in enumerate(self.hosts, 1) if index not in away]
        writer = SyncedWriter(self.redis, self.client, self._volume, hosts, self.port)
        async with writer.writing():
            while len(writer.acknowledged) < _ENOUGH:
                await writer.more(time.monotonic(), "a client writes, and syncs")
            print(f"{await self._words(nodes)} Nothing is flushed, and nobody says goodbye.", flush=True)
            begun = time.monotonic()
            await asyncio.gather(*(cut_power(soup, node) for node in nodes))
            seconds = await writer.more(time.monotonic(), f"the power of {' and '.join(nodes)} is off") - begun
        lost = await writer.lost()
        home = await self._home()
        print(f"Redis answers from {home}, {seconds:.1f} s after the power went.")
        print(f"{len(writer.acknowledged)} writes acknowledged, {lost} of them lost.", flush=True)
        if lost or home in nodes:
            raise PermanentError(f"{lost} acknowledged writes are lost, and Redis is on {home}.")
        await self._told()
        stage.note(f"power of its {what} cut, until Redis answers elsewhere", f"{seconds:.1f} s")
        stage.note("  acknowledged writes lost by it", str(lost))
        await self._back(soup, nodes)

    async def _told(self) -> None:
        """What it says of itself."""
        recovered = (await self.client.get(Lifeform, self.name)).status.recovered
        if recovered is None:
            raise PermanentError(f"{self.name} answers elsewhere, and does not say what it lost.")
        self.stage.typed(f"primordia get lf {self.name} -o yaml   # status.recovered")
        say(recovered_text(recovered))
        await self.stage.primordia("exec", f"{self.name}/{self.container}", "--", "kbl", "self")

    async def _back(self, soup: SoupFile, nodes: Collection[str]) -> None:
        """Give the power back and wait until nothing is missing."""
        begun = time.monotonic()
        for node in nodes:
            await restore_power(soup, node)

        async def whole() -> None:
            for node in (await self.client.list(Node)).items:
                if not answers.ready(node):
                    raise TemporaryError(f"{node.metadata.name} is not ready.")
            status = (await self.client.get(Volume, self._volume)).status
            if not holds(status.conditions, "Protected") or any(each.state != "InSync" for each in status.copies):
                raise TemporaryError("A copy is not in sync.")

        await until(whole, f"{' and '.join(nodes)} to be back")
        copies = (await self.client.get(Volume, self._volume)).status.copies
        where = " and ".join(each.node for each in copies)
        seconds = time.monotonic() - begun
        print(f"Power again: {seconds:.1f} s later every node is ready, and {where} have copies in sync.", flush=True)

    async def _words(self, nodes: Sequence[str]) -> str:
        """Who is about to die."""
        seats = decode(EngineStatus, await self.client.transport.request("GET", MEMBERS)).seats
        found = [seat for seat in seats if seat.node in nodes]
        engine = found[0] if found else None
        parts = ["supervisor", "daemon", *(["the engine's leader" if engine.leader else "engine server"] if engine else [])]
        return f"The power of {' and '.join(nodes)} goes: {', '.join(parts)} and microVMs, all at once."

    async def _home(self) -> str:
        return (await self.client.get(Lifeform, self.name)).status.node

    @property
    def _volume(self) -> str:
        return f"{self.name}.{self.container}"


def recovered_text(recovered: Recovered) -> str:
    """What a lifeform says of its failover. Pure."""
    lines = [f"epoch {recovered.epoch}, from {recovered.from_node}: {recovered.reason}"]
    lines += [
        f"{each.name}: restoredFrom {each.restored_from} (last sync: {each.synced_number}), lostSeconds {each.lost_seconds:g}"
        for each in recovered.volumes
    ]
    return "\n".join(lines)

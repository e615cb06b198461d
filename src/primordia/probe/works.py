"""The workloads as the probe sees them: what each has had acknowledged, and whether it is all there.

An acknowledgement counts for what was written before it and to whom: after the sync of what a Redis took, the Redis that took
it must answer still, for else another one may have been synced than was written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import redis.asyncio
from msgspec.structs import replace
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from primordia.kit.breakage import broken_as_os_error
from primordia.kit.errors import PrimordiaError
from primordia.probe import ledger
from primordia.probe.witness import Testimony
from primordia.testing.soup import Many, lifeform
from primordia.wire.resources import Lifeform, Port, Resources
from primordia.wire.volumes import Data, Layout, Replication

_REDIS = ("--dir", "/data", "--save", "", "--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0")
_KEY = "records"
_BATCH = 10
_PAUSE_S = 0.2
_SYNC_S = 10.0
_ANSWER_S = 2.0
_SETTLE_S = 20.0


class Work(Protocol):
    """One of them."""

    @property
    def name(self) -> str:
        """The lifeform's."""

    def acknowledged_at(self) -> list[float]:
        """When, of the monotonic clock, a sync returned."""

    def count(self) -> int:
        """How many records have been acknowledged."""

    async def lost(self) -> list[str]:
        """Which acknowledged records are not there, and what else is wrong, in sentences. Raises OSError while it is away."""


@dataclass
class RedisWork:
    """A Redis that a client of this process writes to, by any node's address."""

    name: str
    port: int
    soup: Many
    acked: set[int] = field(default_factory=set)
    _at: list[float] = field(default_factory=list)

    def manifest(self) -> Lifeform:
        return _with_data(self.name, "redis", args=_REDIS, ports=(Port(container_port=6379, publish=self.port),))

    def acknowledged_at(self) -> list[float]:
        return self._at

    def count(self) -> int:
        return len(self.acked)

    async def write(self) -> None:
        """Write until cancelled."""
        number = 0
        async with self.soup.client() as client:
            for node in itertools.cycle(self.soup.names):
                with contextlib.suppress(OSError, redis.asyncio.RedisError, PrimordiaError, TimeoutError):
                    async with self._connection(node) as server:
                        who = await _run_id(server)
                        while True:
                            batch = range(number, number + _BATCH)
                            number += _BATCH
                            await server.sadd(_KEY, *batch)
                            async with asyncio.timeout(_SYNC_S):
                                await client.sync(f"{self.name}.main", timeout_s=_SYNC_S)
                            if await _run_id(server) != who:
                                break
                            self.acked.update(batch)
                            self._at.append(time.monotonic())
                            await asyncio.sleep(_PAUSE_S)
                await asyncio.sleep(_PAUSE_S / 4)

    async def lost(self) -> list[str]:
        promised = set(self.acked)
        for node in self.soup.names:
            with contextlib.suppress(OSError, redis.asyncio.RedisError, TimeoutError):
                async with self._connection(node) as server:
                    there = {int(each) for each in await server.smembers(_KEY)}
                    return _told(self.name, sorted(promised - there))
        raise ConnectionError(f"{self.name} does not answer")

    @contextlib.asynccontextmanager
    async def _connection(self, node: str) -> AsyncIterator[redis.asyncio.Redis]:
        server = redis.asyncio.Redis(
            host=self.soup.address(node),
            port=self.port,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_ANSWER_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            with broken_as_os_error():
                yield server
        finally:
            await server.aclose()


@dataclass
class LedgerWork:
    """A ledger that writes by itself; what it says, the witness hears."""

    name: str
    port: int
    soup: Many
    testimony: Testimony

    def manifest(self) -> Lifeform:
        command = ("python3", "-u", "-c", ledger.PROGRAM)
        ports = (Port(container_port=ledger.PORT, publish=self.port),)
        return _with_data(self.name, "python", command=command, ports=ports)

    def acknowledged_at(self) -> list[float]:
        self.testimony.read()
        return self.testimony.acknowledged_at(self.name)

    def count(self) -> int:
        return len(self.testimony.acknowledged(self.name))

    async def lost(self) -> list[str]:
        self.testimony.read()
        promised = self.testimony.acknowledged(self.name)
        found = await self.dump()
        broken = [] if found.whole else [f"{self.name}: its database is damaged"]
        return broken + _told(self.name, sorted(promised - found.records))

    async def dump(self) -> ledger.Dump:
        """Everything in it. Raises OSError."""
        for node in self.soup.names:
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                return await ledger.dump(self.soup.address(node), self.port, within_s=_SETTLE_S)
        raise ConnectionError(f"{self.name} does not answer")


async def _run_id(server: redis.asyncio.Redis) -> str:
    """Another one for each run of Redis."""
    return str((await server.info("server"))["run_id"])


def _told(name: str, missing: Sequence[object]) -> list[str]:
    return [f"{name}: {len(missing)} acknowledged records are lost, as {missing[:5]}"] if missing else []


def longest_gap(times: Sequence[float], begun: float, ended: float) -> float:
    """The longest time without an acknowledgement between two moments. Pure."""
    inside = [begun, *(each for each in times if begun < each < ended), ended]
    return max(later - earlier for earlier, later in itertools.pairwise(inside))


def _with_data(name: str, image: str, **more: object) -> Lifeform:
    made = lifeform(name)
    (context,) = made.spec.contexts
    size = Resources(cpu="500m", memory="128Mi")
    context = replace(context, image=image, command=None, user="root", data=Data(size="64Mi"), resources=size)
    replication = Replication(layout=Layout(mirror=2), acks=1)
    return replace(made, spec=replace(made.spec, contexts=(replace(context, **more),), replication=replication))

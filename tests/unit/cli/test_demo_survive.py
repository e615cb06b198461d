"""What the demo's chapter of power cuts says, and what its writer takes for acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from primordia.cli.demo_survive import SyncedWriter, recovered_text
from primordia.kit.errors import TemporaryError
from primordia.wire.resources import Recovered, RecoveredVolume


class FakeRedis:
    """A library with one server, which another one takes the place of at `turns` (of its answers to INFO)."""

    class RedisError(Exception):
        pass

    def __init__(self, turns: set[int]) -> None:
        self.turns, self.asked, self.run = turns, 0, 0
        self.sets: list[set[int]] = [set()]

    def Redis(self, **_: Any) -> FakeRedis:
        return self

    async def info(self, section: str) -> dict[str, str]:
        self.asked += 1
        if self.asked in self.turns:
            self.run += 1
            self.sets.append(set())
        return {"run_id": f"run-{self.run}"}

    async def sadd(self, key: str, *numbers: int) -> None:
        self.sets[-1].update(numbers)

    async def smembers(self, key: str) -> set[int]:
        return self.sets[-1]

    async def aclose(self) -> None:
        await asyncio.sleep(0)


class FakeClient:
    async def sync(self, name: str, *, timeout_s: float) -> None:
        await asyncio.sleep(0)


async def test_what_another_redis_is_synced_for_is_not_acknowledged() -> None:
    library = FakeRedis({2})
    writer = SyncedWriter(library, FakeClient(), "v", ["h"], 1)  # type: ignore[arg-type]
    async with writer.writing():
        for _ in range(2):
            await writer.more(time.monotonic(), "a writer")
    assert not writer.acknowledged & library.sets[0], "the first batch went to one that was gone before the sync returned"
    assert await writer.lost() == 0


async def test_what_is_missing_is_counted() -> None:
    library = FakeRedis(set())
    writer = SyncedWriter(library, FakeClient(), "v", ["h"], 1)  # type: ignore[arg-type]
    writer.acknowledged = {1, 2, 3}
    library.sets = [{2}]
    assert await writer.lost() == 2
    with contextlib.suppress(TemporaryError):
        writer.hosts = []
        await writer.lost()
        raise AssertionError("nobody was there to be asked")


def test_what_it_says_of_a_failover() -> None:
    volume = RecoveredVolume(name="cache.redis", restored_from=41, synced_number=40, lost_seconds=1.25)
    said = recovered_text(Recovered(from_node="n3", epoch=2, at="", reason="NodeDead", volumes=(volume,), lost_seconds=1.25))
    assert said.splitlines() == [
        "epoch 2, from n3: NodeDead",
        "cache.redis: restoredFrom 41 (last sync: 40), lostSeconds 1.25",
    ]

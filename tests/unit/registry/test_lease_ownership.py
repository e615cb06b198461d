"""The permission to start: everything that must refuse it, and the one way to get it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from primordia.domain.lease import lease_key
from primordia.drivers.store_memory import MemoryStore
from primordia.ports.store import Put, StoreUnavailableError
from primordia.registry.ownership import NodeLife, StartDeniedError, StartGuard, owner_put, read_owner
from primordia.sim.store import FaultyStore
from primordia.sim.virtual import VirtualClock, run_virtual

KEY = lease_key("n1")


@dataclass
class Ground:
    memory: MemoryStore
    store: FaultyStore
    guard: StartGuard
    life: NodeLife | None = None
    lease: int = 0

    async def live(self) -> None:
        """The node takes its lease."""
        self.lease = await self.memory.grant(6)
        revision = (await self.memory.txn([], [Put(KEY, b"{}", self.lease)])).revision
        self.life = NodeLife(KEY, revision)

    async def own(self, node: str = "n1", epoch: int = 1) -> None:
        await self.memory.txn([], [owner_put("u1", node, epoch)])


def play(story: Callable[[Ground], Awaitable[None]]) -> None:
    async def main() -> None:
        memory = MemoryStore(VirtualClock())
        store = FaultyStore(memory)
        ground = Ground(memory, store, StartGuard(store, "n1", lambda: ground.life))
        await ground.live()
        await ground.own()
        try:
            await story(ground)
        finally:
            await memory.close()

    run_virtual(main())


async def denied(ground: Ground, reason: str) -> None:
    with pytest.raises(StartDeniedError) as caught:
        await ground.guard.permit("u1", 1)
    assert caught.value.reason == reason and caught.value.retry_after_s > 0


def test_the_owner_with_a_lease_may_start() -> None:
    async def story(ground: Ground) -> None:
        before = (await ground.memory.status()).revision
        await ground.guard.permit("u1", 1)
        assert (await ground.memory.status()).revision == before, "nothing is written"

    play(story)


def test_without_a_lease_nothing_starts() -> None:
    async def story(ground: Ground) -> None:
        ground.life = None
        await denied(ground, "NodeLeaseLost")

    play(story)


def test_a_lease_that_ended_behind_the_nodes_back_permits_nothing() -> None:
    async def story(ground: Ground) -> None:
        await ground.memory.revoke(ground.lease)
        await denied(ground, "NodeLeaseLost")

    play(story)


def test_a_lease_of_a_later_life_does_not_help_the_earlier_one() -> None:
    async def story(ground: Ground) -> None:
        earlier = ground.life
        await ground.memory.revoke(ground.lease)
        await ground.live()
        ground.life, later = earlier, ground.life
        await denied(ground, "NodeLeaseLost")
        ground.life = later
        await ground.guard.permit("u1", 1)

    play(story)


@pytest.mark.parametrize(("node", "epoch"), [("n2", 1), ("n1", 2), ("n2", 2)])
def test_another_owner_or_epoch_is_refused(node: str, epoch: int) -> None:
    async def story(ground: Ground) -> None:
        await ground.own(node, epoch)
        await denied(ground, "NotOwner")

    play(story)


@pytest.mark.parametrize("value", [b"", b"{}", b'{"node": "n1"}', b"[1]", b"\xff"])
def test_an_owner_that_cannot_be_read_is_nobody(value: bytes) -> None:
    async def story(ground: Ground) -> None:
        put = owner_put("u1", "n1", 1)
        await ground.memory.txn([], [Put(put.key, value)])
        assert read_owner(await ground.memory.get(put.key)) is None
        await denied(ground, "NotOwner")

    play(story)


def test_a_change_between_read_and_transaction_is_seen() -> None:
    class Late(FaultyStore):
        """Tells a key, and then somebody changes it."""

        async def get(self, key: str):  # type: ignore[no-untyped-def]
            found = await super().get(key)
            await ground_of[0].own("n2", 2)
            return found

    ground_of: list[Ground] = []

    async def story(ground: Ground) -> None:
        ground_of.append(ground)
        ground.guard = StartGuard(Late(ground.memory), "n1", lambda: ground.life)
        await denied(ground, "NotOwner")

    play(story)


def test_without_an_engine_nothing_starts() -> None:
    async def story(ground: Ground) -> None:
        ground.store.away = True
        with pytest.raises(StoreUnavailableError):
            await ground.guard.permit("u1", 1)

    play(story)

"""The memory store keeps the contract, under a clock that only the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from store_contract import StoreContract

from primordia.drivers.store_memory import MemoryStore
from primordia.ports.store import Store
from primordia.testing.store import HandClock


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        self.clock = HandClock()
        store = MemoryStore(self.clock)
        yield store
        await store.close()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)

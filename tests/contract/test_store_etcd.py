"""The etcd store keeps the contract, on a real etcd with mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from store_contract import StoreContract

from primordia.ports.store import Store
from primordia.testing.store import Engine, shared_engine

__all__ = ["shared_engine"]


class TestEtcdStore(StoreContract):
    @pytest.fixture
    async def store(self, shared_engine: Engine) -> AsyncIterator[Store]:
        store = shared_engine.store()
        yield store
        await store.close()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

"""The API over a real engine: the same answers as over the memory store, and sense while the engine is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primordia.client import AsyncClient, ExpiredError
from primordia.kit.errors import TemporaryError
from primordia.testing.api import TestApi, connected, running_api
from primordia.testing.store import Engine, own_engine
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Secret

__all__ = ["own_engine"]

DEADLINE_S = 60


@pytest.fixture
async def api(own_engine: Engine, tmp_path: Path) -> AsyncIterator[TestApi]:
    store = own_engine.store()
    try:
        async with asyncio.timeout(3 * DEADLINE_S), running_api(tmp_path, store) as running:
            yield running
    finally:
        await store.close()


def secret(name: str) -> Secret:
    return Secret(metadata=ObjectMeta(name=name, namespace="default"), data={"k": "eA=="})


async def until_back(client: AsyncClient) -> None:
    """Wait until the API is ready and a read succeeds: an engine that has just come back may stumble once more."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await client.health():
                with contextlib.suppress(TemporaryError):
                    await client.get(Secret, "a")
                    return
            await asyncio.sleep(0.1)


async def test_lists_pages_and_watches(api: TestApi) -> None:
    async with connected(api.admin) as client:
        for index in range(620):
            await api.registry.create(secret(f"s{index:03}"))
        listed = await client.list(Secret)
        assert [each.metadata.name for each in listed.items] == [f"s{index:03}" for index in range(620)]
        watch = client.watch(Secret, resource_version=listed.resource_version)
        async with contextlib.aclosing(watch) as events, asyncio.timeout(DEADLINE_S):
            made = await client.create(secret("new"))
            event = await anext(events)
            assert (event.type, event.object) == ("ADDED", made)
            changed = await client.patch(Secret, "new", {"metadata": {"labels": {"a": "b"}}})
            event = await anext(events)
            assert (event.type, event.object) == ("MODIFIED", changed)
            await client.delete(Secret, "new")
            event = await anext(events)
            assert (event.type, event.object.metadata.labels) == ("DELETED", {"a": "b"})
            assert int(event.object.metadata.resource_version) > int(changed.metadata.resource_version)


async def test_a_compacted_version_is_gone(api: TestApi) -> None:
    async with connected(api.admin) as client:
        first = await client.create(secret("a"))
        for index in range(3):
            await client.create(secret(f"b{index}"))
        await api.store.compact((await api.store.status()).revision)
        with pytest.raises(ExpiredError):
            async with asyncio.timeout(DEADLINE_S):
                async for _ in client.watch(Secret, resource_version=first.metadata.resource_version):
                    pass


async def test_while_the_engine_is_away(api: TestApi, own_engine: Engine) -> None:
    async with connected(api.admin) as client:
        await client.create(secret("a"))
        watch = client.watch(Secret)
        async with contextlib.aclosing(watch) as events:
            assert (await anext(events)).object.metadata.name == "a"
            await asyncio.to_thread(own_engine.kill)
            with pytest.raises(TemporaryError) as caught:
                await client.get(Secret, "a")
            assert caught.value.reason == "ServiceUnavailable"
            with pytest.raises(TemporaryError):
                await client.create(secret("b"))
            assert await client.health() is False
            await asyncio.to_thread(own_engine.start)
            await until_back(client)
            made = await client.create(secret("c"))
            async with asyncio.timeout(DEADLINE_S):
                while (event := await anext(events)).object != made:
                    assert event.object.metadata.name == "b", "only the write whose fate was open may come between"


async def test_a_frozen_engine_is_told_within_the_time_of_a_request(api: TestApi, own_engine: Engine) -> None:
    async with connected(api.admin) as client:
        await client.create(secret("a"))
        own_engine.freeze()
        try:
            with pytest.raises(TemporaryError):
                await client.get(Secret, "a")
        finally:
            own_engine.thaw()
        await until_back(client)
        assert (await client.get(Secret, "a")).metadata.name == "a"

"""The engine without us: the store client in a node's own namespace, for baselines and for what only its keys tell.

Sockets belong to the namespace of the thread that makes them, so the baseline's event loop runs in a thread that has entered
the node's namespace. The time is taken inside that thread: handing work over is not part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from primordia.bench.ground import Ground
from primordia.drivers.store_etcd.client import EtcdStore
from primordia.kit import netns
from primordia.ports.store import Compare, Put, WatchEvent

T = TypeVar("T")
PREFIX = "/bench/"


class Engine:
    """Times requests straight against the engine. Keys lie beside the soup's own, below PREFIX."""

    def __init__(self, store: EtcdStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def create_ms(self, key: str, value: bytes) -> float:
        """Create a key that must not exist: one transaction, as the registry does it."""

        async def work() -> float:
            begun = time.perf_counter()
            result = await self._store.txn([Compare(PREFIX + key, "create", 0)], [Put(PREFIX + key, value)])
            assert result.done
            return (time.perf_counter() - begun) * 1000

        return await self._there(work())

    @contextlib.asynccontextmanager
    async def heard(self, prefix: str, hear: Callable[[WatchEvent, float], None]) -> AsyncIterator[None]:
        """Have `hear` called with each change below a prefix, and the moment (time.monotonic) at which it was heard of."""
        ready = threading.Event()

        async def work() -> None:
            status = await self._store.status()
            async with self._store.watch(prefix, after_revision=status.revision) as batches:
                ready.set()
                async for batch in batches:
                    for event in batch.events:
                        hear(event, time.monotonic())

        watching = asyncio.run_coroutine_threadsafe(work(), self._loop)
        watching.add_done_callback(lambda _: ready.set())
        try:
            await asyncio.to_thread(ready.wait)
            yield
        finally:
            watching.cancel()

    async def get_ms(self, key: str) -> float:
        """Read a key."""

        async def work() -> float:
            begun = time.perf_counter()
            assert await self._store.get(PREFIX + key) is not None
            return (time.perf_counter() - begun) * 1000

        return await self._there(work())

    async def list_ms(self, prefix: str, count: int) -> float:
        """Read every key below a prefix, of which there must be `count`."""

        async def work() -> float:
            begun = time.perf_counter()
            listing = await self._store.list(PREFIX + prefix)
            assert len(listing.items) == count
            return (time.perf_counter() - begun) * 1000

        return await self._there(work())

    async def watch_ms(self, keys: list[str], value: bytes) -> list[float]:
        """From before a key is created until a watcher that was there already hears of it, once for each key."""

        async def work() -> list[float]:
            taken = []
            status = await self._store.status()
            async with self._store.watch(PREFIX, after_revision=status.revision) as batches:
                for key in keys:
                    begun = time.perf_counter()
                    creation = asyncio.ensure_future(
                        self._store.txn([Compare(PREFIX + key, "create", 0)], [Put(PREFIX + key, value)])
                    )
                    async for batch in batches:
                        if any(event.key == PREFIX + key for event in batch.events):
                            break
                    taken.append((time.perf_counter() - begun) * 1000)
                    await creation
            return taken

        return await self._there(work())


@contextlib.asynccontextmanager
async def engine(ground: Ground, node: str = "") -> AsyncIterator[Engine]:
    """The engine of a soup on this machine, as its first node sees it; as `node` does, by that one's own server alone."""
    config = ground.config_of(node or ground.node)
    endpoints = config.engine.endpoints
    if node:
        endpoints = tuple(each for each in endpoints if urlsplit(each).hostname == config.address) or endpoints
    descriptor = netns.open_named(config.netns)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_serve, args=(loop, descriptor), name="bench-engine", daemon=True)
    thread.start()
    pki = ground.paths_of(config.name).pki

    async def open_store() -> EtcdStore:
        return EtcdStore(endpoints, pki / "engine-ca.crt", pki / "engine.crt", pki / "engine.key")

    def there(work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))

    try:
        store = await there(open_store)
        try:
            yield Engine(store, loop)
        finally:
            await there(store.close)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()
        os.close(descriptor)


def _serve(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    netns.enter(descriptor)
    asyncio.set_event_loop(loop)
    loop.run_forever()

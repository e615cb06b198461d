"""The etcd store while its servers are killed, frozen, replaced by others or cut off: no gap, no repeat, no lie."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from primordia.drivers.store_etcd import EtcdStore, Settings
from primordia.kit import pki
from primordia.kit.ids import new_uid
from primordia.ports.store import Compare, Put, Store, StoreUnavailableError, WatchBatch
from primordia.testing.store import Engine, own_engine, shared_engine

__all__ = ["own_engine", "shared_engine"]

DEADLINE_S = 60
QUICK = Settings(request_timeout_s=0.5, list_timeout_s=0.5, silence_s=6.0)


@contextlib.asynccontextmanager
async def opened(store: EtcdStore) -> AsyncIterator[EtcdStore]:
    try:
        yield store
    finally:
        await store.close()


async def put_until_done(store: Store, key: str, value: bytes) -> int:
    """Write once, as a careful caller does: after an unknown fate, read before writing again."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                item = await store.get(key)
                if item is not None and item.value == value:
                    return item.mod_revision
                guard = Compare(key, "mod", item.mod_revision if item else 0)
                if (result := await store.txn([guard], [Put(key, value)])).done:
                    return result.revision
            await asyncio.sleep(0.05)


async def follow(batches: AsyncIterator[WatchBatch], values: list[bytes | None], last: bytes) -> None:
    async for batch in batches:
        values.extend(event.value for event in batch.events)
        if values and values[-1] == last:
            return


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A TCP server that takes connections and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def refusing_endpoint() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"https://127.0.0.1:{unused.getsockname()[1]}"


async def test_a_killed_and_restarted_server_leaves_no_gap_and_no_repeat(own_engine: Engine) -> None:
    count = 60
    async with opened(own_engine.store(settings=QUICK)) as store:
        start = (await store.status()).revision
        seen: list[bytes | None] = []
        async with store.watch("/k", after_revision=start) as batches, asyncio.TaskGroup() as group:
            follower = group.create_task(follow(batches, seen, b"%d" % (count - 1)))
            for number in range(count):
                if number in (20, 40):
                    await asyncio.to_thread(own_engine.kill)
                    with pytest.raises(StoreUnavailableError):
                        await store.get("/k")
                    await asyncio.to_thread(own_engine.start)
                await put_until_done(store, "/k", b"%d" % number)
            async with asyncio.timeout(DEADLINE_S):
                await follower
        assert seen == [b"%d" % number for number in range(count)]


async def test_a_frozen_server_is_an_error_within_the_timeout(own_engine: Engine) -> None:
    async with opened(own_engine.store(settings=QUICK)) as store:
        await store.get("/k")
        own_engine.freeze()
        try:
            async with asyncio.timeout(DEADLINE_S):
                for request in (store.get("/k"), store.list("/k"), store.grant(5), store.status()):
                    with pytest.raises(StoreUnavailableError, match=r"did not answer in time|cannot be reached"):
                        await request
                with pytest.raises(StoreUnavailableError):
                    await store.txn([], [Put("/k", b"1")])
                with pytest.raises(StoreUnavailableError):
                    async with store.watch("/k", after_revision=1):
                        pass
        finally:
            own_engine.thaw()
        assert await put_until_done(store, "/k", b"2") > 1


async def test_a_watch_whose_server_falls_silent_moves_on(shared_engine: Engine) -> None:
    """The connection stays open and carries nothing more, as with a dead machine; only missing signs of life tell."""
    key = f"/{new_uid()}"
    async with relayed(shared_engine) as (relay, endpoint), opened(shared_engine.store()) as other:
        endpoints = (endpoint, shared_engine.endpoint)
        first = await put_until_done(other, key, b"1")
        async with (
            opened(shared_engine.store(endpoints=endpoints, settings=QUICK)) as store,
            store.watch(key, after_revision=first) as batches,
            asyncio.timeout(DEADLINE_S),
        ):
            seen: list[bytes | None] = []
            await put_until_done(other, key, b"2")
            await follow(batches, seen, b"2")
            relay.answers_left = 0
            await put_until_done(other, key, b"3")
            await put_until_done(other, key, b"4")
            await follow(batches, seen, b"4")
        assert seen == [b"2", b"3", b"4"]


async def test_a_watch_gives_up_when_patience_ends(own_engine: Engine) -> None:
    impatient = Settings(request_timeout_s=0.5, patience_s=2.0)
    async with opened(own_engine.store(settings=impatient)) as store, store.watch("/k", after_revision=1) as batches:
        own_engine.kill()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                await anext(batches)


async def test_an_idle_watch_shows_signs_of_life(shared_engine: Engine) -> None:
    async with opened(shared_engine.store()) as store:
        now = (await store.status()).revision
        async with store.watch(f"/{new_uid()}", after_revision=now) as batches, asyncio.timeout(DEADLINE_S):
            batch = await anext(batches)
            assert batch.events == ()
            assert batch.revision >= now


async def test_a_refused_connection_names_the_server() -> None:
    endpoint = refusing_endpoint()
    ca = pki.make_ca("x")
    async with opened(make_store([endpoint], ca)) as store:
        with pytest.raises(StoreUnavailableError, match=f"{endpoint} cannot be reached") as caught:
            await store.txn([], [Put("/k", b"1")])
        assert "log" in caught.value.remedy


@pytest.mark.parametrize("kind", ["refusing", "silent"])
async def test_the_next_server_is_asked(shared_engine: Engine, kind: str) -> None:
    """Writes too: a connection that was never made has sent nothing."""
    key = f"/{new_uid()}"
    with silent_server() as silent:
        bad = silent if kind == "silent" else refusing_endpoint()
        async with opened(shared_engine.store(endpoints=(bad, shared_engine.endpoint), settings=QUICK)) as store:
            assert (await store.txn([Compare(key, "mod", 0)], [Put(key, b"1")])).done
            item = await store.get(key)
            assert item is not None
            assert item.version == 1
        behind = item.mod_revision - 1
        async with (
            asyncio.timeout(DEADLINE_S),
            opened(shared_engine.store(endpoints=(bad, shared_engine.endpoint), settings=QUICK)) as store,
            store.watch(key, after_revision=behind) as batches,
        ):
            assert (await anext(batches)).events[0].value == b"1"


async def test_a_transaction_of_unknown_fate_is_not_repeated(shared_engine: Engine) -> None:
    """The relay lets the request through and drops the answer; the second server must not be asked."""
    key = f"/{new_uid()}"
    async with relayed(shared_engine) as (relay, endpoint):
        relay.answers_left = 1  # the handshake
        endpoints = (endpoint, shared_engine.endpoint)
        async with opened(shared_engine.store(endpoints=endpoints, settings=QUICK)) as store:
            with pytest.raises(StoreUnavailableError, match="in time"):
                await store.txn([], [Put(key, b"1")])
            async with asyncio.timeout(DEADLINE_S):
                while (item := await store.get(key)) is None:  # noqa: ASYNC110 (the store is another process)
                    await asyncio.sleep(0.05)
            assert item.version == 1


async def test_strangers_are_kept_out_and_not_believed(shared_engine: Engine) -> None:
    """A certificate of another authority opens nothing, and a server of another authority is not talked to."""
    other = pki.make_ca("another")
    with pytest.raises(StoreUnavailableError, match="certificate"):
        async with opened(make_store([shared_engine.endpoint], other)) as store:
            await store.get("/k")
    believing = pki.KeyPair(shared_engine.ca.read_bytes(), b"")
    async with opened(make_store([shared_engine.endpoint], other, trusted=believing)) as store:
        with pytest.raises(StoreUnavailableError):
            await store.get("/k")


async def test_a_closed_store_says_so_and_ends_its_watches(shared_engine: Engine) -> None:
    store = shared_engine.store()
    async with store.watch("/k", after_revision=1) as batches:
        waiting = asyncio.create_task(drain(batches))
        await asyncio.sleep(0)
        await store.close()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(StoreUnavailableError):
                await waiting
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.get("/k")


async def drain(batches: AsyncIterator[WatchBatch]) -> None:
    async for _ in batches:
        pass


class Relay:
    """Carries bytes to an engine, and its answers back while `answers_left` (counted in pieces) lasts."""

    def __init__(self, endpoint: str) -> None:
        self._port = int(endpoint.rsplit(":", 1)[1])
        self.answers_left = math.inf

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, sink = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._back(upstream, writer))
        try:
            while data := await reader.read(65536):
                sink.write(data)
                await sink.drain()
        finally:
            back.cancel()
            sink.close()
            writer.close()
            await asyncio.gather(back, return_exceptions=True)

    async def _back(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if self.answers_left > 0:
                self.answers_left -= 1
                sink.write(data)


@contextlib.asynccontextmanager
async def relayed(engine: Engine) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to the engine and its URL."""
    relay = Relay(engine.endpoint)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    async with server:
        yield relay, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def make_store(endpoints: list[str], ca: pki.KeyPair, *, trusted: pki.KeyPair | None = None) -> EtcdStore:
    """A store with an identity from `ca`; its files are read at once, so their folder may go."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "ca.crt").write_bytes((trusted or ca).certificate)
        pki.issue(ca, "stranger", "primordia:nodes").write(place / "c.crt", place / "c.key")
        return EtcdStore(endpoints, place / "ca.crt", place / "c.crt", place / "c.key", settings=QUICK)

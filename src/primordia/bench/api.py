"""What the API costs over the engine: creating, reading, listing and watching, in turns with the same work without it.

Secrets are measured, because nothing acts on them. Values have the size of a usual lifeform, about one KiB.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from primordia.bench.engine import Engine, engine
from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Ground, Progress
from primordia.client.aio import AsyncClient
from primordia.kit import ids
from primordia.wire.kinds import path_of
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Secret

ROUNDS = 200
LIST_ROUNDS = 20
LISTED = 1000
_PAYLOAD = {"payload": "cHJpbW9yZGlh" * 60}
_AT_ONCE = 16


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """The figures api_create, api_get, api_list_1000 and api_watch. Deletes what it created."""
    rounds = rounds or ROUNDS
    run = f"bench-{ids.suffix()}"
    value = msgspec.json.encode(_secret(run, "size-of-one"))
    async with engine(ground) as bare:
        client = ground.client
        await _warm(client, bare, run, value)
        progress(f"api: create and get, {rounds} times each")
        create, create_bare, get, get_bare = [], [], [], []
        for number in range(rounds):
            key = f"{run}/{number}"
            create.append(await _create_ms(client, _secret(run, f"c{number}")))
            create_bare.append(await bare.create_ms(key, value))
            get.append(await _get_ms(client, run, f"c{number}"))
            get_bare.append(await bare.get_ms(key))
        progress(f"api: watch, {rounds} times")
        watch, watch_bare = await _watch(client, bare, run, rounds, value)
        progress(f"api: list {LISTED}")
        listed, listed_bare = await _list(client, bare, run, value)
    return [
        figure("api_create", "ms", create, create_bare),
        figure("api_get", "ms", get, get_bare),
        figure("api_list_1000", "ms", listed, listed_bare),
        figure("api_watch", "ms", watch, watch_bare),
    ]


def _secret(namespace: str, name: str) -> Secret:
    return Secret(metadata=ObjectMeta(name=name, namespace=namespace), data=_PAYLOAD)


async def _warm(client: AsyncClient, bare: Engine, run: str, value: bytes) -> None:
    """Connections, caches and the first import of everything."""
    for number in range(5):
        await _create_ms(client, _secret(run, f"w{number}"))
        await _get_ms(client, run, f"w{number}")
        await bare.create_ms(f"{run}/warm/{number}", value)
        await bare.get_ms(f"{run}/warm/{number}")


async def _create_ms(client: AsyncClient, obj: Secret) -> float:
    body = msgspec.json.encode(obj)
    path = path_of(Secret, obj.metadata.namespace)
    begun = time.perf_counter()
    await client.transport.request("POST", path, body=body)
    return (time.perf_counter() - begun) * 1000


async def _get_ms(client: AsyncClient, namespace: str, name: str) -> float:
    path = path_of(Secret, namespace, name)
    begun = time.perf_counter()
    await client.transport.request("GET", path)
    return (time.perf_counter() - begun) * 1000


async def _watch(client: AsyncClient, bare: Engine, run: str, rounds: int, value: bytes) -> tuple[list[float], list[float]]:
    """In turns of ten, because setting a watch up is not what is measured."""
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(0, rounds, 10):
        names = [f"e{turn + number}" for number in range(10)]
        ours += await _watch_ms(client, run, names)
        theirs += await bare.watch_ms([f"{run}/{name}" for name in names], value)
    return ours, theirs


async def _watch_ms(client: AsyncClient, run: str, names: list[str]) -> list[float]:
    """From before an object is created until a watcher that was there already hears of it."""
    taken = []
    listed = await client.list(Secret, namespace=run)
    events = client.watch(Secret, namespace=run, resource_version=listed.resource_version)
    # The watch is open when it has told of a first object.
    for name in [f"{names[0]}-open", *names]:
        begun = time.perf_counter()
        creation = asyncio.ensure_future(_create_ms(client, _secret(run, name)))
        async for event in events:
            if event.object.metadata.name == name:
                break
        taken.append((time.perf_counter() - begun) * 1000)
        await creation
    await events.aclose()
    return taken[1:]


async def _list(client: AsyncClient, bare: Engine, run: str, value: bytes) -> tuple[list[float], list[float]]:
    many = f"{run}-many"
    gate = asyncio.Semaphore(_AT_ONCE)

    async def fill(number: int) -> None:
        async with gate:
            await _create_ms(client, _secret(many, f"l{number:04}"))
            await bare.create_ms(f"{many}/{number:04}", value)

    await asyncio.gather(*(fill(number) for number in range(LISTED)))
    ours, theirs = [], []
    path = path_of(Secret, many)
    for _ in range(LIST_ROUNDS):
        begun = time.perf_counter()
        answer = await client.transport.request("GET", path)
        ours.append((time.perf_counter() - begun) * 1000)
        assert answer.count(b'"resourceVersion"') > LISTED
        theirs.append(await bare.list_ms(f"{many}/", LISTED))
    return ours, theirs

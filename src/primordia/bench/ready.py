"""How long six lifeforms take that are asked for at once, one for each node, against one that is asked for alone.

From the first create to the condition Ready of the last, as a client that watches sees it. The two take turns on one soup,
so that a busy machine slows both; each begins when the soup is at rest, with a fork that waits on every node, as it has where
nothing was started for some seconds. Starts share the machine's processors, so the ratio depends on how many it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import msgspec

from primordia.bench import lifeforms
from primordia.bench.figures import Figure, paired
from primordia.bench.ground import Ground, Progress
from primordia.client import answers
from primordia.client.aio import AsyncClient, connect
from primordia.host.soup import API_PORT
from primordia.kit import ids
from primordia.wire.meta import LABEL_NODE
from primordia.wire.resources import Lifeform

ROUNDS = 5
LIFEFORMS = 6
_WITHIN_S = 300.0
_IMAGE_S = 600.0
_REST_S, _LOOK_S = 60.0, 0.2
_POOL = "primordia_pool_waiting{"


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """The figure six_ready."""
    rounds = rounds or ROUNDS
    progress("ready: prepare the image")
    nodes = [ground.nodes[number % len(ground.nodes)] for number in range(LIFEFORMS)]
    await _ready_s(ground, nodes, within_s=_IMAGE_S)  # builds the image and warms every node's caches
    alone, six = [], []
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_client_of(ground, node)) for node in dict.fromkeys(nodes)]
        for number in range(rounds):
            progress(f"ready: {number + 1} of {rounds}")
            await _at_rest(clients)
            alone.append(await _ready_s(ground, [nodes[number % len(nodes)]]))
            await _at_rest(clients)
            six.append(await _ready_s(ground, nodes))
    return [paired("six_ready", "s", six, alone)]


def _client_of(ground: Ground, node: str) -> AsyncClient:
    """A client of that node's own API."""
    return connect(ground.client_config, server=f"https://{ground.address(node)}:{API_PORT}")


async def _at_rest(clients: Sequence[AsyncClient]) -> None:
    """Wait until a fork waits on every node; not for long, for a soup may do without any."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REST_S):
            while not all(await asyncio.gather(*(_forks_wait(client) for client in clients))):  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(_LOOK_S)


async def _forks_wait(client: AsyncClient) -> bool:
    lines = (await client.transport.request("GET", "/metrics")).decode().splitlines()
    return any(line.startswith(_POOL) and float(line.rsplit(" ", 1)[1]) for line in lines)


async def _ready_s(ground: Ground, nodes: Sequence[str], within_s: float = _WITHIN_S) -> float:
    """The seconds until one on each of these nodes is Ready; they are gone when this returns. Raises PrimordiaError."""
    client = ground.client
    manifests = [_manifest(node) for node in nodes]
    names = [manifest.metadata.name for manifest in manifests]
    begun = time.perf_counter()
    try:
        await asyncio.gather(*(client.create(manifest) for manifest in manifests))
        await asyncio.gather(*(client.wait(Lifeform, name, answers.ready, timeout_s=within_s) for name in names))
        return time.perf_counter() - begun
    finally:
        await asyncio.gather(*(lifeforms.delete(client, name) for name in names))


def _manifest(node: str) -> Lifeform:
    """The smallest one, on that node."""
    plain = lifeforms.manifest(f"bench-{ids.suffix()}")
    return msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, node_selector={LABEL_NODE: node}))

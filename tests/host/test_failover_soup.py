"""A node of a real soup loses its power: its lifeform goes on elsewhere with all that a sync promised, and says so; the node
comes back, and holds a copy of what it owned.

What returned from a sync is there afterwards, bit for bit, and everybody who is asked tells the same story.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from primordia.client.aio import AsyncClient
from primordia.host.pool import PoolWish
from primordia.host.power import cut_power, restore_power
from primordia.host.shape import Shape
from primordia.testing.soup import Many, eventually, is_ready, lifeform, many_nodes, running, runs_of
from primordia.wire.conditions import find, holds
from primordia.wire.resources import Context, Lifeform, Node, Volume
from primordia.wire.volumes import Data, Layout, Replication

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

POOL_BYTES = 384 << 20


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3), PoolWish(size_bytes=POOL_BYTES)) as built:
        yield built


async def test_the_power_of_the_owners_node_is_cut_and_comes_back(soup: Many) -> None:
    async with soup.client() as client:
        await running(client, _with_data("db"), lifeform("plain"))
        (volume,) = (await client.list(Volume)).items
        owner, (copy, *_) = volume.status.node, volume.status.replicas
        assert (await client.exec("db", ["sh", "-c", "echo promised > /var/data/file"])).code == 0
        synced = await client.sync(volume.metadata.name, timeout_s=60)
        assert synced.copies == (copy,)
        assert (await client.exec("db", ["sh", "-c", "echo hoped > /var/data/other"])).code == 0
    rest = tuple(name for name in soup.names if name != owner)

    begun = time.monotonic()
    await cut_power(soup.soup, owner)
    async with soup.client(*rest) as client:
        after = await _in_epoch(client, "db", 2)
        print(f"from the power cut to ready again: {time.monotonic() - begun:.1f} s")
        assert after.status.node == copy != owner
        await _tells_its_story(client, after, owner, synced.number)

        async def plain_runs() -> bool:
            plain = await client.get(Lifeform, "plain")
            return plain.status.node != owner and is_ready(plain)

        await eventually("the one without data runs as well", plain_runs)
        ready = find((await client.get(Node, owner)).status.conditions, "Ready")
        assert ready is not None and (ready.status, ready.reason) == ("False", "NodeDead")

        await restore_power(soup.soup, owner)
        await _rejoins(client, soup, owner, copy)
        result = await client.exec("db", ["cat", "/var/data/file"])
        assert result.stdout == b"promised\n"
        assert (await client.get(Lifeform, "db")).status.epoch == 2, "who comes back takes nothing back"


async def _tells_its_story(client: AsyncClient, after: Lifeform, owner: str, number: int) -> None:
    result = await client.exec("db", ["cat", "/var/data/file"])
    assert result.stdout == b"promised\n", result
    recovered = after.status.recovered
    assert recovered is not None and (recovered.from_node, recovered.epoch) == (owner, 2)
    (told,) = recovered.volumes
    assert told.restored_from >= told.synced_number >= number and 0 <= told.lost_seconds < 60
    me = json.loads((await client.exec("db", ["kbl", "self", "-o", "json"])).stdout)
    assert (me["epoch"], me["startedBecause"], me["node"]) == (2, "Failover", after.status.node)
    assert (me["restoredFrom"], me["lostSeconds"]) == (told.restored_from, told.lost_seconds)
    (context,) = [each for each in (await client.list(Context)).items if each.spec.lifeform == "db"]
    assert context.status.started_because == "Failover" and context.spec.node == after.status.node


async def _rejoins(client: AsyncClient, soup: Many, owner: str, copy: str) -> None:
    """The node that was dead is ready, runs nothing of what it ran, and holds the newest of what it owned."""

    async def back() -> bool:
        node, (volume,) = await client.get(Node, owner), (await client.list(Volume)).items
        told = {each.node: each.state for each in volume.status.copies}
        return holds(node.status.conditions, "Ready") and volume.status.node == copy and told.get(owner) == "InSync"

    await eventually("the dead node holds a copy", back)
    theirs = {each.metadata.uid for each in (await client.list(Context)).items if each.spec.node == owner}
    assert runs_of(soup.paths(owner)).keys() <= theirs, "what went elsewhere runs there alone"


async def _in_epoch(client: AsyncClient, name: str, epoch: int) -> Lifeform:
    found: list[Lifeform] = []

    async def there() -> bool:
        one = await client.get(Lifeform, name)
        found[:] = [one]
        return one.status.epoch == epoch and is_ready(one)

    await eventually(f"{name} runs in epoch {epoch}", there)
    return found[0]


def _with_data(name: str) -> Lifeform:
    made = lifeform(name)
    (context,) = made.spec.contexts
    return replace(
        made,
        spec=replace(
            made.spec,
            contexts=(replace(context, data=Data(size="64Mi", mount_path="/var/data")),),
            replication=Replication(layout=Layout(mirror=1), acks=1),
        ),
    )

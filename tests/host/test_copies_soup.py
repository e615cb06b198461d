"""A real soup of three racks: a lifeform's data is on other racks when a sync returns, and the copy is right bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Volume
from primordia.wire.volumes import Data, Layout, Replication

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

POOL_BYTES = 384 << 20


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3), PoolWish(size_bytes=POOL_BYTES)) as built:
        yield built


async def test_a_sync_puts_what_was_written_on_other_racks(soup: Many) -> None:
    made = lifeform("db", command=("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"))
    (context,) = made.spec.contexts
    spec = replace(
        made.spec,
        contexts=(replace(context, data=Data(size="64Mi", mount_path="/var/data")),),
        replication=Replication(layout=Layout(mirror=2), acks=2),
    )
    async with soup.client() as client:
        await running(client, replace(made, spec=spec))
        (volume,) = (await client.list(Volume)).items
        name = volume.metadata.name
        for word in ("one", "two", "three"):
            result = await client.exec("db", ["sh", "-c", f"echo {word} >> /var/data/file"])
            assert result.code == 0
            synced = await client.sync(name, timeout_s=60)
            assert len(synced.copies) == 2
        result = await client.exec("db", ["sh", "-c", "echo four >> /var/data/file && kbl sync"])
        assert result.code == 0, result
        assert "number: " in result.stdout.decode()
        stored = await client.get(Volume, name)
        assert stored.status.last_sync is not None
        assert stored.status.last_sync.number > synced.number
        assert set(stored.status.last_sync.copies) == set(synced.copies)
        assert stored.status.node not in synced.copies

        async def told() -> bool:
            copies = (await client.get(Volume, name)).status.copies
            return [each.state for each in copies] == ["InSync", "InSync"]

        await eventually("copies in sync", told)
        scrubbed = await client.scrub(name)
        assert {each.node for each in scrubbed.copies} == {stored.status.node, *synced.copies}
        assert all(each.snapshots >= 1 and not each.damaged and not each.message for each in scrubbed.copies)

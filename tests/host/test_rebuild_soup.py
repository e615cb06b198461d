"""A real soup of three nodes loses all of its engine's data, and is made again from what its nodes kept; nothing that runs
notices."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.testing.cli import Cli
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Lifeform, Secret, Soup, Volume
from primordia.wire.volumes import Data

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, racks=3), PoolWish(size_bytes=384 << 20)) as built:
        yield built


def with_data(name: str) -> Lifeform:
    made = lifeform(name)
    (context,) = made.spec.contexts
    return replace(made, spec=replace(made.spec, contexts=(replace(context, data=Data(size="64Mi", mount_path="/var/data")),)))


async def test_what_runs_goes_on_and_all_objects_are_there_again(soup: Many, tmp_path: Path) -> None:
    cli = Cli(tmp_path, soup.config, within_s=280)
    name = soup.soup.name
    async with soup.client() as client:
        await client.create(Secret(metadata=ObjectMeta(name="word"), string_data={"is": "mum"}))
        await running(client, with_data("db"), lifeform("plain"), lifeform("other"))
        assert (await client.exec("db", ["sh", "-c", "echo kept > /var/data/file && sync"])).code == 0
        before = {each.metadata.name: each for each in (await client.list(Lifeform)).items}
        volume = await client.get(Volume, "db.main")
        await eventually("everything is kept", lambda: kept(soup, volume))
    machines = soup.runs()
    assert "still there" in await cli.bad("soup", "rebuild", "--soup", name, "--dry-run")

    await lose_the_engine(soup)
    listed = await cli.good("soup", "rebuild", "--soup", name, "--dry-run")
    assert "Incarnation 2" in listed and "default/db" in listed and "3 Lifeform" in listed
    assert soup.runs() == machines
    assert "is rebuilt: incarnation 2" in await cli.good("soup", "rebuild", "--soup", name, "--yes")

    async with soup.client() as client:

        async def well() -> bool:
            found = {each.metadata.name: each for each in (await client.list(Lifeform)).items}
            return found.keys() == before.keys() and all(each.status.phase == "Running" for each in found.values())

        await eventually("every lifeform runs", well)
        assert soup.runs() == machines, "not one microVM was ended"
        for each in (await client.list(Lifeform)).items:
            was = before[each.metadata.name]
            assert (each.metadata.uid, each.spec, each.status.node) == (was.metadata.uid, was.spec, was.status.node)
            assert each.status.epoch == was.status.epoch
        assert (await client.get(Secret, "word")).data == {"is": "bXVt"}
        assert (await client.get(Soup, "soup")).status.incarnation == 2
        assert (await client.get(Volume, "db.main")).metadata.uid == volume.metadata.uid
        result = await client.exec("db", ["cat", "/var/data/file"])
        assert result.stdout == b"kept\n"

        async def in_sync() -> bool:
            copies = (await client.get(Volume, "db.main")).status.copies
            return bool(copies) and all(copy.state == "InSync" for copy in copies)

        await eventually("the copy is in sync again", in_sync)
        await cli.good("migrate", "db", "--node", (await client.get(Volume, "db.main")).status.replicas[0])
        moved = await client.get(Lifeform, "db")
        assert moved.status.epoch == (1 << 32) + 1, "later epochs are above all that the old engine can have given"
        assert (await client.exec("db", ["cat", "/var/data/file"])).stdout == b"kept\n"
        await running(client, lifeform("fresh"))


async def lose_the_engine(soup: Many) -> None:
    """All data of all its servers, and the servers."""
    servers = [node.name for node in soup.soup.nodes if node.engine]

    async def noticed() -> bool:
        return all(soup.paths(node).engine.with_name("engine.born").exists() for node in servers)

    await eventually("each supervisor has noticed that there is data", noticed)
    for node in servers:  # first, so that none begins with it again
        soup.paths(node).engine.rename(soup.paths(node).state / "lost")
    for node in servers:
        soup.kill(node, "engine")
        shutil.rmtree(soup.paths(node).state / "lost")


async def kept(soup: Many, volume: Volume) -> bool:
    """Whether the nodes have written down all that there is; they gather what changes for a moment."""
    await asyncio.sleep(2)
    files = [path for node in soup.names for path in soup.paths(node).kept.glob("*/*.json")]
    kinds = [path.parent.name for path in files]
    there = {path.stem for path in files}
    return (
        volume.metadata.uid in there
        and len({p.stem for p in files if p.parent.name == "lifeforms"}) == 3
        and "secrets" in kinds
    )

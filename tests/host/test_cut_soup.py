"""Snapshots of a running lifeform's data in a real soup: cut by the clock, kept under a name, restored although the daemon
dies, cloned for another lifeform, and taken out into a file that a file system check finds clean."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from primordia.client.aio import AsyncClient
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import Data

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

DATA_BYTES = 64 << 20


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(1), PoolWish(size_bytes=512 << 20)) as built:
        yield built


def with_data(name: str) -> Lifeform:
    made = lifeform(name)
    (context,) = made.spec.contexts
    return replace(made, spec=replace(made.spec, contexts=(replace(context, data=Data(size=str(DATA_BYTES))),)))


async def said(client: AsyncClient, name: str, script: str) -> str:
    result = await client.exec(name, ["sh", "-c", script])
    assert result.code == 0, result
    return result.stdout.decode()


async def answers(client: AsyncClient, name: str, expected: str) -> None:
    async def reached() -> bool:
        try:
            return await said(client, name, "cat /data/file") == expected
        except PrimordiaError:  # it is being started
            return False

    await eventually(f"{name} has {expected!r}", reached)


async def test_snapshots_are_cut_restored_cloned_and_taken_out(soup: Many, tmp_path: Path) -> None:
    async with soup.client() as client:
        await running(client, with_data("db"))
        await said(client, "db", "echo one > /data/file; sync")

        async def cut() -> bool:
            return len(await client.snapshots("db.main")) >= 2

        await eventually("the clock has cut it", cut)
        first = (await client.snapshot("db.main", checkpoint="first")).snapshot
        await said(client, "db", "echo two > /data/file")  # in the guest's memory alone
        taken = await client.snapshot("db.main", checkpoint="good", quiesce=True)
        assert (taken.quiesced, taken.note) == (True, "")
        await said(client, "db", "echo three > /data/file; sync")

        restore = asyncio.create_task(client.restore("db.main", "good"))
        await eventually("the restore has begun", lambda: suspended(client))
        soup.kill("n1", "daemon")
        with pytest.raises(PrimordiaError):
            await restore
        await answers(client, "db", "two\n")
        assert (await client.get(Volume, "db.main")).metadata.annotations == {}

        done = await client.restore("db.main", str(first.number))
        assert done.restarted and done.source.checkpoint == "first" and done.before.number < done.number
        await answers(client, "db", "one\n")

        clone = await client.clone("db.main", "copy.main", source="good")
        await running(client, with_data("copy"))
        await answers(client, "copy", "two\n")
        assert (await client.get(Volume, "copy.main")).metadata.uid == clone.uid
        await answers(client, "db", "one\n")

        image = tmp_path / "db.img"
        await client.export("db.main", image, source="good")
        checked = await asyncio.to_thread(
            subprocess.run, ["e2fsck", "-fn", str(image)], capture_output=True, timeout=60, check=False
        )
        assert checked.returncode == 0, checked.stdout
        made = await client.import_volume(image, "again.main")
        assert made.size_bytes == DATA_BYTES
        await running(client, with_data("again"))
        await answers(client, "again", "two\n")
        with pytest.raises(NotFoundError):
            await client.restore("db.main", "none")


async def suspended(client: AsyncClient) -> bool:
    return (await client.get(Lifeform, "db")).spec.operating_mode == "Suspended"

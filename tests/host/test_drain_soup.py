"""A real soup of three nodes: its lifeforms are moved while their data is written, nothing is lost, and every daemon is
restarted under them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from primordia.client.aio import AsyncClient
from primordia.client.moves import move
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import Data

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

WRITE = (
    "/bin/sh",
    "-c",
    "trap 'exit 0' TERM; cd /var/data; i=$(tail -n1 log 2>/dev/null || echo 0); "
    "while :; do i=$((i+1)); echo $i >> log; sync; sleep 0.2 & wait $!; done",
)
"""Counts on in a file of its data, each line written back before the next."""


def writer(name: str, node: str = "") -> Lifeform:
    made = lifeform(name, command=WRITE)
    (context,) = made.spec.contexts
    return replace(made, spec=replace(made.spec, contexts=(replace(context, data=Data(size="64Mi", mount_path="/var/data")),)))


async def lines(client: AsyncClient, name: str) -> list[int]:
    result = await client.exec(name, ["cat", "/var/data/log"])
    assert result.code == 0, result
    return [int(line) for line in result.stdout.decode().split()]


async def copied(client: AsyncClient, name: str) -> None:
    async def whole() -> bool:
        status = (await client.get(Volume, f"{name}.main")).status
        return bool(status.copies) and all(copy.state == "InSync" for copy in status.copies)

    await eventually(f"the data of {name} is copied", whole)


async def is_on(client: AsyncClient, name: str) -> tuple[str, int]:
    status = (await client.get(Lifeform, name)).status
    return status.node, status.epoch


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, racks=3), PoolWish(size_bytes=384 << 20)) as built:
        yield built


async def test_lifeforms_move_with_all_that_they_wrote(soup: Many, capsys: pytest.CaptureFixture[str]) -> None:
    async with soup.client() as client:
        await running(client, writer("db"), lifeform("plain"))
        await copied(client, "db")
        (node, epoch), before = await is_on(client, "db"), await lines(client, "db")
        (holder,) = (await client.get(Volume, "db.main")).status.replicas
        (bare,) = set(soup.names) - {node, holder}
        # To a node that has nothing of it yet: its data comes first.
        outcome = await move(client, "db", f"node/{bare}", timeout_s=240)
        assert outcome.moved is not None, outcome
        assert await is_on(client, "db") == (bare, epoch + 1)
        print(f"seeded and moved: {outcome.moved.blackout_seconds:.2f} s of blackout", file=sys.stderr)
        after = await lines(client, "db")
        assert after[: len(before)] == before and after == list(range(1, len(after) + 1)), "not a line is missing"
        with capsys.disabled():
            print(f"blackout of a move with data: {outcome.moved.blackout_seconds:.2f} s")
        await copied(client, "db")

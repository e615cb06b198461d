"""A real soup of three nodes: its lifeforms are moved while they write, and nothing is lost; what cannot move is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from primordia.client.aio import AsyncClient
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.testing.cli import Cli
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Lifeform, Node, NodeSpec, Volume
from primordia.wire.volumes import Data, holder_finalizer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

WRITE = (
    "/bin/sh",
    "-c",
    "trap 'exit 0' TERM; cd /var/data; i=$(tail -n1 log 2>/dev/null || echo 0); "
    "while :; do i=$((i+1)); echo $i >> log; sync; sleep 0.2 & wait $!; done",
)
"""Counts on in a file of its data, each line written back before the next."""


def writer(name: str) -> Lifeform:
    made = lifeform(name, command=WRITE)
    (context,) = made.spec.contexts
    return replace(made, spec=replace(made.spec, contexts=(replace(context, data=Data(size="64Mi", mount_path="/var/data")),)))


async def lines(client: AsyncClient, name: str) -> list[int]:
    found: list[int] = []

    async def some() -> bool:
        result = await client.exec(name, ["cat", "/var/data/log"])
        found[:] = [int(line) for line in result.stdout.decode().split()]
        return len(found) > 2

    await eventually(f"{name} writes", some)
    return found


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


@pytest.fixture
def cli(soup: Many, tmp_path: Path) -> Cli:
    return Cli(tmp_path, soup.config, within_s=280)


async def test_lifeforms_move_with_all_that_they_wrote(soup: Many, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    async with soup.client() as client:
        await running(client, writer("db"))
        await copied(client, "db")
        (node, epoch), before = await is_on(client, "db"), await lines(client, "db")
        (holder,) = (await client.get(Volume, "db.main")).status.replicas
        (bare,) = set(soup.names) - {node, holder}
        await running(client, lifeform("plain", node=holder))

        said = await cli.good("migrate", "db", "--node", bare)  # which has nothing of it yet: its data comes first
        assert "s of blackout" in said
        assert await is_on(client, "db") == (bare, epoch + 1)
        before = await nothing_lost(client, before)
        await copied(client, "db")
        assert "is where it is now" in await cli.bad("migrate", "db", "--node", bare)

        drained = await cli.good("node", "drain", bare)
        (there, epoch_there), volume = await is_on(client, "db"), await client.get(Volume, "db.main")
        assert there != bare and epoch_there == epoch + 2
        assert volume.status.epoch == epoch_there and volume.status.node == there
        before = await nothing_lost(client, before)
        assert "SchedulingDisabled" in await cli.good("node", "ls")
        with capsys.disabled():
            print(f"\n{said}{drained}")


async def nothing_lost(client: AsyncClient, before: list[int]) -> list[int]:
    """Every line that was there is there, and it counts on behind them."""
    after: list[int] = []

    async def goes_on() -> bool:
        after[:] = await lines(client, "db")
        return len(after) > len(before)

    await eventually("it counts on", goes_on)
    assert after == list(range(1, len(after) + 1)), (before[-3:], after[-10:])
    return after


async def test_what_cannot_leave_is_named_and_copies_leave_when_asked_to(soup: Many, cli: Cli) -> None:
    async with soup.client() as client:
        await cli.good("node", "uncordon", *soup.names)
        pinned, _ = await is_on(client, "plain")
        refused = await cli("node", "drain", pinned)
        assert refused.code == 1 and "default/plain" in refused.err and f"node={pinned}" in refused.err, refused
        assert (await is_on(client, "plain"))[0] == pinned
        await client.delete(Lifeform, "plain")
        await cli.good("node", "uncordon", *soup.names)
        await copied(client, "db")
        holder = (await client.get(Volume, "db.main")).status.replicas[0]
        assert "is empty" in await cli.good("node", "evacuate", holder)
        volume = await client.get(Volume, "db.main")
        assert holder not in (volume.status.node, *volume.status.replicas)
        assert holder_finalizer(holder) not in volume.metadata.finalizers
        assert list((soup.paths(holder).volumes / "volumes").iterdir()) == []
        assert "Evacuating" in await cli.good("node", "ls")
        await cli.good("node", "uncordon", holder)

        assert "its silence is no death" in await cli.good("node", "maintenance", "n2", "on", "--for", "30m")
        assert "Maintenance" in await cli.good("node", "ls")
        await cli.good("node", "maintenance", "n2", "off")
        assert (await client.get(Node, "n2")).spec == NodeSpec(pod_cidr=(await client.get(Node, "n2")).spec.pod_cidr)


async def test_every_daemon_is_restarted_and_no_microvm_notices(soup: Many, cli: Cli) -> None:
    async with soup.client() as client:
        await running(client, *(lifeform(f"one-{node}", node=node) for node in soup.names))
        machines, daemons = soup.runs(), {node: soup.pid(node, "daemon") for node in soup.names}
        before = await lines(client, "db")
        said = await cli.good("soup", "restart")
        assert "3 daemons were restarted" in said
        assert soup.runs() == machines and len(machines) == 4
        assert all(soup.pid(node, "daemon") not in (0, pid) for node, pid in daemons.items())
        await nothing_lost(client, before)
        assert {each.status.phase for each in (await client.list(Lifeform)).items} == {"Running"}

        only = {node: soup.pid(node, "daemon") for node in soup.names}
        await cli.good("soup", "restart", "--node", "n2", "-q")
        assert [node for node in soup.names if soup.pid(node, "daemon") != only[node]] == ["n2"]
        assert "no node n9" in await cli.bad("soup", "restart", "--node", "n9")

"""What waits after nodes have died, on the command line, against a real API server; and what only a person may say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.client.config import save
from primordia.sim.objects import make_lifeform, make_node
from primordia.testing.api import TestApi, running_api
from primordia.testing.cli import Cli
from primordia.wire.meta import ANNOTATION_ALLOW_LOSS, ANNOTATION_FAILOVER_ALL, Condition, ObjectMeta
from primordia.wire.resources import Lifeform, LifeformStatus, Node, Recovered, RecoveredVolume, Soup, Volume
from primordia.wire.volumes import VolumeSpec, VolumeStatus


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    folder = tmp_path / "server"
    folder.mkdir()
    async with running_api(folder) as running:
        yield running


@pytest.fixture
async def cli(api: TestApi, tmp_path: Path) -> Cli:
    save(tmp_path / "config", api.admin)
    (tmp_path / "here").mkdir()
    return Cli(tmp_path / "here", tmp_path / "config")


def waiting(reason: str = "WaitingForCopies") -> LifeformStatus:
    said = Condition(type="Recovered", status="False", reason=reason, message="It waits for n1.")
    return LifeformStatus(phase="Parked", node="n1", epoch=3, conditions=(said,))


RECOVERED = Recovered(
    from_node="n1",
    epoch=4,
    at="2026-01-01T00:00:00Z",
    volumes=(RecoveredVolume(name="shop.main", restored_from=8, synced_number=9, lost_seconds=2.5),),
    lost_seconds=2.5,
)


async def furnish(api: TestApi, status: LifeformStatus, node: tuple[str, str] = ("False", "NodeDead")) -> None:
    lifeform = make_lifeform("shop", data="1Gi")
    await api.registry.create(msgspec.structs.replace(lifeform, status=status))
    await api.registry.create(make_lifeform("calm"))
    made = make_node("n1")
    ready = Condition(type="Ready", status=node[0], reason=node[1], message="Its life 7 is over.")
    await api.registry.create(msgspec.structs.replace(made, status=msgspec.structs.replace(made.status, conditions=(ready,))))
    meta = ObjectMeta(name="shop.main", namespace="default")
    protected = Condition(type="Protected", status="True", reason="Protected")
    volume = VolumeStatus(node="n1", epoch=3, conditions=(protected,))
    await api.registry.create(
        Volume(metadata=meta, spec=VolumeSpec(size="1Gi", lifeform="shop", context="main"), status=volume)
    )


async def test_what_waits_is_shown_everywhere(api: TestApi, cli: Cli) -> None:
    assert await cli.good("failover") == "Nothing waits for a failover.\n"
    await furnish(api, waiting())
    shown = await cli.good("failover")
    assert "shop" in shown and "WaitingForCopies" in shown and "It waits for n1." in shown and "calm" not in shown
    assert "Parked" in await cli.good("get", "lf", "shop")
    told = await cli.good("describe", "lf", "shop")
    assert "Waits for:" in told and "It waits for n1." in told
    assert "Dead" in await cli.good("node", "ls") and "Its life 7 is over." in await cli.good("node", "describe", "n1")
    status = await cli.good("status")
    assert "survival   1 Parked" in status and "default/shop: It waits for n1." in status


async def test_a_loss_is_allowed_by_name_and_for_this_epoch_only(api: TestApi, cli: Cli) -> None:
    await furnish(api, waiting())
    assert "Name the lifeforms" in await cli.bad("failover", "--allow-loss")
    assert "waits for no failover" in await cli.bad("failover", "calm", "--allow-loss")

    async def allowed() -> str:
        return (await api.registry.get(Lifeform, "shop", "default")).metadata.annotations.get(ANNOTATION_ALLOW_LOSS, "")

    async def recover() -> None:
        """What the failover does once it may."""
        while await allowed() != "3":  # noqa: ASYNC110 (what is waited for is in a store)
            await asyncio.sleep(0.02)
        done = LifeformStatus(phase="Running", node="n2", epoch=4, recovered=RECOVERED)
        await api.registry.mutate(
            Lifeform, "shop", "default", lambda stored: msgspec.structs.replace(stored, status=done), status=True
        )

    async with asyncio.TaskGroup() as group:
        group.create_task(recover())
        said = await cli.good("failover", "shop", "--allow-loss")
    assert said == "lifeform/shop came from n1, which died, in epoch 4: shop.main from snapshot 8, at most 2.5 s lost\n"
    assert "Recovered:" in await cli.good("describe", "lf", "shop")
    assert "survival   1 Protected" in await cli.good("status")


async def test_the_hold_is_lifted_only_where_there_is_one_and_after_asking(api: TestApi, cli: Cli) -> None:
    await api.registry.create(Soup(metadata=ObjectMeta(name="soup")))
    assert "no names" in await cli.bad("failover", "shop", "--all")
    await furnish(api, waiting("Holding"), ("True", "NodeReady"))
    assert "No node is held" in await cli.good("failover", "--all")

    def held(node: Node) -> Node:
        ready = Condition(type="Ready", status="Unknown", reason="FailoverHeld", message="Too much at once.")
        return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, conditions=(ready,)))

    await api.registry.mutate(Node, "n1", "", held, status=True)
    assert "Nothing was changed" in await cli.bad("failover", "--all")
    assert ANNOTATION_FAILOVER_ALL not in (await api.registry.get(Soup, "soup")).metadata.annotations
    assert "n1 is failed over" in await cli.good("failover", "--all", "--yes")
    assert (await api.registry.get(Soup, "soup")).metadata.annotations[ANNOTATION_FAILOVER_ALL].startswith("20")

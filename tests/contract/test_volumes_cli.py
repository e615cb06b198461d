"""Volumes on the command line, against a real API server: listed, told about, destroyed on purpose only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from primordia.client.config import save
from primordia.kit.errors import NotFoundError
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform, make_node
from primordia.testing.api import TestApi, connected, running_api
from primordia.testing.cli import Cli
from primordia.wire.meta import Condition, ObjectMeta
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import Checkpoint, LastSync, VolumeCopy, VolumeSpec, VolumeStatus


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


def a_volume(name: str, node: str, *copies: VolumeCopy, protection: str = "Protected", **status: Any) -> Volume:
    lifeform, _, context = name.partition(".")
    return Volume(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=VolumeSpec(size="1Gi", lifeform=lifeform if context else "", context=context),
        status=VolumeStatus(
            node=node,
            epoch=3,
            phase="Bound",
            replicas=tuple(copy.node for copy in copies),
            copies=copies,
            conditions=(Condition(type="Protected", status="True", reason=protection, message="One copy, far away."),),
            **status,
        ),
    )


async def furnish(registry: Registry) -> None:
    """Three racks with a node each; a lifeform with a copy, one without."""
    for number in (1, 2, 3):
        await registry.create(make_node(f"n{number}", rack=f"r{number}", pool="10Gi"))
    copy = VolumeCopy(
        node="n2", rack="r2", segment="east", number=41, state="Behind", lag_seconds=1.5, lag_snapshots=1, lag_bytes=4096
    )
    sync = LastSync(epoch=3, number=40, at="2026-11-24T00:00:00Z", copies=("n2",))
    more: Any = {"number": 42, "used_bytes": 2**20, "last_sync": sync, "checkpoints": (Checkpoint(name="monday", number=7),)}
    await registry.create(make_lifeform("shop", data="1Gi"))
    await registry.create(a_volume("shop.main", "n1", copy, **more))
    await registry.create(a_volume("till.main", "n3", protection="Unprotected"))


async def test_volumes_are_listed_and_told_about(api: TestApi, cli: Cli) -> None:
    await furnish(api.registry)
    listed = await cli.good("volume", "ls")
    rows = {line.split()[0]: line for line in listed.splitlines()}
    assert all(word in rows["shop.main"] for word in ("Bound", "1Gi", "1.0 MiB", "n1", "1/1", "1.5s", "Protected"))
    assert all(word in rows["till.main"] for word in ("n3", "0/0", "Unprotected"))
    assert (await cli.good("get", "vol", "-o", "name")).split() == ["volume/shop.main", "volume/till.main"]
    told = await cli.good("volume", "describe", "shop.main")
    for words in ("shop, context main", "n1, epoch 3", "snapshot 42", "monday (snapshot 7)", "acknowledged by n2"):
        assert words in told
    assert "1.5 s, 1 snapshot, 4.0 KiB" in told and "One copy, far away." in told
    told = await cli.good("describe", "lf", "shop")
    for words in ("Data of main", "shop.main on n1, epoch 3", "Protected: One copy", "snapshot 40", "r2", "1Gi at /data, ext4"):
        assert words in told
    assert "of 10 GiB used" in await cli.good("node", "describe", "n1")
    assert "volumes    1 Protected, 1 Unprotected" in await cli.good("status")


async def test_racks_show_what_their_loss_would_cost(api: TestApi, cli: Cli) -> None:
    await furnish(api.registry)
    shown = await cli.good("racks")
    assert "losing r1 loses 0 lifeforms, 1 would be on their last copy" in shown
    assert "losing r2 loses 0 lifeforms, 1 would be on their last copy" in shown
    assert "losing r3 loses 1 lifeform (default/till), 0 would be on their last copy" in shown
    plain = yaml.safe_load(await cli.good("racks", "-o", "yaml"))
    assert plain[2]["blastRadius"] == {"lost": ["default/till"], "lastCopy": []}


async def test_a_volume_is_destroyed_on_purpose_only(api: TestApi, cli: Cli) -> None:
    await furnish(api.registry)
    assert "data goes only on purpose" in await cli.bad("delete", "volume", "till.main")
    assert "Nothing was changed" in await cli.bad("volume", "destroy", "till.main")
    refused = await cli.bad("volume", "destroy", "shop.main", "--yes")
    assert "Lifeform shop has it" in refused and "primordia delete lifeform shop" in refused
    await api.registry.delete(Lifeform, "shop", "default")
    assert await cli.good("volume", "destroy", "shop.main", "--yes") == "volume/shop.main destroyed\n"
    with pytest.raises(NotFoundError):
        await api.registry.get(Volume, "shop.main", "default")
    assert (await api.registry.get(Volume, "till.main", "default")).metadata.deletion_timestamp is None


async def test_manifests_go_and_their_data_stays(api: TestApi, cli: Cli) -> None:
    volume = {"apiVersion": "primordia.dev/v1alpha1", "kind": "Volume", "metadata": {"name": "notes"}, "spec": {"size": "1Gi"}}
    lifeform = msgspec.to_builtins(make_lifeform("shop", data="1Gi"))
    lifeform["metadata"].pop("namespace")
    (cli.folder / "all.yaml").write_text(yaml.safe_dump_all([volume, lifeform]))
    await cli.good("apply", "-f", "all.yaml")
    done = await cli("delete", "-f", "all.yaml")
    assert done.code == 0 and done.out == "lifeform/shop deleted\n"
    assert "volume/notes stays: `primordia volume destroy notes` deletes data" in done.err
    await api.registry.get(Volume, "notes", "default")


async def test_run_writes_data_into_the_manifest(cli: Cli) -> None:
    shown = await cli.good("run", "busybox", "--name", "shop", "--data", "2Gi:/var/lib/shop", "--mirror", "2", "--dry-run")
    spec = yaml.safe_load(shown)["spec"]
    assert spec["contexts"][0]["data"] == {"size": "2Gi", "mountPath": "/var/lib/shop"}
    assert spec["replication"] == {"layout": {"mirror": 2}}
    assert yaml.safe_load(await cli.good("run", "x", "--data", "1Gi", "--dry-run"))["spec"]["contexts"][0]["data"] == {
        "size": "1Gi"
    }
    assert "is no SIZE[:PATH]" in await cli.bad("run", "x", "--data", "1Gi:data", "--dry-run")
    assert "there is none" in await cli.bad("run", "x", "--mirror", "1", "--dry-run")
    assert "A box has no --data" in await cli.bad("run", "--template", "t", "--data", "1Gi")


async def test_destroying_waits_for_every_holder_to_have_let_go(api: TestApi, cli: Cli) -> None:
    volume = a_volume("notes", "n1")
    held = msgspec.structs.replace(volume, metadata=msgspec.structs.replace(volume.metadata, finalizers=("example.org/x",)))
    await api.registry.create(held)
    process = await cli.start("volume", "destroy", "notes", "--yes")

    def is_doomed(obj: Volume | None) -> bool:
        return obj is not None and obj.metadata.deletion_timestamp is not None

    async with connected(api.admin) as client:
        await client.wait(Volume, "notes", is_doomed, timeout_s=30)
    assert process.returncode is None
    free = msgspec.structs.replace(volume, metadata=msgspec.structs.replace(volume.metadata, finalizers=()))
    await api.registry.update(free)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert out == b"volume/notes destroyed\n", err


async def test_lifeforms_are_suspended_and_resumed(api: TestApi, cli: Cli) -> None:
    await furnish(api.registry)
    assert await cli.good("suspend", "shop", "--no-wait") == "lifeform/shop suspended\n"
    assert (await api.registry.get(Lifeform, "shop", "default")).spec.operating_mode == "Suspended"
    assert "is suspended already" in await cli.good("suspend", "shop", "--no-wait")
    process = await cli.start("resume", "shop")
    async with connected(api.admin) as client:
        await client.wait(Lifeform, "shop", lambda obj: obj is not None and obj.spec.operating_mode == "Running", timeout_s=30)
    ready = Condition(type="Ready", status="True")

    def runs(stored: Lifeform) -> Lifeform:
        return msgspec.structs.replace(stored, status=msgspec.structs.replace(stored.status, conditions=(ready,)))

    assert process.returncode is None, "it waits until the lifeform is ready"
    await api.registry.mutate(Lifeform, "shop", "default", runs, status=True)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert out == b"lifeform/shop resumed\n", err
    assert "does not exist" in await cli.bad("suspend", "nobody")

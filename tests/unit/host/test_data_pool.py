"""Pools as `up` plans them: sizes, words, what is on a device, and what a node that has one is refused."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from primordia.drivers.volumes_btrfs import pool as driver
from primordia.host import pool
from primordia.host.pool import PoolWish
from primordia.host.shape import NodeEntry, Shape, plan_nodes
from primordia.host.soup import SoupFile, node_config, write_config
from primordia.kit.errors import InvalidError
from primordia.kit.paths import SoupPaths
from primordia.wire.nodeconfig import Tools

GIB, MIB = 1 << 30, 1 << 20


def soup(shape: Shape) -> SoupFile:
    return SoupFile(name="x", uid="u", slot=0, pod_cidr="10.128.0.0/9", nodes=plan_nodes(shape), created_by_version="1")


def places(tmp_path: Path, made: SoupFile, source: str = "") -> SoupPaths:
    paths = SoupPaths(tmp_path / "state", tmp_path / "run")
    for node in made.nodes:
        here = paths.node(node.name)
        here.state.mkdir(parents=True)
        config = node_config(made, node, paths, tmp_path, Tools())
        write_config(here.config, msgspec.structs.replace(config, pool=source))
    return paths


@pytest.mark.parametrize(
    ("free", "nodes", "size"),
    [
        (100 * GIB, 1, 2 * GIB),
        (100 * GIB, 6, 2 * GIB),
        (24 * GIB, 6, GIB),
        (6 * GIB, 6, 256 * MIB),
        (5 * GIB, 6, 0),
        (0, 1, 0),
        (100 * GIB, 0, 2 * GIB),
    ],
)
def test_pools_take_a_quarter_of_the_free_disk_at_most(free: int, nodes: int, size: int) -> None:
    assert pool.usual_bytes(free, nodes) == size


def test_what_pools_take_is_said() -> None:
    assert "4.0 GiB" in pool.announcement([2 * GIB, 2 * GIB], Path("/s")) and "2 pools" in pool.announcement(
        [GIB, GIB], Path("/s")
    )
    assert "a pool of 2.0 GiB" in pool.announcement([2 * GIB], Path("/s"))


@pytest.mark.parametrize(
    ("probed", "found"),
    [
        ("", ""),
        ("DEVNAME=/dev/x\nTYPE=ext4\nLABEL=home\n", "a file system or the like (ext4)"),
        ("DEVNAME=/dev/x\nTYPE=btrfs\nLABEL=primordia\n", "primordia"),
        ("DEVNAME=/dev/x\nTYPE=btrfs\nLABEL=data\n", "a file system or the like (btrfs)"),
        ("DEVNAME=/dev/x\nPTTYPE=gpt\n", "partitions (gpt)"),
    ],
)
def test_what_is_on_a_device(probed: str, found: str) -> None:
    assert pool.content_of(probed) == found


async def test_one_device_is_one_nodes(tmp_path: Path) -> None:
    made = soup(Shape(2))
    paths = places(tmp_path, made)
    with pytest.raises(InvalidError, match="--pool-device"):
        await pool.ensure(made, paths, PoolWish(device="/dev/null"), lambda words: None)


async def test_what_was_asked_for_by_name_is_an_error_where_it_cannot_be_had(tmp_path: Path) -> None:
    made = soup(Shape(1))
    paths = places(tmp_path, made)
    with pytest.raises(InvalidError, match="no block device"):
        await pool.ensure(made, paths, PoolWish(device="/dev/null"), lambda words: None)
    assert not paths.node("n1").volumes.exists()


async def test_a_node_without_room_for_a_pool_is_a_node_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = soup(Shape(1))
    paths = places(tmp_path, made)
    monkeypatch.setattr(pool, "usual_bytes", lambda free, nodes: 0)
    said: list[str] = []
    found = await pool.ensure(made, paths, PoolWish(), said.append)
    assert found["n1"][0] == "" and "too little for pools" in found["n1"][1]
    assert len(said) == 1 and "Lifeforms with data will not run here" in said[0]


async def test_a_pool_keeps_its_size_and_place(tmp_path: Path) -> None:
    made = soup(Shape(1))
    paths = places(tmp_path, made)
    paths.node("n1").pool_file.write_bytes(bytes(4096))
    for wish in (PoolWish(size_bytes=GIB), PoolWish(device="/dev/null")):
        with pytest.raises(InvalidError, match="keeps it"):
            await pool.ensure(made, paths, wish, lambda words: None)


async def test_a_device_that_is_gone_is_no_new_file(tmp_path: Path) -> None:
    made = soup(Shape(1))
    paths = places(tmp_path, made, source="/dev/primordia-gone")
    found = await pool.ensure(made, paths, PoolWish(), lambda words: None)
    assert found["n1"][0] == "" and "no block device" in found["n1"][1] and not paths.node("n1").pool_file.exists()


def test_soup_yaml_sizes_the_pool_of_each_node() -> None:
    nodes = plan_nodes(Shape(listed=(NodeEntry(rack="r1", pool="3Gi"), NodeEntry(rack="r2"))))
    assert [node.pool_bytes for node in nodes] == [3 * GIB, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, which needs root")
async def test_a_pool_is_made_mounted_opened_let_go_of_and_deleted(tmp_path: Path) -> None:
    made = soup(Shape(1))
    paths = places(tmp_path, made)
    here = paths.node("n1")
    said: list[str] = []
    try:
        for _ in range(2):
            found = await pool.ensure(made, paths, PoolWish(size_bytes=256 * MIB), said.append)
            assert found == {"n1": (str(here.pool_file), "")}
        assert len(said) == 1 and "256 MiB" in said[0]
        await pool.unmount(here)  # as a reboot does
        config = node_config(made, made.nodes[0], paths, tmp_path, Tools())
        volumes, why = await pool.open_pool(msgspec.structs.replace(config, pool=found["n1"][0]))
        assert volumes is not None and why == ""
        assert (await volumes.pool()).total_bytes == 256 * MIB
        await volumes.close()
        assert [each.point for each in driver.mounted_pools() if each.file == here.pool_file] == [here.volumes]
    finally:
        await pool.unmount(here)
    assert not [each for each in driver.mounted_pools() if each.file == here.pool_file]


async def test_a_daemon_without_a_pool_says_what_up_has_found(tmp_path: Path) -> None:
    made = soup(Shape(1))
    paths = places(tmp_path, made)
    config = node_config(made, made.nodes[0], paths, tmp_path, Tools())
    volumes, why = await pool.open_pool(config)
    assert volumes is None and "primordia up" in why

"""The power of a node of a real soup: off without a word, back with what was flushed and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from primordia.drivers.volumes_btrfs import pool
from primordia.host.pool import PoolWish
from primordia.host.power import cut_power, restore_power
from primordia.host.shape import Shape
from primordia.testing.soup import Many, eventually, many_nodes
from primordia.testing.volumes import put
from primordia.wire.conditions import holds, is_silent
from primordia.wire.resources import Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

POOL_BYTES = 256 << 20


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3), PoolWish(size_bytes=POOL_BYTES)) as built:
        yield built


async def test_a_power_cut_and_a_boot(soup: Many) -> None:
    flushed, not_flushed = (soup.paths("n3").volumes / name for name in ("flushed", "not-flushed"))
    for path in (flushed, not_flushed):
        path.write_bytes(b"")
        await put(path, 0, b"first")
    await put(flushed, 0, b"later")
    await put(not_flushed, 0, b"later", flush=False)

    async with soup.client("n1", "n2") as client:

        async def ready() -> bool:
            return holds((await client.get(Node, "n3")).status.conditions, "Ready")

        await eventually("n3 is ready", ready)
    await cut_power(soup.soup, "n3")

    assert not soup.pid("n3", "supervisor") and not soup.pid("n3", "daemon") and not soup.pid("n3", "engine")
    assert not any(each.point == soup.paths("n3").volumes for each in pool.mounted_pools())
    async with soup.client("n1", "n2") as client:

        async def missed() -> bool:
            return is_silent((await client.get(Node, "n3")).status.conditions)

        await eventually("n3 is missed", missed)
        await restore_power(soup.soup, "n3")
        await eventually("n3 is back", ready)

    async def mounted() -> bool:
        return any(each.point == soup.paths("n3").volumes for each in pool.mounted_pools())

    await eventually("its pool is mounted", mounted)
    assert flushed.read_bytes() == b"later"
    assert not_flushed.read_bytes() == b"first", "the power cut lost nothing: it was none"

"""Six nodes on three racks in two segments: from nothing to the first answer, one image for all, six lifeforms on six nodes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from primordia.cli.nodes import racks_of
from primordia.host.shape import Shape
from primordia.host.up import UpOptions, up
from primordia.kit.errors import InvalidError
from primordia.testing.soup import SERVE, Many, eventually, fetch, lifeform, many_nodes, running
from primordia.wire.catalogue import builtin_image
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Image, Lifeform, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(6, 3, 2)) as built:
        yield built


async def test_the_first_lifeform_answers_everywhere(soup: Many) -> None:
    begun = time.monotonic()
    async with soup.client() as client:
        await running(client, lifeform("web", command=SERVE, publish=18090))

        async def everybody_answers() -> bool:
            return all(await asyncio.gather(*(_is_web(soup, node) for node in soup.names)))

        await eventually("every node answers", everybody_answers)
    print(f"up {soup.seconds:.1f} s, first lifeform answering on all nodes {time.monotonic() - begun:.1f} s later")


async def _is_web(soup: Many, node: str) -> bool:
    return await fetch(soup.address(node), 18090) == "web-main"


async def test_racks_segments_and_capacity(soup: Many) -> None:
    async with soup.client() as client:

        async def all_are_ready() -> bool:
            nodes = (await client.list(Node)).items
            return len(nodes) == 6 and all(
                any(one.type == "Ready" and one.status == "True" for one in node.status.conditions) for node in nodes
            )

        await eventually("six nodes are ready", all_are_ready)
        nodes, lifeforms = (await client.list(Node)).items, (await client.list(Lifeform)).items
    racks = racks_of(nodes, lifeforms)
    assert [(rack.segment, rack.name, [node.metadata.name for node in rack.nodes]) for rack in racks] == [
        ("s1", "r1", ["n1", "n4"]),
        ("s1", "r2", ["n2", "n5"]),
        ("s2", "r3", ["n3", "n6"]),
    ]
    assert {bool(soup.pid(name, "engine")) for name in ("n1", "n2", "n3")} == {True}
    assert {bool(soup.pid(name, "engine")) for name in ("n4", "n5", "n6")} == {False}
    promised = sum(int(rack.room.memory_most) for rack in racks)
    assert promised <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


async def test_one_image_serves_six_nodes(soup: Many) -> None:
    known = builtin_image("busybox")
    assert known is not None
    async with soup.client() as client:
        await client.create(Image(metadata=ObjectMeta(name="shared"), spec=known.spec))

        async def all_have_it() -> bool:
            status = (await client.get(Image, "shared")).status
            return status.phase == "Ready" and status.nodes == tuple(sorted(soup.names))

        await eventually("the image names all six nodes", all_have_it)


async def test_lifeforms_spread_over_the_nodes_and_up_again_changes_nothing(soup: Many) -> None:
    async with soup.client("n6") as client:
        await soup.clear()
        placed = await running(client, *(lifeform(f"life-{number}") for number in range(6)))
        assert {one.status.node for one in placed} == set(soup.names)
        machines = soup.runs()
        with pytest.raises(InvalidError, match=r"--nodes: soup .* has 6 nodes and not 5"):
            await up(UpOptions(soup=soup.soup.name, shape=Shape(nodes=5), client_config=soup.config), lambda step: None)
        await up(UpOptions(soup=soup.soup.name, client_config=soup.config), lambda step: None)
        for each in placed:
            assert (await client.exec(each.metadata.name, ["echo", "alive"])).stdout == b"alive\n"
        assert soup.runs() == machines
        assert len(machines) == 6

"""Daemons and engine members die, hang and come back; no lifeform restarts, and new ones find their place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from primordia.client.answers import ready
from primordia.host.shape import Shape
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Context, Lifeform, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 2)) as built:

        async def populate() -> None:
            async with built.client() as client:
                for node in built.names:
                    await client.wait(Node, node, ready, timeout_s=120)
                placed = await running(client, *(lifeform(f"life-{number}") for number in range(3)))
                assert {one.status.node for one in placed} == set(built.names)  # spread, not piled up

        asyncio.run(populate())
        yield built


@pytest.fixture
async def unharmed(soup: Many) -> tuple[dict[str, int], dict[str, int]]:
    """What must be the same afterwards: every microVM's process, and every lifeform's epoch."""
    async with soup.client() as client:
        return soup.runs(), {one.metadata.name: one.status.epoch for one in (await client.list(Lifeform)).items}


async def check(soup: Many, before: tuple[dict[str, int], dict[str, int]]) -> None:
    async with soup.client() as client:

        async def all_answer() -> bool:
            return all([(await client.exec(name, ["true"])).code == 0 for name in before[1]])

        await eventually("every lifeform answers", all_answer)
        assert soup.runs() == before[0]
        assert {one.metadata.name: one.status.epoch for one in (await client.list(Lifeform)).items} == before[1]
        assert all(one.status.restarts == 0 for one in (await client.list(Context)).items)


async def write(soup: Many) -> None:
    """A write of the soup's state succeeds."""

    async def written() -> bool:
        async with soup.client() as client:
            await client.patch(Lifeform, "life-0", {"metadata": {"annotations": {"touched": os.urandom(4).hex()}}})
            return True

    await eventually("the soup takes writes", written)


async def test_a_daemon_is_killed(soup: Many, unharmed: tuple[dict[str, int], dict[str, int]]) -> None:
    for node in soup.names:
        soup.kill(node, "daemon")
    await check(soup, unharmed)


async def test_a_daemon_hangs(soup: Many, unharmed: tuple[dict[str, int], dict[str, int]]) -> None:
    with soup.frozen("n3", "daemon"):
        await write(soup)
        await asyncio.sleep(3)
    await check(soup, unharmed)


async def test_an_engine_member_is_killed(soup: Many, unharmed: tuple[dict[str, int], dict[str, int]]) -> None:
    soup.kill("n1", "engine")
    await write(soup)
    await check(soup, unharmed)


async def test_an_engine_member_hangs(soup: Many, unharmed: tuple[dict[str, int], dict[str, int]]) -> None:
    with soup.frozen("n2", "engine"):
        await write(soup)
    await write(soup)
    await check(soup, unharmed)


async def test_a_cordoned_node_takes_nothing_new_and_keeps_what_it_has(
    soup: Many, unharmed: tuple[dict[str, int], dict[str, int]]
) -> None:
    async with soup.client() as client:
        for node in ("n1", "n2"):
            await client.patch(Node, node, {"spec": {"unschedulable": True}})
        (placed,) = await running(client, lifeform("late"))
        assert placed.status.node == "n3"
        waiting = await client.create(lifeform("never", node="n1"))

        async def explained() -> bool:
            stored = await client.get(Lifeform, waiting.metadata.name)
            return any("cordoned" in one.message for one in stored.status.conditions if one.type == "Scheduled")

        await eventually("it says why it can go nowhere", explained)
        await client.delete(Lifeform, "late")
        for node in ("n1", "n2"):
            await client.patch(Node, node, {"spec": {"unschedulable": None}})

        async def placed_now() -> bool:
            return (await client.get(Lifeform, "never")).status.node == "n1"

        await eventually("an uncordoned node takes it", placed_now)
        await client.delete(Lifeform, "never")

        async def both_gone() -> bool:
            return len((await client.list(Lifeform)).items) == 3 and soup.runs() == unharmed[0]

        await eventually("both are gone", both_gone)
    await check(soup, unharmed)

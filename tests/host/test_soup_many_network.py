"""Ports, names and policies across nodes: where a lifeform is must not matter to whoever talks to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from primordia.client import AsyncClient, answers
from primordia.host.shape import Shape
from primordia.testing.soup import PATIENCE_S, SERVE, Many, eventually, fetch, lifeform, many_nodes, running
from primordia.wire.resources import Lifeform

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

PORT = 18080
FRIENDS = {"role": "friend"}
URL = "http://web.default.soup.internal:8000/"


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 2)) as built:

        async def populate() -> None:
            async with built.client() as client:
                await running(
                    client,
                    lifeform("web", node="n1", command=SERVE, allow=FRIENDS, publish=PORT),
                    lifeform("friend", node="n2", labels=FRIENDS),
                    lifeform("stranger", node="n3"),
                )

        asyncio.run(populate())
        yield built


async def _knock(client: AsyncClient, who: str, whom: str) -> int:
    """0 when a connection can be made. Bounded from inside, for one that is cut off while it stands is told to nobody."""
    knock = f"timeout 10 nc -w 3 {whom}.default.soup.internal 8000 </dev/null"
    return (await client.exec(who, ["sh", "-c", knock])).code


async def test_a_published_port_answers_on_every_node(soup: Many) -> None:
    for node in soup.names:

        async def answers_there(node: str = node) -> bool:
            return await fetch(soup.address(node), PORT) == "web-main"

        await eventually(f"{node} answers", answers_there)


async def test_names_and_policies_hold_across_nodes(soup: Many) -> None:
    async with soup.client("n1") as client:

        async def friend_is_served() -> bool:
            return (await client.exec("friend", ["wget", "-qO-", URL])).stdout == b"web-main\n"

        await eventually("the friend on another node is served", friend_is_served)
        resolved = await client.exec("stranger", ["nslookup", "web.default.soup.internal"])
        assert resolved.code == 0  # a name is no secret; the way to it is closed
        assert (await _knock(client, "stranger", "web")) != 0
        assert (await _knock(client, "friend", "stranger")) != 0
        assert (await client.exec("friend", ["nslookup", "nobody.default.soup.internal"])).code != 0


async def test_both_follow_a_lifeform_that_is_made_anew_elsewhere(soup: Many) -> None:
    """And a label that is gone closes what it had opened."""
    async with soup.client("n2") as client:
        await client.delete(Lifeform, "web")
        await client.wait(Lifeform, "web", answers.deleted, timeout_s=PATIENCE_S)

        async def nobody_answers() -> bool:
            return not any([await fetch(soup.address(node), PORT) for node in soup.names])

        await eventually("the port is closed on every node", nobody_answers)
        await running(client, lifeform("web", node="n3", command=SERVE, allow=FRIENDS, publish=PORT))

        async def everybody_answers() -> bool:
            return all([await fetch(soup.address(node), PORT) == "web-main" for node in soup.names])

        async def friend_is_served() -> bool:
            return (await client.exec("friend", ["wget", "-qO-", URL])).stdout == b"web-main\n"

        await eventually("the port leads to the new place", everybody_answers)
        await eventually("the name leads to the new place", friend_is_served)
        assert (await _knock(client, "stranger", "web")) != 0
        await client.patch(Lifeform, "web", {"spec": {"network": {"allowFrom": []}}})

        async def friend_is_refused() -> bool:
            return (await _knock(client, "friend", "web")) != 0

        await eventually("what was allowed is closed again", friend_is_refused)

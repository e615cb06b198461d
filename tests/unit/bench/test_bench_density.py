"""How many forks fit: until the node refuses, whoever of several that ask at once hears it first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from primordia.bench import density
from primordia.bench.ground import Ground
from primordia.client.boxes import Box
from primordia.kit.errors import CapacityError


@dataclass
class Node:
    """A client of a node on which so many boxes have room."""

    room: int
    given: int = 0
    refused: int = 0

    async def box(self, template: str) -> object:
        await asyncio.sleep(0)
        if self.given == self.room:
            self.refused += 1
            raise CapacityError("The node is full.")
        self.given += 1
        await asyncio.sleep(0)
        return object()


@pytest.mark.parametrize(("room", "most", "fit", "says"), [(9, 1000, 9, "is full"), (50, 20, 20, "20 were all")])
async def test_it_is_filled_to_its_cap_or_to_what_is_asked_for(room: int, most: int, fit: int, says: str) -> None:
    node = Node(room)
    boxes: list[Any] = [await node.box("x") for _ in range(3)]
    ground = cast(Ground, SimpleNamespace(client=node))
    refusal = await density._fill(ground, "x", cast("list[Box]", boxes), most)
    assert says in refusal
    assert len(boxes) == node.given == fit
    assert node.refused <= density._AT_ONCE

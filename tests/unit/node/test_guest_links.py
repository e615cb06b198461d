"""The link to a guest whose microVM dies while it is made."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from primordia.kit.clock import SystemClock
from primordia.node.guests import GuestLinks


@pytest.mark.parametrize("turns", range(4))
async def test_a_microvm_that_dies_at_any_turn_ends_the_wait_and_breaks_nothing(turns: int) -> None:
    live: Any = SimpleNamespace(machine=object(), died=asyncio.Event(), guest=None, title="default/a")
    tried = []

    async def connect(machine: object) -> None:
        tried.append(machine)
        await asyncio.Event().wait()

    async def die() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        live.machine = None
        live.died.set()

    settings = SimpleNamespace(greeting_s=60.0, reconnect_first_s=0.01, reconnect_longest_s=0.02)
    services: Any = SimpleNamespace(settings=settings, clock=SystemClock(), connect=connect)
    death = asyncio.create_task(die())
    with pytest.raises(TimeoutError, match="the agent did not answer"):
        await GuestLinks(services).connect(live, None)
    await death
    assert None not in tried
    assert live.guest is None

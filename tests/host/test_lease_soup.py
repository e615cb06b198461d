"""A real soup of three nodes: what a lease says of a node whose daemon, supervisor or time is taken away, and which nobody
declares dead, for it is in maintenance.

The control over the truth is the microVM itself: its pid stays the same through all of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from primordia.bench import lifeforms
from primordia.client import answers
from primordia.client.aio import AsyncClient, connect
from primordia.domain.timings import Timings
from primordia.host import up as host
from primordia.host.shape import Shape
from primordia.kit import ids
from primordia.kit.errors import PrimordiaError
from primordia.kit.identity import running_pid
from primordia.kit.paths import SoupPaths
from primordia.supervisor import control
from primordia.supervisor.main import PID_FILE, SOCKET_FILE
from primordia.wire.conditions import find
from primordia.wire.resources import Context, Lifeform, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

PATIENCE_S = 180.0
TTL_S = Timings().ttl_s


@dataclass
class Soup:
    """Three nodes and a client."""

    options: host.UpOptions
    client: AsyncClient

    async def up(self) -> None:
        """Bring up what is missing."""
        await host.up(self.options, lambda step: None)

    def run_dir(self, node: str) -> Path:
        return SoupPaths.of(self.options.soup).node(node).run

    def lease(self, node: str) -> dict[str, Any]:
        """What the node's supervisor says of its lease."""
        lease: dict[str, Any] = control.ask(self.run_dir(node) / SOCKET_FILE, "status")["lease"]
        return lease

    def signal(self, node: str, who: str, number: signal.Signals) -> int:
        """Signal a node's supervisor, or a child of it; its pid."""
        pid = running_pid(self.run_dir(node) / (PID_FILE if who == "supervisor" else f"{who}.pid"))
        assert pid, f"the {who} of {node} runs"
        os.kill(pid, number)
        return pid

    async def context(self, lifeform: str) -> Context:
        return await self.client.get(Context, f"{lifeform}.main")

    async def ready(self, node: str) -> str:
        found = find((await self.client.get(Node, node)).status.conditions, "Ready")
        return found.status if found is not None else ""

    async def phase(self, lifeform: str) -> str:
        return (await self.client.get(Lifeform, lifeform)).status.phase


@pytest.fixture
async def soup() -> AsyncIterator[Soup]:
    with tempfile.TemporaryDirectory(prefix="primordia-lease-") as folder:
        config = Path(folder) / "config"
        options = host.UpOptions(soup=f"lease-{ids.suffix()}", shape=Shape(nodes=3, racks=3), client_config=config)
        try:
            await host.up(options, lambda step: None)
            async with connect(config) as client:
                # What is told here is told while nobody takes anything over.
                for node in ("n1", "n2", "n3"):
                    await client.wait(Node, node, answers.ready, timeout_s=PATIENCE_S)
                    await client.patch(Node, node, {"spec": {"maintenance": {}}})
                yield Soup(options, client)
        finally:
            await host.down(options.soup, lambda step: None, destroy=True, client_config=config)


async def eventually(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if await holds():
                return
        except (PrimordiaError, OSError, ValueError):
            pass
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}")
        await asyncio.sleep(0.2)


async def born(soup: Soup) -> tuple[str, str, int]:
    """A running lifeform: its name, its node, the pid of its microVM."""
    name = f"life-{ids.suffix()}"
    await soup.client.create(lifeforms.manifest(name))
    await soup.client.wait(Lifeform, name, answers.phase("Running"), timeout_s=600)
    context = await soup.context(name)
    return name, context.spec.node, context.status.pid


async def test_a_soup_tells_by_leases_which_of_its_nodes_live(soup: Soup) -> None:
    for node in ("n1", "n2", "n3"):
        await eventually(f"{node} is ready", lambda node=node: _is(soup.ready(node), "True"))  # type: ignore[misc]
    name, node, pid = await born(soup)
    life = soup.lease(node)

    # The daemon's crash costs neither the lease nor the microVM.
    soup.signal(node, "daemon", signal.SIGKILL)
    await asyncio.sleep(TTL_S + 1)
    now = soup.lease(node)
    assert now["held"] and (now["lease"], now["createRevision"]) == (life["lease"], life["createRevision"])
    await eventually("the microVM is told of as before", lambda: _is(soup.phase(name), "Running"))
    assert (await soup.context(name)).status.pid == pid

    # A supervisor that is gone, and its daemon and engine with it: Unknown, and started nowhere else.
    soup.signal(node, "supervisor", signal.SIGKILL)
    await eventually("the node is unknown", lambda: _is(soup.ready(node), "Unknown"))
    await eventually("the lifeform is unknown", lambda: _is(soup.phase(name), "Unknown"))
    await asyncio.sleep(TTL_S)
    context = await soup.context(name)
    assert (context.spec.node, context.spec.epoch, context.status.pid) == (node, 1, pid)
    os.kill(pid, 0)

    await soup.up()
    await eventually("the node is back", lambda: _is(soup.ready(node), "True"))
    await eventually("the lifeform runs", lambda: _is(soup.phase(name), "Running"))
    context = await soup.context(name)
    assert (context.status.pid, context.status.restarts) == (pid, 0), "the same microVM"


async def test_a_daemon_whose_node_has_lost_its_lease_starts_nothing(soup: Soup) -> None:
    name, node, pid = await born(soup)
    supervisor = soup.signal(node, "supervisor", signal.SIGSTOP)
    try:
        await eventually("the node is unknown", lambda: _is(soup.ready(node), "Unknown"))
        assert json.loads((soup.run_dir(node) / "lease.json").read_text())["createRevision"], "the daemon knows nothing of it"
        os.kill(pid, signal.SIGKILL)

        async def refused() -> bool:
            return (await soup.context(name)).status.reason == "NodeLeaseLost"

        await eventually("its start is refused", refused)
        await asyncio.sleep(TTL_S)
        context = await soup.context(name)
        assert not context.status.pid and context.spec.node == node
    finally:
        os.kill(supervisor, signal.SIGCONT)
    await eventually("the node is back", lambda: _is(soup.ready(node), "True"))
    await eventually("it runs again", lambda: _is(soup.phase(name), "Running"))


async def _is(found: Awaitable[str], wanted: str) -> bool:
    return await found == wanted

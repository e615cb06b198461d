"""Lifeforms that go elsewhere with their data: by request, as `node drain` asks for it, and because the only node with room for
one whose owner died has no copy of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

from primordia.bench.failover_scene import Scene, eventually, fetch
from primordia.client import answers
from primordia.client.moves import move
from primordia.drivers.volumes_btrfs.layout import Layout
from primordia.host.power import cut_power, restore_power
from primordia.kit.command import run
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.wire.resources import Lifeform, Node, Volume

SEEDED_MIB = 160
_ASK_EVERY_S = 0.02
_SEEDED_WITHIN_S = 180.0
_FILL = f"dd if=/dev/urandom of=/data/blob bs=1M count={SEEDED_MIB} 2>/dev/null"


async def drained(scene: Scene, turn: int) -> float:
    """Seconds in which no node answers a client for the lifeform, while it is moved off its node."""
    record = await scene.settled(f"drain-{turn}")
    hosts = [scene.ground.address(node) for node in scene.ground.nodes]
    answered = [time.monotonic()]

    async def ask() -> None:
        for host in itertools.cycle(hosts):
            if await fetch(host, scene.port, "/record") == record:
                answered.append(time.monotonic())
            await asyncio.sleep(_ASK_EVERY_S)

    asking = asyncio.create_task(ask(), name="bench/ask")
    try:
        outcome = await move(scene.ground.client, scene.name, "elsewhere", timeout_s=_SEEDED_WITHIN_S)
        if outcome.moved is None:
            raise TemporaryError(f"{scene.name} was not moved: {outcome.message}", remedy="Measure again.")
        count = len(answered)
        await eventually("the lifeform answers where it is now", lambda: _more_than(answered, count))
    finally:
        asking.cancel()
        await asyncio.wait([asking])
    return max(later - earlier for earlier, later in itertools.pairwise(answered))


async def _more_than(answered: list[float], count: int) -> bool:
    return len(answered) > count


async def seeded(scene: Scene) -> tuple[float, float]:
    """Seconds that a copy takes which is made over the network for a dead node's lifeform, and those of a plain copy of the
    same bytes. The lifeform has one copy, whose node takes nothing new: it goes on where there is none."""
    client = scene.ground.client
    result = await client.exec(scene.name, ["sh", "-c", _FILL])
    if result.code:
        raise PrimordiaError(f"The guest could not write: {result.stderr.decode(errors='replace')[-300:]}")
    await scene.settled("seed")
    owner = await scene.node()
    volume = await client.get(Volume, scene.volume)
    (holder,) = volume.status.replicas
    (third,) = {*scene.ground.nodes} - {owner, holder}
    await scene.bring_leader_from(owner)
    plain = await _plain_copy(scene, volume.metadata.uid, holder, third)
    await client.patch(Node, holder, {"spec": {"unschedulable": True}})
    try:
        seen: list[tuple[float, str]] = []
        watching = asyncio.create_task(_phases(scene, seen), name="bench/phases")
        try:
            await cut_power(scene.ground.soup, owner)
            await eventually("the lifeform runs where no copy was", lambda: _runs_on(scene, third))
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        begun = next((at for at, phase in seen if phase == "Seeding"), None)
        ended = next((at for at, phase in seen if begun is not None and at > begun and phase != "Seeding"), None)
        if begun is None or ended is None:
            raise TemporaryError(f"It was not seen how its data came to {third}.", remedy="Measure again.")
        return ended - begun, plain
    finally:
        await restore_power(scene.ground.soup, owner)
        await client.patch(Node, holder, {"spec": {"unschedulable": False}})


async def _phases(scene: Scene, seen: list[tuple[float, str]]) -> None:
    """Note each phase of its move, as it is told."""
    while True:
        with contextlib.suppress(PrimordiaError, OSError):
            async for event in scene.ground.client.watch(Lifeform):
                moving = event.object.status.moving
                phase = moving.phase if moving is not None else ""
                if event.object.metadata.name == scene.name and (not seen or seen[-1][1] != phase):
                    seen.append((time.monotonic(), phase))
        await asyncio.sleep(_ASK_EVERY_S)


async def _runs_on(scene: Scene, node: str) -> bool:
    lifeform = await scene.ground.client.get(Lifeform, scene.name)
    return lifeform.status.node == node and answers.ready(lifeform)


async def _plain_copy(scene: Scene, uid: str, source: str, target: str) -> float:
    """Seconds that it takes to copy the newest snapshot from one pool to another, durably."""
    layout = Layout(scene.ground.paths_of(source).volumes / "volumes" / uid)
    disk = layout.disk(max(await asyncio.to_thread(layout.published)))
    async with _scratch(scene.ground.paths_of(target).volumes / f"bench-{uid}") as copy:
        begun = time.perf_counter()
        await run(["cp", "--sparse=always", "--reflink=never", "--", str(disk), str(copy)], timeout_s=_SEEDED_WITHIN_S)
        await run(["sync", "-d", "--", str(copy)], timeout_s=_SEEDED_WITHIN_S)
        return time.perf_counter() - begun


@contextlib.asynccontextmanager
async def _scratch(path: Path) -> AsyncIterator[Path]:
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)

"""Contexts that go to another node, and come from one that died: what the node does, and what their guest is told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec.structs import replace

from primordia.registry.ownership import owner_put
from primordia.registry.registry import Registry
from primordia.registry.together import write_together
from primordia.testing.node import NodeWorld
from primordia.testing.virtual import run_virtual
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextStatus, ContextTemplate, Lifeform, LifeformSpec, Recovered

SHOP = Lifeform(
    metadata=ObjectMeta(name="shop", namespace="default"),
    spec=LifeformSpec(contexts=(ContextTemplate(name="main", image="busybox", command=("serve",)),)),
)
RECOVERED = Recovered(from_node="n2", epoch=3, at="2026-01-01T00:00:00Z", reason="NodeDead", lost_seconds=1.5)


def play(root: Path, story: Callable[[NodeWorld], Awaitable[None]]) -> None:
    async def main() -> None:
        world = NodeWorld(root)
        try:
            await world.start()
            await story(world)
        finally:
            await world.close()

    run_virtual(main())


async def go(world: NodeWorld, node: str, epoch: int, recovered: Recovered | None = None) -> None:
    """Give the lifeform another node, as a failover does."""
    registry = Registry(world.memory, world.clock)
    lifeform = await registry.get(Lifeform, "shop", "default")
    context = await registry.get(Context, "shop.main", "default")
    placed = replace(lifeform, status=replace(lifeform.status, node=node, epoch=epoch, recovered=recovered))
    spec = replace(context.spec, node=node, epoch=epoch, recovered=recovered)
    moved = replace(context, spec=spec, status=ContextStatus())
    owner = owner_put(lifeform.metadata.uid, node, epoch)
    await write_together(registry, [(lifeform, placed), (context, moved)], also=[owner])


def test_a_context_that_went_away_is_ended_and_forgotten_and_its_object_left_alone(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(SHOP)
        context = await world.ready("shop.main")
        uid = context.metadata.uid
        await go(world, "n2", 2)

        async def ended() -> bool:
            assert world.node is not None
            return uid not in world.vms and world.node.fleet.get(uid) is None

        await world.until(ended)
        await world.clock.sleep(30)
        after = await world.sure.get(Context, "shop.main", "default")
        assert after.metadata.finalizers == context.metadata.finalizers and after.metadata.deletion_timestamp is None
        assert after.status == ContextStatus(), "another node tells of it now"
        assert not (Path(world.config.state_dir) / "contexts" / uid).exists()

    play(tmp_path, story)


def test_a_daemon_that_comes_back_ends_what_went_away_meanwhile(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(SHOP)
        uid = (await world.ready("shop.main")).metadata.uid
        await world.kill()
        await go(world, "n2", 2)
        await world.start()

        async def ended() -> bool:
            assert world.node is not None
            return uid not in world.vms and world.node.fleet.get(uid) is None

        await world.until(ended)
        after = await world.sure.get(Context, "shop.main", "default")
        assert after.status == ContextStatus() and after.metadata.finalizers

    play(tmp_path, story)


def test_one_that_came_because_its_node_died_says_so(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(SHOP)
        uid = (await world.ready("shop.main")).metadata.uid
        await go(world, "n2", 2)

        async def ended() -> bool:
            return uid not in world.vms

        await world.until(ended)
        await go(world, "n1", 3, RECOVERED)

        async def there() -> bool:
            context = await world.sure.get(Context, "shop.main", "default")
            return context.status.ready and context.status.started_because == "Failover"

        await world.until(there)
        stream = world.vms[uid].agent.open_stream("api")
        await stream.write(b"GET /v1/self HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := await stream.read():
            answer += piece
        me = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (me["epoch"], me["startedBecause"]) == (3, "Failover")
        assert "restoredFrom" not in me, "it has no data"

    play(tmp_path, story)

"""When a daemon believes an engine, and how one that begins anew is filled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from primordia.daemon.incarnation import Incarnation
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import SystemClock
from primordia.kit.paths import NodePaths
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Lifeform, Port, Soup, SoupStatus


def engine() -> Registry:
    clock = SystemClock()
    return Registry(MemoryStore(clock), clock)


def a_soup(incarnation: int = 1) -> Soup:
    return Soup(metadata=ObjectMeta(name="soup"), status=SoupStatus(incarnation=incarnation))


async def believes(registry: Registry, paths: NodePaths, least: int = 1) -> bool:
    """Whether it does so at once; it waits otherwise."""
    try:
        async with asyncio.timeout(0.2):
            await Incarnation(registry, paths, least, SystemClock()).known()
    except TimeoutError:
        return False
    return True


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    return NodePaths(tmp_path, tmp_path)


async def test_a_soup_that_begins_is_believed_and_remembered(paths: NodePaths) -> None:
    registry = engine()
    assert await believes(registry, paths)
    await registry.create(a_soup())
    assert await believes(registry, paths)
    assert not await believes(engine(), paths), "an engine that has forgotten the soup"
    other = engine()
    await other.create(a_soup())
    assert not await believes(other, paths), "another soup's engine"
    assert await believes(registry, paths)


async def test_an_older_incarnation_is_not_believed_and_a_newer_one_is(paths: NodePaths) -> None:
    registry = engine()
    soup = await registry.create(a_soup())
    assert not await believes(registry, paths, least=2)
    assert not await believes(engine(), NodePaths(paths.state / "x", paths.state / "x"), least=2)
    assert await believes(registry, paths)
    newer = engine()
    await newer.put(msgspec.structs.replace(soup, status=SoupStatus(incarnation=2)))
    assert await believes(newer, paths)
    assert not await believes(registry, paths), "the old one is none any more"


async def test_what_was_left_is_written_once_with_uids_and_claims(paths: NodePaths) -> None:
    old = engine()
    made = make_lifeform("shop")
    port = (Port(container_port=80, publish=8080),)
    spec = msgspec.structs.replace(made.spec, contexts=(msgspec.structs.replace(made.spec.contexts[0], ports=port),))
    lifeform = await old.create(msgspec.structs.replace(made, spec=spec))
    soup = await old.create(a_soup(2))
    paths.rebuild.write_bytes(msgspec.json.encode([lifeform, soup]))
    new = engine()
    assert await believes(new, paths, least=2)
    again = await new.get(Lifeform, "shop", "default")
    assert (again.metadata.uid, again.metadata.generation, again.spec) == (lifeform.metadata.uid, 1, lifeform.spec)
    assert not paths.rebuild.exists()
    paths.rebuild.write_bytes(msgspec.json.encode([lifeform, soup]))  # as after a crash before the file was put away
    assert await believes(new, paths, least=2)
    rival = msgspec.structs.replace(made, spec=spec, metadata=ObjectMeta(name="rival", namespace="default"))
    with pytest.raises(Exception, match="8080"):
        await new.create(rival)

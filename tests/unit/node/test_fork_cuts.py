"""The daemon dies at every call that leaves it, before and after it, in the middle of a claim and of a live fork. The next one
finds no twin, leaves nothing, and the parent goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from primordia.testing.forks import ForkWorld
from primordia.testing.virtual import run_virtual
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import ContextTemplate, Lifeform, LifeformSpec

Act = Callable[[ForkWorld], Awaitable[object]]
Prepare = Callable[[ForkWorld], Awaitable[None]]


async def a_pool(world: ForkWorld) -> None:
    await world.template(warm=(1, 1))


async def a_parent(world: ForkWorld) -> None:
    template = ContextTemplate(name="main", image="busybox", command=("serve",))
    await world.sure.create(
        Lifeform(metadata=ObjectMeta(name="shop", namespace="default"), spec=LifeformSpec(contexts=(template,)))
    )
    await world.ready("shop.main")
    await world.clock.sleep(10)


async def claim(world: ForkWorld) -> object:
    return await world.claim(name="box")


async def fork(world: ForkWorld) -> object:
    return await world.fork("shop.main")


async def fork_twice(world: ForkWorld) -> object:
    return await world.fork("shop.main", count=2)


def told(outcome: object) -> set[str]:
    """The contexts that somebody was given."""
    children = getattr(outcome, "children", None)
    if children is not None:
        return {child.name for child in children if not child.reason}
    return {outcome.name} if outcome is not None else set()  # type: ignore[attr-defined]


async def cut(world: ForkWorld, act: Act, at: int, *, after: bool) -> bool:
    """Act, and die at the n-th call; whether it died.

    Of several forks one may be whole when the daemon dies while it makes another: that one lives, though nobody was told yet.
    """
    knife = world.knife
    knife.at, knife.after = knife.calls + at, after
    acting, fell = asyncio.ensure_future(act(world)), asyncio.ensure_future(knife.fell.wait())
    await asyncio.wait({acting, fell}, return_when=asyncio.FIRST_COMPLETED)
    fell.cancel()
    knife.at = 0
    died = knife.fell.is_set()
    outcome = acting.result() if acting.done() else None
    if died:
        acting.cancel()
        world.graveyard.append(acting)
        await world.crash()
    before = told(outcome)
    await world.clock.sleep(60)
    await world.nothing_stray()
    contexts = await world.contexts()
    boxes = {name for name, context in contexts.items() if not context.spec.lifeform}
    assert before <= boxes, "who was told of is there"
    assert act is fork_twice or boxes == before, "and nobody else is"
    owners = [context.status.ip for context in contexts.values()]
    assert len(set(owners)) == len(owners)
    for name in contexts:
        context, vm = await world.context(name), await world.vm_of(name)
        assert context.status.ready and vm.running.is_set() and not vm.frozen, name
        assert context.status.restarts == 0
    return died


def cuts(tmp_path: Path, prepare: Prepare, act: Act, *, after: bool) -> int:
    """Try every call; how many there were."""

    async def main(at: int) -> bool:
        world = ForkWorld(tmp_path / str(at), seed=at)
        try:
            await world.start()
            await prepare(world)
            await world.clock.sleep(5)
            return await cut(world, act, at, after=after)
        finally:
            await world.close()

    at = 1
    while run_virtual(main(at)):
        at += 1
    return at


@pytest.mark.parametrize("after", [False, True])
def test_a_claim_that_is_cut_off_anywhere_leaves_no_twin(tmp_path: Path, after: bool) -> None:
    assert cuts(tmp_path, a_pool, claim, after=after) > 3  # resume, identify, the transaction; the pool waits


@pytest.mark.parametrize("after", [False, True])
def test_a_live_fork_that_is_cut_off_anywhere_leaves_the_parent_and_nothing_else(tmp_path: Path, after: bool) -> None:
    assert cuts(tmp_path, a_parent, fork, after=after) > 7


@pytest.mark.parametrize("after", [False, True])
def test_of_several_forks_that_are_cut_off_each_is_whole_or_absent(tmp_path: Path, after: bool) -> None:
    assert cuts(tmp_path, a_parent, fork_twice, after=after) > 11

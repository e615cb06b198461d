"""The daemon is killed at every call that leaves the process, before and after it, in the middle of a whole life; and at
random, together with everything else that can die. What follows always converges, and leaves nothing.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from primordia.kit.errors import AlreadyExistsError, ConflictError, NotFoundError
from primordia.ports.vmm import Exit
from primordia.testing.node import NodeWorld
from primordia.testing.virtual import run_virtual
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import ContextTemplate, EnvVar, Lifeform, LifeformSpec, Resources


def lifeform(name: str, *contexts: ContextTemplate) -> Lifeform:
    return Lifeform(metadata=ObjectMeta(name=name, namespace="default"), spec=LifeformSpec(contexts=contexts))


def template(name: str, *env: EnvVar) -> ContextTemplate:
    return ContextTemplate(name=name, image="busybox", command=("serve",), env=env, resources=Resources(cpu="100m"))


def all_bound(world: NodeWorld) -> bool:
    """Whether every microVM has been bound to its CPU time, whoever started it."""
    return {vm.cpu_milli for vm in world.vms.values() if not vm.ended.done()} == {100}


async def whole_life(world: NodeWorld) -> None:
    """Create, run, change, suspend, resume, delete."""
    await world.sure.create(lifeform("shop", template("a"), template("b")))
    await world.ready("shop.a")
    await world.ready("shop.b")
    assert all_bound(world)
    await world.lifeform_phase("shop", "Running")
    await world.change("shop", contexts=(template("a", EnvVar(name="X", value="1")), template("b")))

    async def changed() -> bool:
        status = (await world.context("shop.a")).status
        return status.ready and status.started_because == "SpecChanged"

    await world.until(changed, what="the change")
    assert all_bound(world)
    await world.change("shop", operating_mode="Suspended")
    await world.lifeform_phase("shop", "Suspended")
    assert all(vm.ended.done() for vm in world.vms.values())
    await world.change("shop", operating_mode="Running")
    await world.lifeform_phase("shop", "Running")
    found = await world.lifeform("shop")
    assert found is not None and found.status.epoch == 1
    assert {status.restarts for status in (context.status for context in (await world.contexts()).values())} <= {0}
    await world.sure.delete(Lifeform, "shop", "default")
    await world.gone("shop")


def calls_of_a_life(tmp_path: Path) -> int:
    """How many calls there are to cut at."""

    async def main() -> int:
        world = NodeWorld(tmp_path)
        try:
            await world.start()
            await whole_life(world)
            return world.knife.calls
        finally:
            await world.close()

    return run_virtual(main())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_every_interrupted_prefix_converges(tmp_path: Path, part: int, after: bool) -> None:
    count = calls_of_a_life(tmp_path / "measure")
    assert count > 50

    async def main(at: int) -> None:
        world = NodeWorld(tmp_path / str(at))
        world.knife.at, world.knife.after = at, after
        try:
            await world.start()
            await whole_life(world)
            assert world.knife.calls >= at
        finally:
            await world.close()

    for at in range(1 + part, count + 1, 4):
        run_virtual(main(at))


@pytest.mark.parametrize("seed", range(8))
def test_chaos_converges(tmp_path: Path, seed: int) -> None:
    """Lifeforms come, change and go while daemons, microVMs, links, the store and the host die at random."""
    print(f"seed {seed}")

    async def main() -> None:
        world = NodeWorld(tmp_path, seed=seed)
        rng = random.Random(seed)
        try:
            await world.start()
            for step in range(60):
                await chaos(world, rng, step)
                await world.clock.sleep(rng.choice([0.0, 0.05, 0.5, 3.0, 20.0]))
            world.store.away, world.store.lose, world.deaf, world.boot_s = False, lambda: False, False, 2.0
            await settle(world)
        finally:
            await world.close()

    run_virtual(main())


async def chaos(world: NodeWorld, rng: random.Random, step: int) -> None:
    """One thing happens."""
    event = rng.choice([*("user",) * 5, "kill", "cut", "vm", "link", "store", "reboot", "slow"])
    living = [vm for vm in world.vms.values() if not vm.ended.done()]
    if event == "user":
        await user_acts(world, rng, step)
    elif event == "kill":
        await world.restart()
    elif event == "cut":
        world.knife.at = world.knife.calls + rng.randrange(1, 40)
        world.knife.after = rng.random() < 0.5
    elif event == "vm" and living:
        await rng.choice(living).end(Exit(rng.choice(["killed", "crashed"]), "chaos"))
    elif event == "link" and living and (link := rng.choice(living).agent.connection) is not None:
        await link.close()
    elif event == "store":
        world.store.away = not world.store.away
    elif event == "reboot" and rng.random() < 0.3:
        await world.reboot()
    elif event == "slow":
        world.boot_s = rng.choice([0.0, 2.0, 30.0])
    if world.knife.fell.is_set():
        await world.restart()


async def user_acts(world: NodeWorld, rng: random.Random, step: int) -> None:
    """A user does something, sensible or not."""
    name = f"l{rng.randrange(4)}"
    with contextlib.suppress(NotFoundError, ConflictError, AlreadyExistsError):
        match rng.randrange(5):
            case 0 | 1:
                await world.sure.create(lifeform(name, *(template(each) for each in "ab"[: rng.randrange(1, 3)])))
            case 2:
                await world.sure.delete(Lifeform, name, "default")
            case 3:
                await world.change(name, contexts=(template("a", EnvVar(name="S", value=str(step))),))
            case _:
                await world.change(name, operating_mode=rng.choice(["Running", "Suspended"]))


async def settle(world: NodeWorld) -> None:
    """Every lifeform reaches what it wants, then all are deleted and nothing is left."""
    for item in (await world.sure.list(Lifeform)).items:
        if item.metadata.deletion_timestamp is None:
            wanted = "Suspended" if item.spec.operating_mode == "Suspended" else "Running"
            await world.lifeform_phase(item.metadata.name, wanted, within_s=3000)

    async def steady() -> bool:
        contexts = await world.contexts()
        running = {context.metadata.uid for context in contexts.values() if context.spec.wanted == "Running"}
        alive = {uid for uid, vm in world.vms.items() if not vm.ended.done()}
        return alive == running and not world.leftovers(contexts)

    await world.until(steady, within_s=3000, what="microVMs as wanted")
    for item in (await world.sure.list(Lifeform)).items:
        if item.metadata.deletion_timestamp is None:
            await world.sure.delete(Lifeform, item.metadata.name, "default")
        await world.gone(item.metadata.name)
    addresses = [context.status.ip for context in (await world.contexts()).values()]
    assert addresses == []


def test_the_knife_cuts(tmp_path: Path) -> None:
    """A check of the checks: a life that is cut needs more daemons than one."""

    async def main() -> int:
        world = NodeWorld(tmp_path)
        world.knife.at = 30
        starts = 0
        original = world.start

        async def counted() -> None:
            nonlocal starts
            starts += 1
            await original()

        world.start = counted  # type: ignore[method-assign]
        try:
            await world.start()
            await whole_life(world)
        finally:
            await world.close()
        return starts

    assert run_virtual(main()) == 2

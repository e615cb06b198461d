"""A fork with data becomes a lifeform: with what it wrote, under a name of its own, and the fork is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from primordia.kit.errors import AlreadyExistsError, ConflictError, NotFoundError, PrimordiaError
from primordia.ports.forks import ForkRequest
from primordia.testing.data import Disks, lifeform_with_data
from primordia.testing.node import NodeWorld, Vm
from primordia.testing.virtual import run_virtual
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, Lifeform, LifeformSpec, Port, Volume
from primordia.wire.volumes import holder_finalizer

Story = Callable[[NodeWorld, Disks], Awaitable[None]]


def play(tmp_path: Path, story: Story) -> None:
    async def main() -> None:
        world = NodeWorld(tmp_path)
        disks = Disks(world)
        try:
            await world.start()
            await story(world, disks)
        finally:
            await world.close()

    run_virtual(main())


async def running_vm(world: NodeWorld, name: str) -> Vm:
    """The living microVM of a context, once that is ready."""
    found: list[Vm] = []

    async def reached() -> bool:
        context = (await world.contexts()).get(name)
        if context is not None and context.status.ready:
            found[:] = [vm for vm in world.vms.values() if vm.pid == context.status.pid and not vm.ended.done()]
        return bool(found)

    await world.until(reached, what=f"{name} ready")
    return found[0]


async def a_child(world: NodeWorld, disks: Disks) -> Context:
    """A lifeform with data, and a fork of it that has written something else."""
    shop = lifeform_with_data("db")
    (context,) = shop.spec.contexts
    context = msgspec.structs.replace(context, ports=(Port(container_port=80, publish=8080),))
    await world.sure.create(msgspec.structs.replace(shop, spec=msgspec.structs.replace(shop.spec, contexts=(context,))))
    parent = await running_vm(world, "db.main")
    disks.write(disks.disk_of(parent.spec.uid), b"parent")
    assert world.node is not None
    report = await world.node.forks.fork((await world.context("db.main")).metadata.uid, ForkRequest())
    child = await running_vm(world, report.children[0].name)
    disks.write(disks.disk_of(child.spec.uid), b"child!")
    return await world.context(report.children[0].name)


async def is_alone(world: NodeWorld, disks: Disks, child: Context) -> None:
    """The child goes on with its own data, and nothing was made of it."""
    assert disks.content(disks.disk_of((await running_vm(world, child.metadata.name)).spec.uid)) == b"child!"
    assert len(await disks.volumes.list()) == 2
    assert [each.metadata.name for each in (await world.sure.list(Volume)).items] == ["db.main"]


def test_a_fork_becomes_a_lifeform_with_its_data(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        child = await a_child(world, disks)
        assert world.node is not None
        promoted = await world.node.forks.promote(child.metadata.uid, "copy")
        assert (promoted.name, promoted.volume, promoted.size_bytes) == ("copy", "copy.main", 2**20)
        vm = await running_vm(world, "copy.main")
        assert disks.content(disks.disk_of(vm.spec.uid)) == b"child!"
        volume, lifeform = (
            await world.sure.get(Volume, "copy.main", "default"),
            await world.sure.get(Lifeform, "copy", "default"),
        )
        assert (volume.spec.lifeform, volume.spec.context, volume.spec.size) == ("copy", "main", "1Mi")
        assert volume.metadata.finalizers == (holder_finalizer(volume.status.node),)
        assert lifeform.status.epoch == volume.status.epoch == 2
        assert lifeform.metadata.labels == {} and lifeform.spec.contexts[0].ports[0].publish == 0

        async def left() -> bool:
            names = set(await world.contexts())
            return names == {"db.main", "copy.main"} and len(await disks.volumes.list()) == 2

        await world.until(left, what="the end of the child and its clone")
        assert disks.content(disks.disk_of((await running_vm(world, "db.main")).spec.uid)) == b"parent"
        assert disks.formatted == ["db.main"], "what has data is not formatted again"

    play(tmp_path, story)


def test_what_cannot_be_promoted_goes_on(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        child = await a_child(world, disks)
        assert world.node is not None
        promote = world.node.forks.promote
        with pytest.raises(AlreadyExistsError, match=r"Volume default/db\.main exists"):
            await promote(child.metadata.uid, "db")
        await world.sure.create(Lifeform(metadata=ObjectMeta(name="bare", namespace="default"), spec=LifeformSpec(contexts=())))
        with pytest.raises(AlreadyExistsError, match="Lifeform default/bare exists"):
            await promote(child.metadata.uid, "bare")
        with pytest.raises(ConflictError, match="is no fork with data of its own"):
            await promote((await world.context("db.main")).metadata.uid, "other")
        with pytest.raises(NotFoundError):
            await promote("nobody", "other")
        await is_alone(world, disks, child)

    play(tmp_path, story)


def test_a_lifeform_that_cannot_be_written_takes_its_volume_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        child = await a_child(world, disks)
        assert world.node is not None
        registry = world.node.forks._services.registry
        create = registry.create

        async def refused(obj: object) -> object:
            if isinstance(obj, Lifeform):
                raise AlreadyExistsError("Another was quicker.")
            return await create(obj)  # type: ignore[type-var]

        monkeypatch.setattr(registry, "create", refused)
        with pytest.raises(PrimordiaError, match="Another was quicker"):
            await world.node.forks.promote(child.metadata.uid, "copy")
        monkeypatch.undo()

        async def cleared() -> bool:
            return len((await world.sure.list(Volume)).items) == 1 and len(await disks.volumes.list()) == 2

        await world.until(cleared, what="the end of its volume")
        await is_alone(world, disks, child)

    play(tmp_path, story)

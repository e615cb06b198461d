"""Lifeforms with data on one node, as their users see them, under virtual time: what a disk outlives, and what it refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from primordia.kit.errors import CapacityError, NotFoundError
from primordia.ports.forks import ForkRequest
from primordia.ports.guest import GuestError, Mount
from primordia.ports.vmm import Exit
from primordia.testing.data import MIB, Disks, lifeform_with_data
from primordia.testing.node import NodeWorld, Vm
from primordia.testing.virtual import run_virtual
from primordia.wire.conditions import find
from primordia.wire.resources import Context, Lifeform, Node, Volume

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
        if context is None or not context.status.ready:
            return False
        found[:] = [vm for vm in world.vms.values() if vm.pid == context.status.pid and not vm.ended.done()]
        return bool(found)

    await world.until(reached, what=f"{name} ready")
    return found[0]


async def volume(world: NodeWorld, name: str = "db.main") -> Volume | None:
    try:
        return await world.sure.get(Volume, name, "default")
    except NotFoundError:
        return None


def test_data_outlives_microvm_daemon_host_and_suspension(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db"))
        vm = await running_vm(world, "db.main")
        data = next(drive for drive in vm.spec.drives if drive.id == "data")
        assert data.durable and not data.read_only
        assert vm.agent.config is not None and vm.agent.config.mounts == (Mount("data", "/var/data"),)
        disks.write(data.path, b"kept")
        await vm.end(Exit("killed", "somebody else"))

        async def again() -> bool:
            status = (await world.context("db.main")).status
            return status.ready and status.restarts == 1

        await world.until(again, what="another microVM")
        second = await running_vm(world, "db.main")
        assert second is not vm and disks.content(disks.disk_of(second.spec.uid)) == b"kept"
        await world.restart()
        assert await running_vm(world, "db.main") is second
        await world.reboot()
        third = await running_vm(world, "db.main")
        assert third is not second and disks.content(disks.disk_of(third.spec.uid)) == b"kept"
        await world.change("db", operating_mode="Suspended")
        await world.lifeform_phase("db", "Suspended")
        assert disks.open_by() == {}
        await world.change("db", operating_mode="Running")
        fourth = await running_vm(world, "db.main")
        assert disks.content(disks.disk_of(fourth.spec.uid)) == b"kept"
        assert disks.formatted == ["db.main"]

    play(tmp_path, story)


def test_data_outlives_its_lifeform_and_ends_when_it_is_destroyed(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db"))
        vm = await running_vm(world, "db.main")
        disks.write(disks.disk_of(vm.spec.uid), b"kept")
        await world.sure.delete(Lifeform, "db", "default")
        await world.gone("db")
        left = await volume(world)
        assert left is not None and left.metadata.finalizers and len(await disks.volumes.list()) == 1
        await world.sure.create(lifeform_with_data("db"))
        context = await world.ready("db.main")
        assert context.spec.epoch == 2
        vm = await running_vm(world, "db.main")
        assert disks.content(disks.disk_of(vm.spec.uid)) == b"kept" and disks.formatted == ["db.main"]
        await world.sure.delete(Lifeform, "db", "default")
        await world.gone("db")
        await world.sure.delete(Volume, "db.main", "default")

        async def destroyed() -> bool:
            return await volume(world) is None

        await world.until(destroyed, what="the volume's end")
        assert await disks.volumes.list() == () and list(disks.folder.iterdir()) == []

    play(tmp_path, story)


def test_a_disk_grows_while_it_is_in_use_and_its_guest_is_told(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        wish = lifeform_with_data("db")
        await world.sure.create(wish)
        vm = await running_vm(world, "db.main")
        await world.change("db", contexts=lifeform_with_data("db", "2Mi").spec.contexts)

        async def grown() -> bool:
            return vm.agent.growths > 0

        await world.until(grown, what="growth")
        assert vm.resized == {"data": 2 * MIB} and disks.disk_of(vm.spec.uid).stat().st_size == 2 * MIB
        assert await running_vm(world, "db.main") is vm
        assert (await world.context("db.main")).status.restarts == 0
        found = await volume(world)

        async def told() -> bool:
            found = await volume(world)
            return found is not None and found.status.size_bytes == 2 * MIB

        await world.until(told, what="the new size")
        assert found is not None
        told_before = vm.agent.growths
        await world.restart()
        await world.until(lambda: _more(vm, told_before), what="a new daemon's word")

    async def _more(vm: Vm, before: int) -> bool:
        return vm.agent.growths > before

    play(tmp_path, story)


def test_a_full_pool_is_said_before_anything_is_begun(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db", "60Mi"))
        vm = await running_vm(world, "db.main")
        disks.write(disks.disk_of(vm.spec.uid), b"x" * (62 * MIB))

        async def said() -> bool:
            node = await world.node_object()
            ready = find(node.status.conditions, "PoolReady")
            return ready is not None and (ready.status, ready.reason) == ("False", "PoolFull")

        await world.until(said, what="PoolFull")
        assert (await world.node_object()).status.pool.total_bytes == 64 * MIB

    play(tmp_path, story)


def test_a_guest_that_stood_for_want_of_room_goes_on(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db"))
        vm = await running_vm(world, "db.main")
        vm.starved = True

        async def goes_on() -> bool:
            return not vm.starved

        await world.until(goes_on, what="another try")
        assert await running_vm(world, "db.main") is vm
        assert "PoolFull" in {reason for reason, _ in await world.events()}

    play(tmp_path, story)


def test_what_a_disk_takes_is_not_written_at_each_change(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db", "2Mi"))
        vm = await running_vm(world, "db.main")
        first = await volume(world)
        for size in range(1, 61):
            disks.write(disks.disk_of(vm.spec.uid), b"x" * 4096 * size)
            await world.clock.sleep(1)
        last = await volume(world)
        assert first is not None and last is not None and last.status.used_bytes > first.status.used_bytes
        assert int(last.metadata.resource_version) - int(first.metadata.resource_version) < 20

    play(tmp_path, story)


def test_a_node_without_a_pool_refuses_data_and_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        world = NodeWorld(tmp_path)
        try:
            await world.start()

            async def said() -> bool:
                nodes = (await world.sure.list(Node)).items
                ready = find(nodes[0].status.conditions, "PoolReady") if nodes else None
                return ready is not None and ready.reason == "NoPool"

            await world.until(said, what="NoPool")
            await world.sure.create(lifeform_with_data("db"))
            await world.clock.sleep(60)
            assert world.vms == {}
        finally:
            await world.close()

    run_virtual(main())


def test_a_disk_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db"))
        vm = await running_vm(world, "db.main")
        await world.change("db", operating_mode="Suspended")
        await world.lifeform_phase("db", "Suspended")
        (held,) = await disks.volumes.list()
        await disks.volumes.destroy(held.name)
        await world.change("db", operating_mode="Running")
        context = await world.phase("db.main", "BackOff")
        assert (context.status.reason, vm.ended.done()) == ("DataMissing", True)
        assert await disks.volumes.list() == () and disks.formatted == ["db.main"]

    play(tmp_path, story)


def test_what_a_guest_cannot_mount_is_repaired_before_the_next_one_tries(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        refusal = GuestError(
            "The guest refused: identify: mount drive data as ext4: Structure needs cleaning.", reason="EUCLEAN"
        )
        world.refuse_configure = refusal
        await world.sure.create(lifeform_with_data("db"))
        context = await world.phase("db.main", "BackOff")
        assert "mount drive data" in context.status.message and disks.repaired == []
        world.refuse_configure = None
        await running_vm(world, "db.main")
        assert disks.repaired == ["ext4"]

    play(tmp_path, story)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("part", range(3))
def test_a_daemon_killed_anywhere_loses_no_data_and_opens_no_disk_twice(tmp_path: Path, part: int, after: bool) -> None:
    async def life(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db"))
        vm = await running_vm(world, "db.main")
        disks.write(disks.disk_of(vm.spec.uid), b"kept")
        await world.change("db", contexts=lifeform_with_data("db", "2Mi").spec.contexts)
        await world.change("db", operating_mode="Suspended")
        await world.lifeform_phase("db", "Suspended")
        assert disks.open_by() == {}
        await world.change("db", operating_mode="Running")
        vm = await running_vm(world, "db.main")
        assert disks.content(disks.disk_of(vm.spec.uid)) == b"kept"
        assert [len(users) for users in disks.open_by().values()] == [1]
        await world.sure.delete(Lifeform, "db", "default")
        await world.gone("db")
        await world.sure.delete(Volume, "db.main", "default")

        async def destroyed() -> bool:
            return await volume(world) is None

        await world.until(destroyed, what="the volume's end")
        assert await disks.volumes.list() == ()

    async def one(folder: Path, at: int) -> int:
        folder.mkdir()
        world = NodeWorld(folder)
        disks = Disks(world)
        world.knife.at, world.knife.after = at, after
        try:
            await world.start()
            await life(world, disks)
            return world.knife.calls
        finally:
            await world.close()

    count = run_virtual(one(tmp_path / "measure", 0))
    assert count > 40
    for at in range(1 + part * 2 + after, count + 1, 6):
        run_virtual(one(tmp_path / str(at), at))


def test_a_live_fork_has_its_own_clone_which_goes_with_it(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db"))
        vm = await running_vm(world, "db.main")
        disks.write(disks.disk_of(vm.spec.uid), b"parent")
        assert world.node is not None
        parent = await world.context("db.main")
        report = await world.node.forks.fork(parent.metadata.uid, ForkRequest(count=2))
        assert [outcome.reason for outcome in report.children] == ["", ""]
        first, second = [await running_vm(world, outcome.name) for outcome in report.children]
        disks.write(disks.disk_of(first.spec.uid), b"child1")
        assert disks.content(disks.disk_of(second.spec.uid)) == b"parent"
        assert disks.content(disks.disk_of(vm.spec.uid)) == b"parent"
        assert all(len(users) == 1 for users in disks.open_by().values()) and len(disks.open_by()) == 3
        grandchild = await world.node.forks.fork(report.children[0].uid, ForkRequest())
        third = await running_vm(world, grandchild.children[0].name)
        assert disks.content(disks.disk_of(third.spec.uid)) == b"child1"
        for outcome in (*report.children, *grandchild.children):
            await world.sure.delete(Context, outcome.name, "default")

        async def alone() -> bool:
            return len(await disks.volumes.list()) == 1

        await world.until(alone, what="the end of the clones")
        assert disks.formatted == ["db.main"]

    play(tmp_path, story)


def test_a_fork_that_finds_no_room_for_its_data_leaves_nothing(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db", "60Mi"))
        vm = await running_vm(world, "db.main")
        disks.write(disks.disk_of(vm.spec.uid), b"x" * (62 * MIB))
        assert world.node is not None
        parent = await world.context("db.main")
        with pytest.raises(CapacityError):
            await world.node.forks.fork(parent.metadata.uid, ForkRequest(count=1))
        assert len(await disks.volumes.list()) == 1 and not vm.frozen and vm.running.is_set()
        assert await running_vm(world, "db.main") is vm

    play(tmp_path, story)


def test_what_a_dead_daemon_left_of_forks_is_put_away(tmp_path: Path) -> None:
    async def story(world: NodeWorld, disks: Disks) -> None:
        await world.sure.create(lifeform_with_data("db"))
        await running_vm(world, "db.main")
        (held,) = await disks.volumes.list()
        await disks.volumes.clone(held.name, "image-cut-off")
        await disks.volumes.clone(held.name, "fork-11111111-1111-1111-1111-111111111111")
        await world.restart()

        async def alone() -> bool:
            return [info.name for info in await disks.volumes.list()] == [held.name]

        await world.until(alone, what="the end of leftovers")

    play(tmp_path, story)

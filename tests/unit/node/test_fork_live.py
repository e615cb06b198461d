"""Live forks and lifeforms that start as forks, on a node in memory; whatever fails, the parent goes on."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import msgspec
import pytest

from primordia.kit.errors import CapacityError, PermanentError, PrimordiaError, TemporaryError
from primordia.testing.forks import ForkWorld, play
from primordia.wire.meta import LABEL_PARENT, ObjectMeta
from primordia.wire.resources import Context, ContextTemplate, Lifeform, LifeformSpec, Resources


def lifeform(name: str = "shop", **spec: object) -> Lifeform:
    template = ContextTemplate(name="main", image="busybox", command=("serve",))
    return Lifeform(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=LifeformSpec(contexts=(template,), **spec),  # type: ignore[arg-type]
    )


async def running(world: ForkWorld, name: str = "shop") -> Context:
    await world.sure.create(lifeform(name))
    return await world.ready(f"{name}.main")


async def is_unharmed(world: ForkWorld, before: Context) -> None:
    """It runs as it did, in the same microVM, and nothing else is there."""
    vm = await world.vm_of(before.metadata.name)
    assert not vm.frozen and vm.running.is_set()
    after = (await world.context(before.metadata.name)).status
    assert (after.pid, after.ready, after.restarts) == (before.status.pid, True, 0)
    await world.nothing_stray()


def test_children_have_the_parents_memory_and_identities_of_their_own(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        parent = await running(world)
        (await world.vm_of("shop.main")).agent.files["/data/x"] = b"1"
        report = await world.fork("shop.main", count=3)
        assert [child.reason for child in report.children] == ["", "", ""]
        people = []
        for child in report.children:
            context, vm = await world.context(child.name), await world.vm_of(child.name)
            assert context.metadata.uid == child.uid and context.metadata.labels == {LABEL_PARENT: "shop.main"}
            spec = context.spec
            assert (spec.parent, spec.parent_uid, spec.depth, spec.lifetime) == ("shop.main", parent.metadata.uid, 1, "parent")
            assert vm.agent.files["/data/x"] == b"1" and vm.agent.main is not None and not vm.frozen
            people.append(vm.identity)
        assert len({person.machine_id for person in people if person}) == 3
        assert len({person.network.address for person in people if person and person.network}) == 3
        await is_unharmed(world, parent)
        first = report.children[0].name
        grandchild = (await world.fork(first)).children[0]
        assert (await world.context(grandchild.name)).spec.depth == 2
        await world.sure.delete(Lifeform, "shop", "default")
        await world.gone("shop")

        async def all_gone() -> bool:
            return await world.contexts() == {}

        await world.until(all_gone, what="the whole subtree ended with the lifeform")
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_child_has_the_cpu_time_of_its_spec_and_no_more(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        small = ContextTemplate(name="main", image="busybox", command=("serve",), resources=Resources(cpu="250m"))
        await world.sure.create(msgspec.structs.replace(lifeform(), spec=LifeformSpec(contexts=(small,))))
        await world.ready("shop.main")
        child = (await world.fork("shop.main")).children[0].name
        assert (await world.vm_of(child)).cpu_milli == (await world.vm_of("shop.main")).cpu_milli == 250
        await world.sure.delete(Lifeform, "shop", "default")
        await world.gone("shop")

    play(tmp_path, story)


def test_a_kept_child_outlives_its_parent_until_its_time_is_over(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        kept = (await world.fork("shop.main", lifetime="keep", ttl_s=500)).children[0].name
        await world.sure.delete(Lifeform, "shop", "default")
        await world.clock.sleep(60)
        assert set(await world.contexts()) == {kept}
        assert (await world.context(kept)).status.ready
        await world.clock.sleep(500)
        assert await world.contexts() == {}
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_full_disk_and_a_vmm_that_refuses_leave_the_parent_as_it_was(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        parent = await running(world)
        world.fail_freeze = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(CapacityError, match="the disk is full"):
            await world.fork("shop.main")
        await is_unharmed(world, parent)
        world.fail_freeze = PermanentError("The monitor is silly.")
        with pytest.raises(PermanentError, match="silly"):
            await world.fork("shop.main")
        await is_unharmed(world, parent)

    play(tmp_path, story)


def test_a_child_whose_vmm_dies_in_mid_restore_has_its_own_outcome(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        parent = await running(world)
        world.fail_fork = PermanentError("microVM x was killed by signal 9 while it was loaded.", reason="StartFailed")
        report = await world.fork("shop.main", count=2)
        assert [child.reason for child in report.children] == ["StartFailed", "StartFailed"]
        assert not any(child.name or child.uid for child in report.children)
        assert "signal 9" in report.children[0].message
        world.fail_fork = None
        await is_unharmed(world, parent)
        assert len(await world.contexts()) == 1

    play(tmp_path, story)


def test_children_that_never_confirm_are_destroyed(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        parent = await running(world)
        world.mute = True
        report = await world.fork("shop.main", count=2)
        assert {child.reason for child in report.children} == {"IdentityNotConfirmed"}
        assert not any(child.name or child.uid for child in report.children)
        world.mute = False
        await is_unharmed(world, parent)
        assert len(await world.contexts()) == 1

    play(tmp_path, story)


def test_a_parent_that_is_killed_while_it_is_forked_is_told_and_started_again(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        vm = await world.vm_of("shop.main")
        forking = asyncio.ensure_future(world.fork("shop.main", count=2))
        await asyncio.sleep(0)
        await world.end_vm(vm)
        with pytest.raises(PrimordiaError):
            await forking

        async def again() -> bool:
            status = (await world.context("shop.main")).status
            return status.ready and status.restarts == 1

        await world.until(again)
        await world.nothing_stray()

    play(tmp_path, story)


def test_one_that_does_not_run_cannot_be_forked_nor_one_that_is_being_forked(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        one = asyncio.ensure_future(world.fork("shop.main"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        other = asyncio.ensure_future(world.fork("shop.main"))
        outcomes = await asyncio.gather(one, other, return_exceptions=True)
        assert sum(isinstance(each, PrimordiaError) for each in outcomes) <= 1
        await world.change("shop", operating_mode="Suspended")
        await world.lifeform_phase("shop", "Suspended")
        with pytest.raises(TemporaryError, match="it is Stopped, and has to run"):
            await world.fork("shop.main")
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_fork_bomb_stops_at_its_own_limit(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        names = [(await world.fork("shop.main", count=9)).children[0].name]
        with pytest.raises(CapacityError, match="limit of 10 for one lifeform or box"):
            await world.fork(names[0], count=2)
        for _ in range(2):
            with pytest.raises(CapacityError):
                await world.fork("shop.main", count=5)
        other = await running(world, "other")
        assert (await world.fork("other.main", count=2)).children[1].reason == ""
        assert (await world.context("other.main")).status.pid == other.status.pid

    play(tmp_path, story)


def test_depth_is_limited(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        name = "shop.main"
        for _ in range(3):
            name = (await world.fork(name)).children[0].name
        with pytest.raises(CapacityError, match="this node makes 3"):
            await world.fork(name)

    play(tmp_path, story)


def test_children_survive_the_daemon_and_their_image_goes_with_the_last(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        report = await world.fork("shop.main", count=2)
        images = Path(world.config.state_dir) / "forks"
        assert len(list(images.iterdir())) == 1
        await world.restart()
        for child in report.children:
            assert (await world.ready(child.name)).status.ready
        assert len(list(images.iterdir())) == 1
        for child in report.children:
            await world.delete(child.name)
        await world.nothing_stray()
        assert list(images.iterdir()) == []

    play(tmp_path, story)


# ---------------------------------------------------------------- lifeforms


def test_the_first_start_boots_and_the_next_ones_are_forks(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        assert (await running(world, "one")).status.started_from == "boot"
        await world.clock.sleep(10)
        two = await running(world, "two")
        assert two.status.started_from == "warm" and two.status.boot_ms < 1500
        assert "thawed" in two.status.confirmed
        vm = await world.vm_of("two.main")
        assert vm.identity is not None and vm.identity.network is not None
        assert vm.identity.network.address == two.status.ip and vm.identity.hostname == "two-main"
        endpoint = next(one for one in world.network.state.endpoints if one.uid == two.metadata.uid)
        assert endpoint.address == two.status.ip and world.network.led[endpoint.tap] == two.status.ip
        three = await running(world, "three")
        assert three.status.started_from in ("warm", "cold")
        await world.end_vm(vm)

        async def again() -> bool:
            status = (await world.context("two.main")).status
            return status.ready and status.restarts == 1

        await world.until(again)
        after = (await world.context("two.main")).status
        assert (after.started_because, after.ip) == ("Restarted", two.status.ip) and after.started_from != "boot"
        for name in ("one", "two", "three"):
            await world.sure.delete(Lifeform, name, "default")
            await world.gone(name)
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_start_that_cannot_fork_boots_and_says_so(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world, "one")
        await world.clock.sleep(10)
        world.unconfirmed = {"clock"}
        two = await running(world, "two")
        assert two.status.started_from == "boot" and two.status.restarts == 0
        said = [message for reason, message in await world.events() if reason == "ForkFailed"]
        assert len(said) == 1 and "did not confirm its clock" in said[0]
        world.unconfirmed, world.fail_fork = set(), PermanentError("No.")
        for vm in world.waiting():
            await world.end_vm(vm)
        await world.clock.sleep(5)
        assert (await running(world, "three")).status.started_from == "boot"
        world.fail_fork = None
        await world.nothing_stray()

    play(tmp_path, story)

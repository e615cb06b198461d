"""A suspension that keeps memory, on a node in memory: what ran goes on from there, once, or says why it starts from disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from primordia.kit.errors import PermanentError
from primordia.testing.data import Disks, lifeform_with_data
from primordia.testing.forks import ForkWorld, play
from primordia.testing.virtual import run_virtual
from primordia.wire.conditions import find
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextTemplate, EnvVar, Lifeform, LifeformSpec

NAME = "shop.main"


async def running(world: ForkWorld) -> Context:
    """A lifeform whose memory has something in it."""
    template = ContextTemplate(name="main", image="busybox", command=("serve",))
    await world.sure.create(
        Lifeform(metadata=ObjectMeta(name="shop", namespace="default"), spec=LifeformSpec(contexts=(template,)))
    )
    await world.ready(NAME)
    await world.clock.sleep(20)  # the template for the next start is built
    (await world.vm_of(NAME)).agent.files["/tmp/memory"] = b"mine"
    return await world.context(NAME)


async def suspend(world: ForkWorld, *, keep_memory: bool = True) -> Context:
    await world.change("shop", operating_mode="Suspended", keep_memory=keep_memory)
    return await world.phase(NAME, "Stopped")


async def resume(world: ForkWorld) -> Context:
    await world.change("shop", operating_mode="Running")
    return await world.ready(NAME)


async def remembers(world: ForkWorld) -> bool:
    return (await world.vm_of(NAME)).agent.files.get("/tmp/memory") == b"mine"


def kept(world: ForkWorld) -> list[Path]:
    folder = Path(world.config.state_dir) / "suspended"
    return list(folder.iterdir()) if folder.is_dir() else []


async def started_from_disk(world: ForkWorld, why: str) -> None:
    """It runs, without its memory, and says why; nothing of the image is left to be used later."""
    status = (await world.context(NAME)).status
    condition = find(status.conditions, "ResumedFromMemory")
    assert condition is not None and condition.status == "False" and why in condition.message, condition
    assert status.started_from != "memory" and not await remembers(world)
    assert any(reason == "StartsFromDisk" and why in message for reason, message in await world.events())
    (await world.vm_of(NAME)).agent.files["/tmp/memory"] = b"mine"
    await world.clock.sleep(200)
    assert [each.name for each in kept(world) if "quarantined" not in each.name] == []


def test_what_runs_goes_on_from_its_memory_as_itself(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        before = await running(world)
        stopped = await suspend(world)
        assert (stopped.status.reason, stopped.status.ready) == ("MemoryKept", False)
        assert not [vm for vm in world.vms.values() if not vm.ended.done() and vm not in world.waiting()]
        assert len(kept(world)) == 1
        after = await resume(world)
        assert await remembers(world) and not (await world.vm_of(NAME)).frozen
        assert (after.status.started_from, after.status.started_because, after.status.restarts) == ("memory", "Resumed", 0)
        assert after.status.ip == before.status.ip
        condition = find(after.status.conditions, "ResumedFromMemory")
        assert condition is not None and condition.status == "True"
        person = (await world.vm_of(NAME)).identity
        assert person is not None and person.hostname == "shop-main" and person.mounts == ()
        assert person.machine_id == before.metadata.uid.replace("-", "")
        assert kept(world) == []
        again = await suspend(world)
        assert again.status.reason == "MemoryKept"
        assert (await resume(world)).status.started_from == "memory" and await remembers(world)
        told = (await world.vm_of(NAME)).identity
        assert told is not None and told.entropy != person.entropy
        assert (told.hostname, told.machine_id, told.network) == (person.hostname, person.machine_id, person.network)
        await world.end_vm(await world.vm_of(NAME))

        async def started_again() -> bool:
            status = (await world.context(NAME)).status
            return status.ready and status.restarts == 1

        await world.until(started_again, what="started again")
        assert find((await world.context(NAME)).status.conditions, "ResumedFromMemory") is None
        await world.nothing_stray()

    play(tmp_path, story)


def test_it_goes_on_after_a_new_daemon_and_a_new_boot_of_the_host(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        await suspend(world)
        await world.restart()
        await resume(world)
        assert await remembers(world)
        await world.restart()
        await world.clock.sleep(10)
        assert await remembers(world) and (await world.ready(NAME)).status.started_from == "memory"
        await suspend(world)
        await world.reboot()
        await resume(world)
        assert await remembers(world)

    play(tmp_path, story)


def test_without_being_asked_nothing_is_kept(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        assert (await suspend(world, keep_memory=False)).status.reason == ""
        assert kept(world) == []
        assert (await resume(world)).status.started_from != "memory" and not await remembers(world)

    play(tmp_path, story)


def test_memory_that_is_no_longer_wanted_goes(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        await suspend(world)
        await suspend(world, keep_memory=False)
        await world.clock.sleep(200)
        assert kept(world) == []
        await resume(world)
        await started_from_disk(world, "has no image")
        await suspend(world)
        assert len(kept(world)) == 1
        await world.sure.delete(Lifeform, "shop", "default")
        await world.gone("shop")
        assert kept(world) == []

    play(tmp_path, story)


def test_a_changed_spec_another_vmm_and_a_damaged_image_start_from_the_disk(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        await suspend(world)
        template = ContextTemplate(name="main", image="busybox", command=("serve",), env=(EnvVar(name="A", value="b"),))
        await world.change("shop", contexts=(template,))
        await resume(world)
        await started_from_disk(world, "its spec or its epoch is another one now")

        await suspend(world)
        world.vmm_version = "fake 2.0"
        await resume(world)
        await started_from_disk(world, "its vmm was")

        await suspend(world)
        (folder,) = kept(world)
        content = bytearray((folder / "memory").read_bytes())
        content[5] ^= 1
        (folder / "memory").chmod(0o600)
        (folder / "memory").write_bytes(bytes(content))
        await world.restart()
        await resume(world)
        await started_from_disk(world, "damaged")

        await suspend(world)
        world.fail_fork = PermanentError("QEMU is silly.")
        await resume(world)
        world.fail_fork = None
        await started_from_disk(world, "QEMU is silly")
        await world.nothing_stray()

    play(tmp_path, story)


def test_what_cannot_be_frozen_is_shut_down_in_order_and_says_so(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await running(world)
        world.fail_freeze = PermanentError("The monitor is silly.")
        stopped = await suspend(world)
        assert stopped.status.reason == "MemoryNotKept" and "silly" in stopped.status.message
        assert any(reason == "MemoryNotKept" for reason, _ in await world.events()) and kept(world) == []
        world.fail_freeze = None
        after = await resume(world)
        assert after.status.started_from != "memory" and find(after.status.conditions, "MemoryKept") is None
        (await world.vm_of(NAME)).agent.files["/tmp/memory"] = b"mine"
        world.host.free_disk = 1 << 20
        assert "the disk has" in (await suspend(world)).status.message

    play(tmp_path, story)


def test_memory_is_void_when_its_disk_was_written_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        world = ForkWorld(tmp_path)
        disks = Disks(world)
        try:
            await world.start()
            await world.sure.create(lifeform_with_data("shop"))
            await world.ready(NAME)
            vm = await world.vm_of(NAME)
            vm.agent.files["/tmp/memory"] = b"mine"
            disk = disks.disk_of(vm.spec.uid)
            disks.write(disk, b"one")
            await suspend(world)
            await resume(world)
            assert await remembers(world) and disks.content(disk) == b"one"
            assert (await world.vm_of(NAME)).identity is not None
            await suspend(world)
            disks.write(disk, b"two")
            await resume(world)
            await started_from_disk(world, "its data is not what it was then")
            assert disks.content(disk) == b"two"
        finally:
            await world.close()

    run_virtual(main())


Act = Callable[[ForkWorld], Awaitable[Context]]


@pytest.mark.parametrize("after", [False, True])
def test_a_daemon_that_dies_anywhere_in_between_loses_the_memory_at_most(tmp_path: Path, after: bool) -> None:
    async def one(root: Path, at: int, act: Act) -> bool:
        world = ForkWorld(root)
        try:
            await world.start()
            await running(world)
            if act is resume:
                await suspend(world)
            knife = world.knife
            knife.at, knife.after = knife.calls + at, after
            acting = asyncio.ensure_future(act(world))
            fell = asyncio.ensure_future(knife.fell.wait())
            await asyncio.wait({acting, fell}, return_when=asyncio.FIRST_COMPLETED)
            knife.at, died = 0, knife.fell.is_set()
            fell.cancel()
            if died:
                await world.crash()
            await acting
            if act is suspend:
                await resume(world)
            await world.clock.sleep(60)
            status = (await world.ready(NAME)).status
            assert await remembers(world) == (status.started_from == "memory"), status
            condition = find(status.conditions, "ResumedFromMemory")
            assert status.started_from == "memory" or at < 1 or condition is None or condition.status == "False"
            vms = [vm for vm in world.vms.values() if not vm.ended.done() and vm not in world.waiting()]
            assert len(vms) == 1 and not vms[0].frozen and vms[0].running.is_set()
            await world.clock.sleep(200)
            assert kept(world) == []
            assert await world.strays() == [], (at, act)
            return died
        finally:
            await world.close()

    async def main() -> None:
        for act in (suspend, resume):
            at = 1
            while await one(tmp_path / f"{act.__name__}-{at}", at, act):
                at += 1
            assert at > 5

    run_virtual(main())

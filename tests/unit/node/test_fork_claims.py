"""Templates, the pool and claims on a node in memory: what should happen, and everything that may go wrong."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from primordia.kit.errors import CapacityError, NotFoundError, PrimordiaError, TemporaryError
from primordia.node.forks.building import READY
from primordia.ports.guest import GuestIdentity
from primordia.ports.vmm import MEMORY
from primordia.testing.forks import ForkWorld, play
from primordia.testing.node import Vm
from primordia.wire.resources import ExecAction, Lifecycle, LifecycleHandler, Template


def person(vm: Vm) -> GuestIdentity:
    assert vm.identity is not None
    return vm.identity


def address(vm: Vm) -> str:
    network = person(vm).network
    assert network is not None
    return network.address


def test_a_claim_hands_out_a_warm_fork_with_an_identity_of_its_own(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        one, two = await world.claim(), await world.claim(name="mine", ttl_s=0)
        assert (one.warm, two.warm, two.name, one.node) == (True, True, "mine", "n1")
        seen = [await world.vm_of(box.name) for box in (one, two)]
        people = [person(vm) for vm in seen]
        assert [each.machine_id for each in people] == [box.uid.replace("-", "") for box in (one, two)]
        assert people[0].entropy != people[1].entropy and address(seen[0]) != address(seen[1])
        await world.clock.sleep(1)  # what it took and confirmed is told behind the claim's back
        context = await world.context("mine")
        assert (context.status.phase, context.status.ready, context.status.started_from) == ("Running", True, "warm")
        assert context.status.ip == address(seen[1]) and "thawed" in context.status.confirmed
        assert context.spec.from_template == "py" and context.spec.lifeform == ""
        assert READY in seen[0].agent.files, "it has the memory of its template"
        endpoint = next(one for one in world.network.state.endpoints if one.uid == two.uid)
        assert (endpoint.address, endpoint.group) == (context.status.ip, two.uid)
        assert world.network.led[endpoint.tap] == context.status.ip
        await world.until_warm("py", 2)
        await world.nothing_stray()
        await world.delete("mine")
        await world.delete(one.name)
        await world.nothing_stray()

    play(tmp_path, story)


def test_no_user_code_runs_in_a_fork_that_waits(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        assert [(vm.frozen, vm.running.is_set(), vm.identity) for vm in world.waiting()] == [(True, False, None)] * 2
        box = await world.claim()
        vm = await world.vm_of(box.name)
        assert (vm.frozen, vm.running.is_set()) == (False, True)

    play(tmp_path, story)


def test_hooks_run_in_every_fork_of_what_ran_and_one_that_fails_is_no_fork(tmp_path: Path) -> None:
    def hook(*command: str) -> Lifecycle:
        return Lifecycle(post_fork=LifecycleHandler(exec=ExecAction(command=command)))

    async def story(world: ForkWorld) -> None:
        await world.template(lifecycle=hook("true", "reseed"))
        box = await world.claim()
        [said] = person(await world.vm_of(box.name)).hooks
        assert said.argv == ("true", "reseed")
        await world.clock.sleep(1)
        assert "hooks" in (await world.context(box.name)).status.confirmed
        [child] = (await world.fork(box.name)).children
        assert person(await world.vm_of(child.name)).hooks == (said,)

        await world.template("nothing-ran", command="", warm=(0, 0), lifecycle=hook("false"))
        assert person(await world.vm_of((await world.claim("nothing-ran")).name)).hooks == ()

        await world.template("bad", warm=(0, 0), lifecycle=hook("false"))
        with pytest.raises(TemporaryError, match="hook false ended with code 1"):
            await world.claim("bad")
        await world.nothing_stray()

    play(tmp_path, story)


def test_two_of_those_that_wait_have_practised_and_go_first(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template(warm=(4, 4))
        assert sum(vm.agent.rehearsals for vm in world.waiting()) == 2
        for _ in range(2):
            assert (await world.vm_of((await world.claim()).name)).agent.rehearsals == 1

        async def filled() -> bool:
            return len(world.waiting()) == 4 and sum(vm.agent.rehearsals for vm in world.waiting()) == 2

        await world.until(filled, what="two others have practised")

    play(tmp_path, story)


def test_an_empty_pool_means_a_cold_fork(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template(warm=(0, 0))
        box = await world.claim()
        assert not box.warm and (await world.context(box.name)).status.started_from == "cold"
        await world.nothing_stray()

    play(tmp_path, story)


def test_an_image_without_a_template_is_one_in_which_nothing_has_run(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        box = await world.claim("busybox")
        vm = await world.vm_of(box.name)
        assert vm.agent.main is None and READY not in vm.agent.files
        assert (await world.context(box.name)).status.ready
        with pytest.raises(NotFoundError, match="no template 'nonesuch'"):
            await world.claim("nonesuch")

    play(tmp_path, story)


def test_many_claims_at_once_all_get_a_box_of_their_own(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template(warm=(3, 3))
        boxes = await asyncio.gather(*(world.claim() for _ in range(12)))
        assert len({box.uid for box in boxes}) == 12
        vms = [await world.vm_of(box.name) for box in boxes]
        assert len({id(vm) for vm in vms}) == 12
        assert len({address(vm) for vm in vms}) == 12
        assert sum(box.warm for box in boxes) >= 3
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_guest_that_never_confirms_is_destroyed_counted_and_the_next_is_tried(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        world.waiting()[0].mute = True
        box = await world.claim()
        assert box.confirmed_ms >= 5000 and (await world.context(box.name)).status.ready
        world.mute = True
        with pytest.raises(TemporaryError, match="did not confirm its identity within 15 s"):
            await world.claim()
        world.mute = False
        assert len(await world.contexts()) == 1
        await world.nothing_stray()

    play(tmp_path, story)


def test_an_item_that_is_not_confirmed_is_named(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        world.unconfirmed = {"entropy", "boot-id"}
        with pytest.raises(TemporaryError, match="did not confirm its entropy, boot-id"):
            await world.claim()
        assert await world.contexts() == {}
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_claim_is_refused_where_the_registry_cannot_be_written(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        world.store.away = True
        with pytest.raises(PrimordiaError):
            await world.claim()
        world.store.away = False
        assert await world.contexts() == {}
        await world.nothing_stray()
        await world.claim(name="twice")
        with pytest.raises(PrimordiaError, match="exists already"):
            await world.claim(name="twice")
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_box_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        box = await world.claim(ttl_s=30)
        assert (await world.context(box.name)).spec.expires_at
        begin_s = world.clock.boottime()

        async def gone() -> bool:
            return box.name not in await world.contexts()

        await world.until(gone)
        assert 29 <= world.clock.boottime() - begin_s <= 35
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_box_whose_microvm_dies_is_over_and_never_started_again(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        box = await world.claim()
        before = world.pids
        await world.end_vm(await world.vm_of(box.name))
        context = await world.phase(box.name, "Failed")
        assert context.status.reason == "MicroVMDied"
        await world.clock.sleep(60)
        assert world.pids <= before + 1, "only the pool may have made one"

        async def gone() -> bool:
            return box.name not in await world.contexts()

        await world.until(gone, within_s=1000)
        await world.nothing_stray()

    play(tmp_path, story)


def test_boxes_live_through_the_daemons_end_and_its_pool_does_not_leak(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        box = await world.claim()
        vm = await world.vm_of(box.name)
        vm.agent.freeze()  # as a parent whose daemon died in a fork
        for _ in range(2):
            await world.restart()
            await world.clock.sleep(20)
            await world.until_warm("py", 2)
            assert (await world.ready(box.name)).status.pid == vm.pid
        assert not vm.frozen
        await world.nothing_stray()
        await world.reboot()
        assert (await world.phase(box.name, "Failed")).status.ready is False
        await world.until_warm("py", 2)
        await world.delete(box.name)
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_pool_gives_way_when_memory_is_short_and_comes_back(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        world.host.free_memory = 2**20
        await world.until_warm("py", 0)
        with pytest.raises(CapacityError, match="of memory free beside its reserve"):
            await world.claim()
        world.host.free_memory = 8 * 2**30
        await world.until_warm("py", 2)
        await world.nothing_stray()

    play(tmp_path, story)


def test_the_nodes_limit_is_kept_and_its_pool_gives_way_first(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template(warm=(3, 3))
        for _ in range(4):
            await world.claim()
        await world.until_warm("py", 1)
        await world.claim()
        with pytest.raises(CapacityError, match="limit of 5"):
            await world.claim()
        await world.nothing_stray()

    play(tmp_path, story, most_forks=5)


def test_a_warm_fork_that_dies_is_replaced(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        await world.template()
        dead = world.waiting()[0]
        await world.end_vm(dead)
        await world.clock.sleep(5)
        await world.until_warm("py", 2)
        assert dead not in world.waiting()
        await world.nothing_stray()

    play(tmp_path, story)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_template_is_put_aside_told_and_made_again(tmp_path: Path, damage: str) -> None:
    async def story(world: ForkWorld) -> None:
        status = (await world.template(warm=(0, 0))).status
        memory = Path(world.config.state_dir) / "templates" / status.nodes[0].digest / MEMORY
        content = memory.read_bytes()
        if damage == "truncated":
            memory.write_bytes(content[:-1])
        elif damage == "flipped":
            memory.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        else:
            memory.unlink()
        await world.restart()
        box = await world.claim()
        assert (await world.context(box.name)).status.ready
        assert any(reason == "TemplateCorrupt" and str(memory) in said for reason, said in await world.events())
        assert [path for path in memory.parent.parent.iterdir() if "quarantined" in path.name]
        await world.nothing_stray()

    play(tmp_path, story)


def test_a_template_that_is_damaged_while_it_is_used_is_found_out(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        status = (await world.template()).status
        memory = Path(world.config.state_dir) / "templates" / status.nodes[0].digest / MEMORY
        memory.write_bytes(b"rubbish")
        for vm in world.waiting():
            await world.end_vm(vm)
        await world.clock.sleep(60)
        after = (await world.until_warm("py", 2)).status.nodes[0]
        assert len(world.waiting()) == 2 and (memory.parent.parent / after.digest / MEMORY).read_bytes() != b"rubbish"
        assert any(reason == "TemplateCorrupt" for reason, _ in await world.events())
        await world.nothing_stray()

    play(tmp_path, story)


def test_another_vmm_takes_no_template_of_the_last_one(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        before = (await world.template()).status.nodes[0].digest
        await world.kill()
        world.vmm_version = "fake 2.0"
        await world.start()
        box = await world.claim()
        assert box.name

        async def other() -> bool:
            status = (await world.sure.get(Template, "py")).status
            return bool(status.nodes) and status.nodes[0].digest != before

        await world.until(other)
        await world.nothing_stray()

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("give-up", "ended with exit code 3, and it has to stay alive.*no module named sun"),
        ("never", f"{READY} was not there after 300 s.*still loading"),
        ("nonesuch", "cannot start"),
    ],
)
def test_a_warm_up_that_fails_is_told_with_what_it_wrote(tmp_path: Path, command: str, words: str) -> None:
    async def story(world: ForkWorld) -> None:
        with pytest.raises(AssertionError):
            await world.template(command=command)

        async def failed() -> bool:
            return (await world.sure.get(Template, "py")).status.phase == "Failed"

        await world.until(failed)
        template = await world.sure.get(Template, "py")
        assert re.search(words, template.status.message), template.status.message
        with pytest.raises(PrimordiaError, match="warm-up"):
            await world.claim()
        await world.sure.delete(Template, "py")
        await world.clock.sleep(5)
        await world.nothing_stray()
        assert world.vms == {}

    play(tmp_path, story)


def test_a_build_that_the_disk_has_no_room_for_is_refused_and_tried_again(tmp_path: Path) -> None:
    async def story(world: ForkWorld) -> None:
        world.host.free_disk = 100 * 2**20
        with pytest.raises(AssertionError):
            await world.template()
        assert "128 MiB" in (await world.sure.get(Template, "py")).status.message
        world.host.free_disk = 100 * 2**30
        await world.until_warm("py", 2)
        await world.nothing_stray()

    play(tmp_path, story)

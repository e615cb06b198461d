"""What every body of the VMM port promises. A body's test file gives the fixture `world`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from primordia.kit.errors import ConflictError, PermanentError, TemporaryError
from primordia.ports.vmm import DEVICES, MEMORY, Drive, Machine, MachineSpec, Vmm
from primordia.testing.vmm import DEADLINE_S, Line


class World(Protocol):
    """A host for machines whose guests obey lines on the channel (testing/vmm.py)."""

    def vmm(self) -> Vmm:
        """A new driver over the same host, as the next daemon would make it."""

    def spec(self, name: str = "vm") -> MachineSpec:
        """A machine that can be started."""

    async def kill_from_outside(self, machine: Machine) -> None:
        """The VMM dies as by SIGKILL from somebody else."""

    def cpu_milli(self, spec: MachineSpec) -> int:
        """The CPU time that its machine is bound to now."""

    def left(self, spec: MachineSpec) -> list[str]:
        """What there still is of a machine."""


async def until_up(machine: Machine) -> Line:
    line = await Line.open(machine)
    assert await line.ask("ping") == "pong"
    return line


async def settled(machine: Machine) -> None:
    """Until an adopted machine can be asked for something."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await machine.pause()
                return
            except TemporaryError:
                await asyncio.sleep(0.05)


async def silent(machine: Machine) -> Line:
    """A line to a machine whose virtual CPUs stand: it hears what it is told, and answers only later."""
    line = await Line.open(machine)
    await line.say("ping")
    answer = asyncio.ensure_future(line.hear())
    try:
        done, _ = await asyncio.wait([answer], timeout=0.3)
        assert not done
    finally:
        answer.cancel()
        await asyncio.wait([answer])
    return line


class VmmContract:
    """Subclassed for each body."""

    async def test_a_guest_answers_and_dies_when_told(self, world: World) -> None:
        spec = world.spec()
        machine = await world.vmm().start(spec)
        await until_up(machine)

        await machine.kill()

        end = await machine.wait()
        assert (end.cause, end.requested) == ("killed", True)
        assert world.left(spec) == []

    async def test_killing_again_is_harmless_and_the_end_stays_the_same(self, world: World) -> None:
        machine = await world.vmm().start(world.spec())
        waiting = asyncio.gather(machine.wait(), machine.wait())
        await machine.kill()
        await machine.kill()
        first, second = await waiting
        assert first == second == await machine.wait()

    async def test_a_guest_that_powers_off(self, world: World) -> None:
        spec = world.spec()
        machine = await world.vmm().start(spec)
        line = await until_up(machine)

        await line.say("poweroff")

        async with asyncio.timeout(DEADLINE_S):
            end = await machine.wait()
        assert (end.cause, end.requested) == ("shutdown", False)
        assert world.left(spec) == []

    async def test_a_kernel_that_panics_is_quoted(self, world: World) -> None:
        spec = world.spec()
        machine = await world.vmm().start(spec)
        line = await until_up(machine)

        await line.say("panic")

        async with asyncio.timeout(DEADLINE_S):
            end = await machine.wait()
        assert end.cause == "crashed"
        assert end.detail.startswith("Kernel panic - not syncing: sysrq triggered crash")
        assert "Kernel panic" in await machine.console()
        assert world.left(spec) == []

    async def test_a_vmm_killed_from_outside_is_noticed(self, world: World) -> None:
        spec = world.spec()
        machine = await world.vmm().start(spec)
        await until_up(machine)

        await world.kill_from_outside(machine)

        async with asyncio.timeout(DEADLINE_S):
            end = await machine.wait()
        assert (end.cause, end.requested) == ("killed", False)
        assert "SIGKILL" in end.detail
        assert world.left(spec) == []

    async def test_a_released_machine_goes_on_and_is_adopted(self, world: World) -> None:
        spec = world.spec()
        first = await world.vmm().start(spec)
        await until_up(first)
        first.release()

        second = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)

        assert second is not None
        assert second.identity == first.identity
        await until_up(second)
        await second.kill()
        assert world.left(spec) == []

    async def test_nothing_is_adopted_where_nothing_was(self, world: World) -> None:
        spec = world.spec("never")
        assert await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup) is None
        assert world.left(spec) == []

    async def test_what_a_dead_machine_left_is_removed(self, world: World) -> None:
        spec = world.spec()
        machine = await world.vmm().start(spec)
        machine.release()
        await world.kill_from_outside(machine)

        assert await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup) is None
        assert world.left(spec) == []

    async def test_how_a_guest_ended_while_nobody_watched_is_still_known(self, world: World) -> None:
        spec = world.spec()
        first = await world.vmm().start(spec)
        line = await until_up(first)
        await line.say("panic")
        first.release()

        async with asyncio.timeout(DEADLINE_S):
            second = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)
            assert second is not None
            end = await second.wait()
        line.writer.close()  # not sooner: what nobody has read yet is lost with the connection
        assert end.cause == "crashed"
        assert "sysrq triggered crash" in end.detail
        assert world.left(spec) == []

    async def test_a_small_machine_boots_with_a_whole_cpu_and_is_bound_afterwards(self, world: World) -> None:
        spec = replace(world.spec(), cpu_milli=100)
        first = await world.vmm().start(spec)
        assert world.cpu_milli(spec) == 1000
        await until_up(first)
        await first.limit_cpu(100)
        assert world.cpu_milli(spec) == 100
        first.release()

        second = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)
        assert second is not None
        assert world.cpu_milli(spec) == 100
        await second.limit_cpu(250)
        assert world.cpu_milli(spec) == 250
        await until_up(second)
        await second.kill()
        assert world.left(spec) == []

    async def test_a_big_machine_is_bound_from_the_start(self, world: World) -> None:
        spec = replace(world.spec(), cpu_milli=1500)
        machine = await world.vmm().start(spec)
        assert world.cpu_milli(spec) == 1500
        await machine.kill()

    async def test_a_paused_guest_does_nothing_until_resumed(self, world: World) -> None:
        machine = await world.vmm().start(world.spec())
        line = await until_up(machine)

        await machine.pause()
        await line.say("ping")
        answer = asyncio.ensure_future(line.hear())
        done, _ = await asyncio.wait([answer], timeout=0.3)
        assert not done

        await machine.resume()
        assert await answer == "pong"
        await machine.kill()

    async def test_a_paused_guest_can_be_killed(self, world: World) -> None:
        spec = world.spec()
        machine = await world.vmm().start(spec)
        await machine.pause()
        await machine.kill()
        assert world.left(spec) == []

    async def test_the_newest_channel_wins(self, world: World) -> None:
        machine = await world.vmm().start(world.spec())
        old = await until_up(machine)
        new = await Line.open(machine)

        assert await old.hear() == ""
        assert await new.ask("ping") == "pong"
        await machine.kill()
        assert await new.hear() == ""

    async def test_an_ended_machine_refuses(self, world: World, tmp_path: Path) -> None:
        machine = await world.vmm().start(world.spec())
        await machine.kill()
        for call in (
            machine.pause,
            machine.resume,
            lambda: machine.limit_cpu(500),
            lambda: machine.freeze(tmp_path / "image"),
            lambda: machine.replace_drive(Drive("root", tmp_path / "other.img")),
        ):
            with pytest.raises(PermanentError):
                await call()
        assert not (tmp_path / "image").exists()
        with pytest.raises(TemporaryError):
            await machine.open_channel()

    @pytest.mark.parametrize("missing", ["kernel", "initramfs", "drive"])
    async def test_a_missing_file_is_named_and_nothing_is_left(self, world: World, missing: str, tmp_path: Path) -> None:
        gone = tmp_path / "gone.img"
        changes = {"drive": {"drives": (Drive("root", gone),)}}.get(missing, {missing: gone})
        spec = replace(world.spec(), **changes)

        with pytest.raises(PermanentError, match=r"gone\.img"):
            await world.vmm().start(spec)
        assert world.left(spec) == []

    async def test_a_folder_in_use_is_refused_and_its_machine_unharmed(self, world: World) -> None:
        spec = world.spec()
        machine = await world.vmm().start(spec)
        with pytest.raises(ConflictError):
            await world.vmm().start(spec)
        await until_up(machine)
        await machine.kill()

    async def test_a_folder_can_be_used_again(self, world: World) -> None:
        spec = world.spec()
        for _ in range(2):
            machine = await world.vmm().start(spec)
            await machine.kill()
        assert world.left(spec) == []

    async def test_several_at_once(self, world: World) -> None:
        specs = [world.spec(f"vm{number}") for number in range(4)]
        vmm = world.vmm()
        machines = await asyncio.gather(*(vmm.start(spec) for spec in specs))
        assert len({machine.identity for machine in machines}) == 4
        await asyncio.gather(*(machine.kill() for machine in machines))
        assert [world.left(spec) for spec in specs] == [[], [], [], []]

    async def test_forks_go_on_from_the_frozen_moment_each_by_itself(self, world: World, tmp_path: Path) -> None:
        vmm = world.vmm()
        parent = await vmm.start(world.spec())
        line = await until_up(parent)
        assert [await line.ask("keep parent"), await line.ask("count"), await line.ask("count")] == ["ok", "1", "2"]

        frozen = await parent.freeze(tmp_path / "image")
        assert frozen.copied_bytes > 0
        assert 0 < frozen.memory_bytes <= world.spec().memory_bytes
        assert [await line.ask("count"), await line.ask("keep later")] == ["3", "ok"]

        family = [parent]
        for number in range(2):
            child = await vmm.fork(world.spec(f"child{number}"), tmp_path / "image")
            family.append(child)
            heard = await silent(child)
            await child.resume()
            assert await heard.hear() == "pong"
            assert [await heard.ask("kept"), await heard.ask("count")] == ["parent", "3"]
            assert await heard.ask(f"keep child{number}") == "ok"

        await family[1].freeze(tmp_path / "second")
        grandchild = await vmm.fork(world.spec("grandchild"), tmp_path / "second")
        await family[1].kill()
        await grandchild.resume()
        heard = await Line.open(grandchild)
        assert [await heard.ask("kept"), await heard.ask("count")] == ["child0", "4"]
        heard = await Line.open(family[2])
        assert [await heard.ask("kept"), await heard.ask("count")] == ["child1", "4"]
        assert [await line.ask("kept"), await line.ask("count")] == ["later", "4"]
        await asyncio.gather(*(machine.kill() for machine in (*family, grandchild)))
        assert [world.left(world.spec(name)) for name in ("vm", "child0", "child1", "grandchild")] == [[], [], [], []]

    async def test_a_fork_with_somebody_beside_it_goes_on_by_itself(self, world: World, tmp_path: Path) -> None:
        vmm = world.vmm()
        parent = await vmm.start(world.spec())
        assert await (await until_up(parent)).ask("keep parent") == "ok"
        await parent.freeze(tmp_path / "image")
        heard = []

        async def talk(machine: Machine) -> None:
            line = await Line.open(machine)
            heard.append(await line.ask("kept"))

        child = await vmm.fork(world.spec("child"), tmp_path / "image", beside=talk)
        assert heard == ["parent"]
        assert await (await Line.open(child)).ask("ping") == "pong"

        async def stumble(machine: Machine) -> None:
            await talk(machine)
            raise TemporaryError("It talks nonsense.")

        with pytest.raises(TemporaryError, match="nonsense"):
            await vmm.fork(world.spec("other"), tmp_path / "image", beside=stumble)
        await asyncio.gather(parent.kill(), child.kill())
        assert [world.left(world.spec(name)) for name in ("vm", "child", "other")] == [[], [], []]

    async def test_a_paused_fork_is_adopted_frozen_resumed_and_killed(self, world: World, tmp_path: Path) -> None:
        parent = await world.vmm().start(world.spec())
        assert await (await until_up(parent)).ask("count") == "1"
        await parent.freeze(tmp_path / "image")
        await parent.kill()
        spec = world.spec("child")
        first = await world.vmm().fork(spec, tmp_path / "image")
        with pytest.raises(ConflictError):
            await world.vmm().fork(spec, tmp_path / "image")
        first.release()

        second = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)
        assert second is not None
        assert second.identity == first.identity
        await settled(second)
        await second.freeze(tmp_path / "again")
        heard = await silent(second)
        await second.resume()
        assert [await heard.hear(), await heard.ask("count")] == ["pong", "2"]
        await second.kill()

        third = await world.vmm().fork(spec, tmp_path / "again")
        await third.kill()
        assert (await third.wait()).requested
        assert world.left(spec) == []

    async def test_the_parent_goes_on_whatever_fails(self, world: World, tmp_path: Path) -> None:
        machine = await world.vmm().start(world.spec())
        await until_up(machine)
        standing: list[Line] = []

        async def refuses() -> None:
            standing.append(await silent(machine))
            raise OSError("the disks cannot be cut")

        async def runs_yet() -> None:
            assert await (await Line.open(machine)).ask("ping") == "pong"

        with pytest.raises(OSError, match="cannot be cut"):
            await machine.freeze(tmp_path / "image", before=runs_yet, during=refuses, go_on=False)
        assert not (tmp_path / "image").exists()
        (line,) = standing
        assert await line.hear() == "pong"

        async def is_not_ready() -> None:
            raise OSError("the programs do not stand")

        with pytest.raises(OSError, match="do not stand"):
            await machine.freeze(tmp_path / "image", before=is_not_ready)
        assert not (tmp_path / "image").exists()
        assert await line.ask("ping") == "pong"

        freezing = asyncio.ensure_future(machine.freeze(tmp_path / "image", during=asyncio.Event().wait))
        await asyncio.wait([freezing], timeout=0.3)
        freezing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await freezing
        assert not (tmp_path / "image").exists()
        assert await line.ask("ping") == "pong"

        (tmp_path / "image").mkdir()
        with pytest.raises(PermanentError, match="image"):
            await machine.freeze(tmp_path / "image")
        assert await line.ask("ping") == "pong"
        await machine.kill()

    async def test_a_machine_stands_after_a_freeze_if_told_or_if_it_stood(self, world: World, tmp_path: Path) -> None:
        machine = await world.vmm().start(world.spec())
        await until_up(machine)
        await machine.freeze(tmp_path / "image", go_on=False)
        await machine.freeze(tmp_path / "again")
        line = await silent(machine)
        await machine.resume()
        assert [await line.hear(), await line.ask("ping")] == ["pong", "pong"]
        await machine.kill()

    async def test_a_damaged_image_is_named_and_nothing_is_left(self, world: World, tmp_path: Path) -> None:
        machine = await world.vmm().start(world.spec())
        await until_up(machine)
        await machine.freeze(tmp_path / "image")
        await machine.kill()
        spec = world.spec("child")

        with pytest.raises(PermanentError, match="image"):
            await world.vmm().fork(replace(spec, memory_bytes=spec.memory_bytes * 2), tmp_path / "image")
        for name in (MEMORY, DEVICES):
            file = tmp_path / "image" / name
            away = file.rename(tmp_path / name)
            with pytest.raises(PermanentError, match=name):
                await world.vmm().fork(spec, tmp_path / "image")
            away.rename(file)
            whole = file.read_bytes()
            file.chmod(0o644)
            file.write_bytes(whole[:-1])
            with pytest.raises(PermanentError, match="image"):
                await world.vmm().fork(spec, tmp_path / "image")
            file.write_bytes(whole)
            assert world.left(spec) == []
        await (await world.vmm().fork(spec, tmp_path / "image")).kill()

    async def test_equal_machines_have_equal_image_keys(self, world: World) -> None:
        spec = world.spec()
        key = await world.vmm().image_key(spec)
        assert key
        assert all(isinstance(value, str) and value for value in key.values())
        assert await world.vmm().image_key(world.spec("another")) == key
        assert await world.vmm().image_key(replace(spec, memory_bytes=spec.memory_bytes * 2)) != key
        assert await world.vmm().image_key(replace(spec, cpu_milli=3000)) != key

    async def test_it_says_what_it_is(self, world: World) -> None:
        info = await world.vmm().info()
        assert info.name
        assert info.version
        assert info.accelerator_reason

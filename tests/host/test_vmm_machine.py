"""Real microVMs: what they are given, how they are confined, what a hostile or broken one can do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from primordia.drivers.vmm_qemu.machine import QemuMachine
from primordia.host import accelerator
from primordia.kit import cgroup
from primordia.kit.errors import PermanentError, TemporaryError
from primordia.ports.vmm import Drive, MachineSpec, Nic
from primordia.testing.vmm import (
    DEADLINE_S,
    OWNER_ID,
    Guests,
    Line,
    booted,
    guests,
    obedient_initramfs,
    processes_of,
    tap,
    tools,
)
from primordia.wire.nodeconfig import Tools

__all__ = ["obedient_initramfs", "tap", "tools"]


@pytest.fixture
async def world(tools: Tools, tmp_path: Path) -> AsyncIterator[Guests]:
    async with guests(tools, tmp_path) as made:
        yield made


@pytest.fixture
def spec(world: Guests, obedient_initramfs: Path) -> MachineSpec:
    return world.spec(initramfs=obedient_initramfs)


async def up(machine: QemuMachine) -> Line:
    line = await Line.open(machine)
    assert await line.ask("ping") == "pong"
    return line


def disk(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content + bytes((1 << 20) - len(content)))
    return path


def proc(machine: QemuMachine, name: str) -> str:
    return Path(f"/proc/{machine.identity.pid}/{name}").read_text()


async def test_cpus_memory_and_drives_are_what_was_asked(world: Guests, spec: MachineSpec, tmp_path: Path) -> None:
    root, scratch = disk(tmp_path / "root", b"from the host"), disk(tmp_path / "scratch")
    root.chmod(0o444)
    drives = (Drive("root", root, read_only=True), Drive("scratch", scratch), Drive("data", disk(tmp_path / "d"), durable=True))
    machine = await world.vmm().start(replace(spec, cpu_milli=1001, memory_bytes=192 << 20, drives=drives))
    line = await up(machine)

    assert await line.ask("cpus") == "2"
    assert 128 << 20 < int(await line.ask("memory")) < 192 << 20
    assert await line.ask("drives") == "root:2048:1 scratch:2048:0 data:2048:0"
    assert await line.ask("read root") == "from the host"
    assert await line.ask("write root changed") == "error"
    assert await line.ask("write data from the guest") == "ok"
    assert (tmp_path / "d").read_bytes().startswith(b"from the guest")
    assert root.read_bytes().startswith(b"from the host")
    await machine.kill()
    assert world.left(spec) == []


async def test_the_process_is_confined(world: Guests, spec: MachineSpec) -> None:
    leaked, kept = os.pipe()
    os.set_inheritable(kept, True)
    machine = await world.vmm().start(spec)
    try:
        status = dict(line.split(":\t", 1) for line in proc(machine, "status").splitlines() if ":\t" in line)
        assert status["Uid"].split() == [str(OWNER_ID)] * 4
        assert status["Gid"].split() == [str(OWNER_ID)] * 4
        assert status["Groups"].split() == []
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert proc(machine, "oom_score_adj").strip() == "500"
        targets = [entry.readlink() for entry in Path(f"/proc/{machine.identity.pid}/fd").iterdir()]
        assert Path(f"/proc/self/fd/{kept}").readlink() not in targets
        group = f"{world.group}/{spec.cgroup}"
        assert cgroup.pids(group) == {machine.identity.pid}
        for line in proc(machine, "cgroup").splitlines():
            number, controllers, place = line.split(":", 2)
            if number == "0" or {"cpu", "memory"} & set(controllers.split(",")):
                assert place.endswith(group)
    finally:
        os.close(leaked)
        os.close(kept)
        await machine.kill()


async def test_a_console_flood_stays_in_its_ring(world: Guests, spec: MachineSpec) -> None:
    machine = await world.vmm().start(spec)
    line = await up(machine)

    assert await line.ask("console 2000") == "2000"

    text = await machine.console()
    assert len(text) <= 65536
    assert "flood 1999" in text
    assert sum(path.stat().st_blocks for path in spec.run_dir.iterdir()) * 512 < 65536
    assert len(await machine.console()) <= 65536
    await machine.kill()


async def test_a_guest_that_reboots_has_ended(world: Guests, spec: MachineSpec) -> None:
    machine = await world.vmm().start(spec)
    await (await up(machine)).say("reboot")
    async with asyncio.timeout(DEADLINE_S):
        end = await machine.wait()
    assert (end.cause, "rebooted" in end.detail) == ("shutdown", True)
    assert world.left(spec) == []


async def test_a_kernel_that_is_none_is_refused_with_qemus_words(world: Guests, spec: MachineSpec, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_text("I am not a kernel. " * 1000)
    with pytest.raises(PermanentError, match=r"gave up with exit code 1: .*kernel"):
        await world.vmm().start(replace(spec, kernel=tmp_path / "kernel"))
    assert world.left(spec) == []


async def test_memory_that_cannot_be_is_refused(world: Guests, spec: MachineSpec) -> None:
    with pytest.raises(PermanentError, match="memory"):
        await world.vmm().start(replace(spec, memory_bytes=1 << 62))
    assert world.left(spec) == []


async def test_a_qemu_that_is_missing_is_named(world: Guests, spec: MachineSpec) -> None:
    world.tools = msgspec.structs.replace(world.tools, qemu="/nowhere/qemu", qemu_data="/nowhere")
    with pytest.raises(PermanentError, match="/nowhere/qemu"):
        await world.vmm().start(spec)
    assert world.left(spec) == []


async def test_a_writable_disk_has_one_machine(world: Guests, spec: MachineSpec, tmp_path: Path) -> None:
    drives = (Drive("data", disk(tmp_path / "data"), durable=True),)
    first = await world.vmm().start(replace(spec, drives=drives))
    second = replace(world.spec("second"), initramfs=spec.initramfs, drives=drives)

    with pytest.raises(TemporaryError, match="has its disk open"):
        await world.vmm().start(second)

    assert world.left(second) == []
    await up(first)
    await first.kill()


async def test_a_read_only_disk_is_shared(world: Guests, spec: MachineSpec, tmp_path: Path) -> None:
    drives = (Drive("root", disk(tmp_path / "root"), read_only=True),)
    first = await world.vmm().start(replace(spec, drives=drives))
    second = await world.vmm().start(replace(world.spec("second"), initramfs=spec.initramfs, drives=drives))
    await asyncio.gather(first.kill(), second.kill())


async def test_a_stopped_qemu_can_be_adopted_and_killed(world: Guests, spec: MachineSpec) -> None:
    first = await world.vmm().start(spec)
    first.release()
    os.kill(first.identity.pid, signal.SIGSTOP)

    async with asyncio.timeout(DEADLINE_S):
        second = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)
        assert second is not None
        with pytest.raises(TemporaryError, match="monitor"):
            await second.pause()
        await second.kill()
    assert world.left(spec) == []


async def test_a_lost_monitor_is_connected_again(world: Guests, spec: MachineSpec) -> None:
    machine = await world.vmm().start(spec)
    machine._monitor._client._writer.transport.abort()  # type: ignore[union-attr]
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await machine.pause()
                break
            except TemporaryError:
                await asyncio.sleep(0.05)
    await machine.kill()


STARTER = """
    import asyncio, os, signal, sys
    from pathlib import Path
    import msgspec
    from primordia.drivers.vmm_qemu import QemuVmm
    from primordia.ports.vmm import MachineSpec
    from primordia.wire.nodeconfig import Tools

    async def main():
        tools = msgspec.json.decode(sys.argv[1], type=Tools)
        spec = msgspec.json.decode(sys.argv[2], type=MachineSpec, dec_hook=lambda kind, value: kind(value))
        await QemuVmm(tools, "tcg", "test", sys.argv[3]).start(spec)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
"""


async def start_by_a_daemon_that_is_killed(world: Guests, spec: MachineSpec) -> None:
    arguments = (msgspec.json.encode(world.tools).decode(), msgspec.json.encode(spec, enc_hook=str).decode(), world.group)
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(STARTER), *arguments)
    async with asyncio.timeout(DEADLINE_S):
        assert await daemon.wait() == -signal.SIGKILL


async def test_a_machine_survives_a_killed_daemon(world: Guests, spec: MachineSpec) -> None:
    await start_by_a_daemon_that_is_killed(world, spec)

    machine = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)

    assert machine is not None
    line = await up(machine)
    await line.say("poweroff")
    async with asyncio.timeout(DEADLINE_S):
        assert (await machine.wait()).cause == "shutdown"
    assert world.left(spec) == []


async def test_a_process_that_is_not_our_child_is_lost_when_it_is_killed(world: Guests, spec: MachineSpec) -> None:
    await start_by_a_daemon_that_is_killed(world, spec)
    machine = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)
    assert machine is not None

    os.kill(machine.identity.pid, signal.SIGKILL)

    async with asyncio.timeout(DEADLINE_S):
        assert (await machine.wait()).cause == "lost"
    assert world.left(spec) == []


async def test_a_start_without_pid_file_is_cleared_by_the_next(world: Guests, spec: MachineSpec) -> None:
    """A daemon killed between starting QEMU and naming it leaves a process that only its cgroup knows."""
    machine = await world.vmm().start(spec)
    machine.release()
    (spec.run_dir / "qemu.pid").unlink()

    assert await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup) is None
    assert processes_of(spec.uid) == []
    assert world.left(spec) == []


async def test_a_cancelled_start_leaves_nothing(world: Guests, spec: MachineSpec) -> None:
    for delay_s in (0.0, 0.03, 0.06, 0.09):
        starting = asyncio.ensure_future(world.vmm().start(spec))
        await asyncio.sleep(delay_s)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await starting).kill()
        assert world.left(spec) == []


async def test_a_network_card_on_a_tap(world: Guests, spec: MachineSpec, tap: int) -> None:
    machine = await world.vmm().start(replace(spec, nic=Nic(tap, "02:50:0a:80:00:01")))
    line = await up(machine)
    assert await line.ask("network") == "02:50:0a:80:00:01"
    await machine.kill()


async def test_no_boot_hangs_on_a_busy_host(world: Guests, spec: MachineSpec) -> None:
    """The kernel calibrates its clock against the host's; when that fails, it hangs (one in five, before it was told)."""
    vmm = world.vmm()
    for batch in range(2):
        specs = [replace(world.spec(f"b{batch}-{number}"), initramfs=spec.initramfs) for number in range(4)]
        machines = await asyncio.gather(*(vmm.start(one) for one in specs))
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(machine.booted() for machine in machines))
        await asyncio.gather(*(machine.kill() for machine in machines))


async def test_the_real_agent_boots(tools: Tools, tmp_path: Path) -> None:
    async with booted(tools, tmp_path) as machine:
        assert machine.identity.pid > 0


async def test_a_guest_that_starts_again_before_it_is_up_may(world: Guests, spec: MachineSpec, tmp_path: Path) -> None:
    drive = Drive("again", disk(tmp_path / "again", b"start again"))
    machine = await world.vmm().start(replace(spec, drives=(drive,)))
    line = await up(machine)
    assert await line.ask("read again") == "done"
    await line.say("reboot")
    async with asyncio.timeout(DEADLINE_S):
        assert "rebooted" in (await machine.wait()).detail


async def test_a_guest_whose_kernel_finds_no_timer_ends_instead_of_sleeping_for_ever(world: Guests) -> None:
    """On a busy host a kernel may take its timer's frequency for too low; nothing in such a guest would ever time out."""
    spec = world.spec()
    machine = await world.vmm().start(replace(spec, kernel_args=("nolapic_timer",)))
    async with asyncio.timeout(DEADLINE_S):
        end = await machine.wait()
    assert (end.cause, "rebooted" in end.detail) == ("shutdown", True)
    assert world.left(spec) == []


async def test_a_probe_boots_with_tcg_and_leaves_nothing(tools: Tools) -> None:
    before = set(Path("/tmp").glob("primordia-probe-*"))
    assert await accelerator.probe(tools, "tcg", timeout_s=DEADLINE_S) == ""
    assert await accelerator.probe(tools, "tcg", timeout_s=0.01) == "a probe guest did not boot within 0 s"
    no_kernel = msgspec.structs.replace(tools, kernel="/nowhere/vmlinuz")
    assert "No such file" in await accelerator.probe(no_kernel, "tcg", timeout_s=1)
    assert set(Path("/tmp").glob("primordia-probe-*")) == before


async def test_the_verdict_is_kept_for_this_boot(tools: Tools, tmp_path: Path) -> None:
    verdict = await accelerator.decide(tmp_path, tools)
    assert verdict[0] in ("kvm", "tcg")
    assert verdict[1]
    written = (tmp_path / "accelerator.json").stat().st_mtime_ns
    assert await accelerator.decide(tmp_path, tools) == verdict
    assert (tmp_path / "accelerator.json").stat().st_mtime_ns == written
    (tmp_path / "accelerator.json").write_text("garbage")
    assert (await accelerator.decide(tmp_path, tools))[0] == verdict[0]

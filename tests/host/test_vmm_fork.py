"""Forks of real microVMs: their memory, their disks, and everything that can go wrong while one is frozen or loaded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from primordia.drivers.vmm_qemu import machine as machine_module
from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.layout import layout_of, pack, read_note
from primordia.drivers.vmm_qemu.machine import QemuMachine
from primordia.kit import cgroup
from primordia.kit.errors import CapacityError, PermanentError, PrimordiaError, TemporaryError
from primordia.ports.vmm import DEVICES, MEMORY, Drive, Machine, MachineSpec, Nic
from primordia.testing.vmm import DEADLINE_S, OWNER_ID, Guests, Line, guests, obedient_initramfs, tap, tools
from primordia.wire.nodeconfig import Tools

__all__ = ["obedient_initramfs", "tap", "tools"]

FILLED_MIB = 24


@pytest.fixture
async def world(tools: Tools, tmp_path: Path) -> AsyncIterator[Guests]:
    async with guests(tools, tmp_path) as made:
        yield made


def disk(path: Path, content: bytes) -> Path:
    path.write_bytes(content + bytes((1 << 20) - len(content)))
    return path


@pytest.fixture
def spec(world: Guests, obedient_initramfs: Path, tmp_path: Path) -> MachineSpec:
    root = Drive("root", disk(tmp_path / "root", b"shared"), read_only=True)
    scratch = Drive("scratch", disk(tmp_path / "scratch", b"the parent's"))
    return replace(world.spec(initramfs=obedient_initramfs), drives=(root, scratch))


def child_of(spec: MachineSpec, name: str, folder: Path) -> MachineSpec:
    """Another machine like it, with a scratch disk of its own."""
    scratch = Drive("scratch", disk(folder / f"scratch-{name}", name.encode()))
    run_dir = spec.run_dir.with_name(name)
    return replace(spec, uid=f"{spec.uid}-{name}", run_dir=run_dir, cgroup=name, drives=(spec.drives[0], scratch))


@pytest.fixture
async def parent(world: Guests, spec: MachineSpec) -> QemuMachine:
    machine = await world.vmm().start(spec)
    line = await Line.open(machine)
    assert await line.ask(f"fill {FILLED_MIB} 1") == "ok"
    return machine


async def resumed(machine: Machine) -> Line:
    await machine.resume()
    return await Line.open(machine)


async def sum_of(machine: Machine) -> str:
    return await (await Line.open(machine)).ask("sum")


async def test_nobody_sees_what_another_writes_after_a_fork(
    world: Guests, spec: MachineSpec, parent: QemuMachine, tmp_path: Path
) -> None:
    frozen_sum = await sum_of(parent)
    frozen = await parent.freeze(tmp_path / "image")
    image = (tmp_path / "image" / MEMORY).read_bytes()
    assert frozen.memory_bytes > FILLED_MIB << 20
    vmm = world.vmm()
    children = [await vmm.fork(child_of(spec, f"c{number}", tmp_path), tmp_path / "image") for number in range(3)]
    first, second, third = children

    one = await resumed(first)
    assert await (await Line.open(parent)).ask(f"fill {FILLED_MIB} 2") == "ok"
    assert await one.ask("sum") == frozen_sum
    assert await one.ask(f"fill {FILLED_MIB // 2} 3") == "ok"
    changed_sum = await one.ask("sum")
    assert changed_sum != frozen_sum
    assert await (await resumed(second)).ask("sum") == frozen_sum

    # The first child goes on writing after its own freeze; its child has read some pages, written some, and left some alone.
    taken = await first.freeze(tmp_path / "second")
    assert FILLED_MIB << 19 < taken.copied_bytes < frozen.memory_bytes
    assert await one.ask(f"fill {FILLED_MIB} 4") == "ok"
    grandchild = await vmm.fork(child_of(spec, "g", tmp_path), tmp_path / "second")
    heard = await resumed(grandchild)
    assert await heard.ask("sum") == changed_sum
    assert await heard.ask("fill 1 5") == "ok"
    last_sum = await heard.ask("sum")
    await grandchild.freeze(tmp_path / "third", go_on=False)
    await grandchild.kill()
    last = await vmm.fork(child_of(spec, "h", tmp_path), tmp_path / "third")
    assert await (await resumed(last)).ask("sum") == last_sum

    assert await (await resumed(third)).ask("sum") == frozen_sum
    assert (tmp_path / "image" / MEMORY).read_bytes() == image
    await asyncio.gather(*(machine.kill() for machine in (parent, *children, last)))
    assert [world.left(child_of(spec, name, tmp_path)) for name in ("c0", "c1", "c2", "g", "h")] == [[]] * 5


async def test_a_fork_that_ends_itself_has_ended_as_it_meant_to(
    world: Guests, spec: MachineSpec, tap: int, tmp_path: Path
) -> None:
    """Its network card is reset on the way, and it has no firmware to reboot into."""
    spec = replace(spec, nic=Nic(tap, "02:50:0a:80:00:01"))
    vmm = world.vmm()
    parent = await vmm.start(spec)
    assert await (await Line.open(parent)).ask("network") == "02:50:0a:80:00:01"
    await parent.freeze(tmp_path / "image", go_on=False)
    await parent.kill()
    for word, cause, told in (
        ("poweroff", "shutdown", "off"),
        ("reboot", "shutdown", "rebooted"),
        ("panic", "crashed", "panic"),
    ):
        child = child_of(spec, word, tmp_path)
        machine = await vmm.fork(child, tmp_path / "image")
        await (await resumed(machine)).say(word)
        async with asyncio.timeout(DEADLINE_S):
            end = await machine.wait()
        assert (end.cause, told in end.detail) == (cause, True), end
        assert world.left(child) == []


async def test_a_fork_has_its_own_disks_and_is_confined_as_its_parent(
    world: Guests, spec: MachineSpec, parent: QemuMachine, tmp_path: Path
) -> None:
    await parent.freeze(tmp_path / "image")
    child = child_of(spec, "child", tmp_path)
    smaller = child.drives[1].path
    smaller.write_bytes(smaller.read_bytes()[:4096])
    with pytest.raises(PermanentError, match="scratch=4096w"):
        await world.vmm().fork(child, tmp_path / "image")
    disk(smaller, b"the child's")
    machine = await world.vmm().fork(child, tmp_path / "image")
    line = await resumed(machine)

    assert [await line.ask("read root"), await line.ask("read scratch")] == ["shared", "the child's"]
    assert await line.ask("write scratch written") == "ok"
    assert smaller.read_bytes().startswith(b"written")
    assert spec.drives[1].path.read_bytes().startswith(b"the parent's")

    def confinement(of: Machine) -> list[str]:
        status = Path(f"/proc/{of.identity.pid}/status").read_text().splitlines()
        return [line for line in status if line.split(":")[0] in ("Uid", "Gid", "Groups", "CapBnd", "NoNewPrivs", "Seccomp")]

    assert confinement(machine) == confinement(parent)
    assert f"Uid:\t{OWNER_ID}\t{OWNER_ID}\t{OWNER_ID}\t{OWNER_ID}" in confinement(machine)
    assert machine.identity.pid in cgroup.pids(f"{world.group}/{child.cgroup}")
    modes = [access_mode(file) for file in Path(f"/proc/{machine.identity.pid}/fd").iterdir() if names(file, MEMORY)]
    assert modes
    assert set(modes) == {os.O_RDONLY}
    await asyncio.gather(parent.kill(), machine.kill())


def names(descriptor: Path, file: str) -> bool:
    return str(descriptor.readlink()).endswith(f"/image/{file}")


def access_mode(descriptor: Path) -> int:
    info = Path(str(descriptor).replace("/fd/", "/fdinfo/")).read_text().splitlines()
    return int(next(line.split()[1] for line in info if line.startswith("flags:")), 8) & os.O_ACCMODE


async def test_what_the_host_sends_during_a_freeze_tears_nothing(
    world: Guests, spec: MachineSpec, parent: QemuMachine, tmp_path: Path
) -> None:
    line = await Line.open(parent)
    sent = heard = 0

    async def talk() -> None:
        nonlocal sent
        while True:
            sent += 1  # first: who is cut off while it waits has written
            await line.say("ping")
            await asyncio.sleep(0)

    async def listen() -> None:
        nonlocal heard
        while await line.hear() == "pong":
            heard += 1

    listening = asyncio.ensure_future(listen())
    for number in range(5):
        talking = asyncio.ensure_future(talk())
        try:
            await parent.freeze(tmp_path / f"image{number}")
        finally:
            talking.cancel()
            await asyncio.wait([talking])
        child = child_of(spec, f"c{number}", tmp_path)
        machine = await world.vmm().fork(child, tmp_path / f"image{number}")
        await machine.resume()
        await until_heard(machine, "sum")
        await machine.kill()
    for _ in range(int(DEADLINE_S / 0.02)):
        if heard == sent:
            break
        await asyncio.sleep(0.02)
    assert heard == sent
    listening.cancel()
    await asyncio.wait([listening])

    # Somebody asks and does not read the answers: the port is full, and a fork would inherit that.
    connection = rundir.connect(spec.run_dir, rundir.AGENT)
    line.writer.close()
    connection.setblocking(True)
    connection.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while True:
            await asyncio.to_thread(connection.sendall, b"ping\n" * 1000)
    with pytest.raises(TemporaryError, match="not read"):
        await parent.freeze(tmp_path / "stuck")
    assert not (tmp_path / "stuck").exists()
    connection.close()
    await parent.kill()


async def until_heard(machine: Machine, word: str) -> None:
    """The guest answers what it was sent before its freeze first; then it answers us."""
    line = await Line.open(machine)
    await line.say("\n" + word)  # what it was sent may end within a line
    while True:
        heard = await line.hear()
        if heard not in ("pong", "what?"):
            assert len(heard) == 16
            return


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with less room than an image needs."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)], check=True, timeout=10)
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=10)


async def test_a_full_disk_and_a_dead_daemon_leave_the_parent_running(
    world: Guests, spec: MachineSpec, parent: QemuMachine, tmp_path: Path, small_disk: Path
) -> None:
    with pytest.raises(CapacityError, match="no room"):
        await parent.freeze(small_disk / "image")
    assert list(small_disk.iterdir()) == []
    line = await Line.open(parent)
    assert await line.ask("count") == "1"

    # A daemon that dies while the machine stands leaves exactly this.
    standing = asyncio.Event()

    async def die() -> None:
        standing.set()
        await asyncio.Event().wait()

    freezing = asyncio.ensure_future(parent.freeze(tmp_path / "image", during=die))
    await standing.wait()
    assert (spec.run_dir / rundir.STANDING).exists()
    parent.release()
    freezing.cancel()
    await asyncio.wait([freezing])

    adopted = await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup)
    assert adopted is not None
    line = await Line.open(adopted)
    assert await line.ask("count") == "2"
    for _ in range(int(DEADLINE_S / 0.02)):
        if not (spec.run_dir / rundir.STANDING).exists():
            break
        await asyncio.sleep(0.02)
    (spec.run_dir / rundir.NOTE).unlink()
    with pytest.raises(PermanentError, match="not known what it was made of"):
        await adopted.freeze(tmp_path / "unknown")
    assert await line.ask("count") == "3"
    await adopted.kill()
    assert world.left(spec) == []


async def test_a_vmm_that_dies_in_a_freeze_is_named_and_nothing_is_left(
    world: Guests, spec: MachineSpec, parent: QemuMachine, tmp_path: Path
) -> None:
    async def dies() -> None:
        descriptor = os.pidfd_open(parent.identity.pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
        await parent.wait()

    with pytest.raises(PrimordiaError):
        await parent.freeze(tmp_path / "image", during=dies)
    assert not (tmp_path / "image").exists()
    assert world.left(spec) == []


async def test_a_fork_that_cannot_load_says_why_and_leaves_nothing(
    world: Guests, spec: MachineSpec, parent: QemuMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parent.freeze(tmp_path / "image")
    child = child_of(spec, "child", tmp_path)

    # A state that is what was written and that QEMU does not take: the wrong one behind a right header.
    whole = (tmp_path / "image" / DEVICES).read_bytes()
    state = whole.partition(b"\n")[2]
    (tmp_path / "image" / DEVICES).write_bytes(pack(layout_of(child), state[: len(state) // 2]))
    with pytest.raises(PermanentError, match=r"cannot start: QEMU gave up with exit code 1: \S"):
        await world.vmm().fork(child, tmp_path / "image")
    assert world.left(child) == []
    (tmp_path / "image" / DEVICES).write_bytes(whole)
    (tmp_path / "image" / MEMORY).chmod(0o600)
    with pytest.raises(PermanentError, match="memory cannot be used"):
        await world.vmm().fork(child, tmp_path / "image")
    assert world.left(child) == []
    (tmp_path / "image" / MEMORY).chmod(0o444)

    for number in (signal.SIGKILL, signal.SIGSTOP):
        monkeypatch.setattr(machine_module, "START_TIMEOUT_S", 3.0)
        forking = asyncio.ensure_future(world.vmm().fork(child, tmp_path / "image"))
        await hit(child, number)
        with pytest.raises(PermanentError, match="SIGKILL" if number == signal.SIGKILL else "does not answer"):
            await forking
        assert world.left(child) == []
    await parent.kill()


async def hit(spec: MachineSpec, number: signal.Signals) -> None:
    """Send the signal to the machine's process as soon as there is one."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                pid = int(json.loads((spec.run_dir / rundir.PID).read_text())["pid"])
                descriptor = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(descriptor, number)
                finally:
                    os.close(descriptor)
                return
            await asyncio.sleep(0)


async def test_a_fork_is_noted_as_one(world: Guests, spec: MachineSpec, parent: QemuMachine, tmp_path: Path) -> None:
    await parent.freeze(tmp_path / "image")
    child = child_of(spec, "child", tmp_path)
    machine = await world.vmm().fork(child, tmp_path / "image")
    assert read_note("", child.run_dir).base_inode == (tmp_path / "image" / MEMORY).stat().st_ino
    assert read_note("", spec.run_dir).base_inode == 0

    # Where the file is now does not matter, nor whether it has a name.
    (tmp_path / "image").rename(tmp_path / "moved")
    (tmp_path / "moved" / MEMORY).unlink()
    line = await resumed(machine)
    before = await line.ask("sum")
    await machine.freeze(tmp_path / "again")
    again = await world.vmm().fork(child_of(spec, "again", tmp_path), tmp_path / "again")
    assert await (await resumed(again)).ask("sum") == before
    await asyncio.gather(parent.kill(), machine.kill(), again.kill())

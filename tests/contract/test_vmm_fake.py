"""The fake body keeps the VMM contract, cheaply."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from vmm_contract import VmmContract

from primordia.drivers.vmm_fake import FakeGuest, FakeHost, FakeMachine, FakeVmm, memory_channel
from primordia.kit.errors import CapacityError
from primordia.ports.vmm import Machine, MachineSpec
from primordia.testing.vmm import DEADLINE_S, obedient


class FakeWorld:
    def __init__(self, folder: Path) -> None:
        self.host = FakeHost()
        self._folder = folder
        for name in ("kernel", "initramfs"):
            (folder / name).touch()

    def vmm(self) -> FakeVmm:
        return FakeVmm(self.host, obedient)

    def spec(self, name: str = "vm") -> MachineSpec:
        run_dir = self._folder / "run" / name
        return MachineSpec(name, run_dir, 1000, 128 << 20, self._folder / "kernel", self._folder / "initramfs", (), 1, name)

    async def kill_from_outside(self, machine: Machine) -> None:
        assert isinstance(machine, FakeMachine)
        self.host.lose(machine.guest)

    def cpu_milli(self, spec: MachineSpec) -> int:
        return self.host.guests[spec.run_dir].cpu_milli

    def left(self, spec: MachineSpec) -> list[str]:
        return [str(folder) for folder in self.host.guests if folder == spec.run_dir]


class TestFakeVmm(VmmContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> FakeWorld:
        return FakeWorld(tmp_path)

    async def test_five_thousand_are_cheap(self, world: FakeWorld) -> None:
        vmm, spec = world.vmm(), world.spec()
        machines = [await vmm.start(replace(spec, run_dir=spec.run_dir / str(number))) for number in range(5000)]
        channels = [await machine.open_channel() for machine in machines]
        for _, writer in channels:
            writer.write(b"ping\n")
        answers = await asyncio.gather(*(reader.readline() for reader, _ in channels))
        assert set(answers) == {b"pong\n"}
        await asyncio.gather(*(machine.kill() for machine in machines))
        assert world.host.guests == {}

    async def test_a_refusal_of_the_test_is_raised_once(self, world: FakeWorld) -> None:
        vmm = world.vmm()
        vmm.refusal = CapacityError("no memory")
        with pytest.raises(CapacityError):
            await vmm.start(world.spec())
        await (await vmm.start(world.spec())).kill()

    async def test_a_rebooted_host_has_no_machines(self, world: FakeWorld) -> None:
        spec = world.spec()
        (await world.vmm().start(spec)).release()
        world.host.boot_id = "another"
        assert await world.vmm().adopt(spec.uid, spec.run_dir, spec.cgroup) is None

    async def test_the_test_sees_the_guest(self, world: FakeWorld) -> None:
        seen: list[FakeGuest] = []

        async def agent(guest: FakeGuest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(guest)
            writer.write(await reader.readexactly(3))

        machine = await FakeVmm(world.host, agent).start(world.spec())
        reader, writer = await machine.open_channel()
        writer.write(b"abc")
        assert await reader.read() == b"abc"
        assert seen == [machine.guest]
        await machine.kill()


async def test_a_memory_channel_has_back_pressure() -> None:
    (_, writer), (reader, other) = memory_channel()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for _ in range(64):
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    flooding = asyncio.ensure_future(flood())
    for _ in range(1000):
        await asyncio.sleep(0)
    stalled_at = sent
    assert stalled_at < 1 << 20

    async with asyncio.timeout(DEADLINE_S):
        got = len(await reader.readexactly(64 * 65536))
        await flooding
    assert got == sent == 64 * 65536
    writer.close()
    other.close()

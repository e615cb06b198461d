"""A guest and its data drive, in a real microVM: a fork's drive of another size, growing in use, stilling for a while."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from primordia.drivers.guest_channel import ChannelGuest, connect
from primordia.kit.errors import PermanentError
from primordia.ports.guest import Mount, Program
from primordia.ports.vmm import Drive, Machine, MachineSpec
from primordia.testing import vmm
from primordia.testing.guest import basic_config, deadline, make_disk, make_root
from primordia.testing.vmm import tools
from primordia.wire.nodeconfig import Tools

__all__ = ["deadline", "tools"]

pytestmark = pytest.mark.usefixtures("deadline")
BOOT_TIMEOUT_S = 90
MIB = 1 << 20


async def open_guest(machine: Machine) -> ChannelGuest:
    return await connect(*await machine.open_channel(), timeout_s=BOOT_TIMEOUT_S)


async def shell(guest: ChannelGuest, script: str) -> str:
    session = await guest.exec(Program(("sh", "-c", script)), stdin=False)
    received = [item async for item in session.output()]
    assert (await session.wait()).code == 0, received
    return b"".join(data for _, data in received).decode()


async def data_kib(guest: ChannelGuest) -> int:
    return int((await shell(guest, "df -k /var/data | tail -1 | awk '{print $2}'")).strip())


async def starts_as(guest: ChannelGuest, user: str) -> None:
    """The context's program; whoever was the first owns the folder of data."""
    await guest.start_main(Program(("sleep", "3600"), user=user))
    assert await shell(guest, "ls -ldn /var/data | awk '{print $3, $4}'") == "1000 1001\n"


async def freeze_template(guests: vmm.Guests, folder: Path, drives: tuple[Drive, ...]) -> MachineSpec:
    """An image to fork from, with a place for a data drive and no data."""
    placeholder = folder / "place.img"
    placeholder.write_bytes(bytes(65536))
    spec = guests.spec("template", drives=(*drives, Drive("data", placeholder, durable=True)))
    template = await guests.vmm().start(spec)
    guest = await open_guest(template)
    await guest.prepare("root", "scratch")
    await guest.close()
    await template.freeze(folder / "image")
    await template.kill()
    return spec


async def waiting(guests: vmm.Guests, spec: MachineSpec, place: Path, image: Path) -> tuple[Machine, ChannelGuest]:
    """A fork that waits, paused, as that machine, and has no data yet."""
    *drives, data = spec.drives
    own = guests.spec("again", drives=(*drives, replace(data, path=place)))
    machine = await guests.vmm().fork(replace(own, kernel=spec.kernel), image)
    await machine.resume()
    guest = await open_guest(machine)
    await guest.identify(replace(basic_config(wall_ns=time.time_ns()), rehearsal=True))
    await machine.pause()
    return machine, guest


@pytest.fixture
async def guests(tools: Tools, tmp_path: Path) -> AsyncIterator[vmm.Guests]:
    async with vmm.guests(tools, tmp_path) as guests:
        yield guests


async def test_a_fork_has_its_own_data_which_grows_and_stands_still_for_a_moment(guests: vmm.Guests, tmp_path: Path) -> None:
    folder = tmp_path / "root"
    folder.mkdir()
    root = Drive("root", await make_disk(tmp_path / "root.img", 32, await make_root(folder)), read_only=True)
    scratch = Drive("scratch", await make_disk(tmp_path / "scratch.img", 64))
    spec = await freeze_template(guests, tmp_path, (root, scratch))

    data = Drive("data", await make_disk(tmp_path / "data.img", 64), durable=True)
    fork = replace(guests.spec("fork", drives=(root, scratch, data)), kernel=spec.kernel)
    machine = await guests.vmm().fork(fork, tmp_path / "image")
    await machine.resume()
    guest = await open_guest(machine)
    config = basic_config(wall_ns=time.time_ns(), mounts=(Mount("data", "/var/data"),))
    confirmed = await guest.identify(config)
    assert "mounts" in confirmed
    small = await data_kib(guest)
    assert 40 * 1024 < small < 64 * 1024
    await starts_as(guest, "1000:1001")
    await shell(guest, "echo kept > /var/data/file; sync")

    os.truncate(data.path, 192 * MIB)
    await machine.resize_drive("data", 192 * MIB)
    await guest.grow_data()
    assert await data_kib(guest) > 150 * 1024
    await machine.resize_drive("data", 192 * MIB)
    await guest.grow_data()

    await guest.freeze_data(30)
    writer = asyncio.create_task(shell(guest, "echo late > /var/data/late; sync"))
    await asyncio.sleep(1)
    assert not writer.done()
    await guest.thaw_data()
    await guest.thaw_data()
    await writer
    await guest.freeze_data(1)
    await shell(guest, "echo alone > /var/data/alone")  # by itself, after its deadline
    await guest.shutdown(5)
    assert (await machine.wait()).cause == "shutdown"
    await machine.kill()
    again, guest = await waiting(guests, fork, tmp_path / "place.img", tmp_path / "image")
    with pytest.raises(PermanentError, match=r"none\.img"):
        await again.replace_drive(replace(data, path=tmp_path / "none.img"))
    await again.replace_drive(data)
    await again.resume()
    await guest.identify(config)
    await starts_as(guest, "2000:2000")  # and is not given what is not new
    assert await shell(guest, "cd /var/data; cat alone file late") == "alone\nkept\nlate\n"
    assert await data_kib(guest) > 150 * 1024
    os.truncate(data.path, 256 * MIB)
    await again.resize_drive("data", 256 * MIB)
    await guest.grow_data()
    assert await data_kib(guest) > 220 * 1024
    await again.kill()

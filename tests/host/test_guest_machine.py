"""The real agent in real microVMs: what only a machine of its own shows. Most is tried in test_guest_agent.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primordia.drivers.guest_channel import ChannelGuest, connect
from primordia.ports.guest import ByteStream, ExitStatus, GuestError, Mount, Program, SecretFile
from primordia.ports.vmm import Drive, Machine
from primordia.testing import vmm
from primordia.testing.guest import basic_config, deadline, make_disk, make_root
from primordia.testing.vmm import tools
from primordia.wire.guest_frames import Frame, FrameType, GuestState, encode
from primordia.wire.nodeconfig import Tools

__all__ = ["deadline", "tools"]

pytestmark = pytest.mark.usefixtures("deadline")
BOOT_TIMEOUT_S = 90


async def open_guest(machine: Machine) -> ChannelGuest:
    return await connect(*await machine.open_channel(), timeout_s=BOOT_TIMEOUT_S)


@pytest.fixture
async def drives(tmp_path: Path) -> tuple[Drive, ...]:
    folder = tmp_path / "root"
    folder.mkdir()
    root = await make_disk(tmp_path / "root.img", 32, await make_root(folder))
    scratch = await make_disk(tmp_path / "scratch.img", 64)
    data = await make_disk(tmp_path / "data.img", 64)
    return Drive("root", root, read_only=True), Drive("scratch", scratch), Drive("data", data, durable=True)


@pytest.fixture
async def guests(tools: Tools, tmp_path: Path) -> AsyncIterator[vmm.Guests]:
    async with vmm.guests(tools, tmp_path) as guests:
        yield guests


async def shell(guest: ChannelGuest, script: str, **fields: str) -> str:
    session = await guest.exec(Program(("sh", "-c", script), **fields), stdin=False)  # type: ignore[arg-type]
    received = [item async for item in session.output()]
    assert (await session.wait()).code == 0, received
    return b"".join(data for _, data in received).decode()


async def serve_self(stream: ByteStream) -> None:
    while b"\r\n\r\n" not in await stream.read():
        pass
    await stream.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"name": "shop"}')


async def test_a_guest_from_boot_to_power_off(guests: vmm.Guests, drives: tuple[Drive, ...]) -> None:
    machine = await guests.vmm().start(guests.spec(drives=drives))
    guest = await open_guest(machine)
    with pytest.raises(GuestError, match="drive missing") as caught:
        await guest.configure(basic_config(mounts=(Mount("data", "/data"), Mount("missing", "/more"))))
    assert caught.value.reason == "ENODEV"
    await guest.configure(
        basic_config(
            wall_ns=time.time_ns(),
            mounts=(Mount("data", "/var/lib/shop"),),
            secrets=(SecretFile("/run/secrets/key", b"secret", 0o440), SecretFile("/etc/tls/key", b"other")),
        )
    )
    guest.on_stream("api", serve_self)
    assert abs(int(await shell(guest, "date +%s")) - time.time()) < 3600
    mounts = await shell(guest, "cat /proc/mounts")
    assert mounts.startswith("overlay / overlay rw")
    assert "/var/lib/shop ext4 rw" in mounts
    assert await shell(guest, "hostname; cat /etc/machine-id") == "shop-redis\n0123456789abcdef0123456789abcdef\n"
    assert await shell(guest, "cat /run/secrets/key /etc/tls/key; stat -c %a /run/secrets/key") == "secretother440\n"
    assert await shell(guest, "kbl self", user="worker") == "name: shop\n"
    assert "warmed interpreter" in await shell(guest, "head -1 /run/primordia/interpreter.py", user="worker")
    assert await shell(guest, "ls /modules /newroot /init 2>/dev/null || true") == ""
    assert await shell(guest, "ulimit -n; echo new > /bin/new; cat /bin/new; tty || true") == "65536\nnew\nnot a tty\n"
    await shell(guest, "echo kept > /var/lib/shop/file")
    await guest.sync()
    await guest.start_main(Program(("sleep", "3600")))
    waiter = asyncio.create_task(guest.wait_main())
    await guest.shutdown(10)
    assert await waiter == ExitStatus(143, 15)
    assert (await machine.wait()).cause == "shutdown"
    await machine.kill()
    # the data is on its drive, and the root is as it was
    again = await guests.vmm().start(guests.spec("again", drives=drives))
    guest = await open_guest(again)
    await guest.configure(basic_config(mounts=(Mount("data", "/var/lib/shop", read_only=True),)))
    assert (
        await shell(guest, "cat /var/lib/shop/file; ls /bin/new 2>/dev/null; touch /var/lib/shop/x 2>/dev/null || echo ro")
        == "kept\nro\n"
    )
    await again.kill()


async def test_hosts_come_and_go_in_mid_frame(guests: vmm.Guests, drives: tuple[Drive, ...]) -> None:
    machine = await guests.vmm().start(guests.spec(drives=drives))
    guest = await open_guest(machine)
    await guest.configure(basic_config())
    script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done"
    await guest.start_main(Program(("sh", "-c", script)))
    boot_id, seen, offset = guest.agent_boot_id, b"", 0
    half = encode(Frame(FrameType.DATA, 1, os.urandom(32_768)))
    for cut in (5, 12, 20_000, len(half) - 1):
        async with contextlib.aclosing(guest.logs(offset)) as chunks:  # type: ignore[type-var]
            chunk = await anext(chunks)
        assert chunk.lost == 0
        seen += chunk.data
        offset = chunk.offset + len(chunk.data)
        sleeper = await guest.exec(Program(("sleep", "4242")), stdin=True)
        guest._channel._writer.write(half[:cut])
        await guest._channel._writer.drain()
        await guest.close()
        guest = await open_guest(machine)
        assert guest.agent_boot_id == boot_id
        assert guest.state == GuestState.PREPARED | GuestState.CONFIGURED | GuestState.MAIN_RUNNING
        await shell(guest, "while ps | grep -q '[s]leep 4242'; do sleep 0.1; done")
        assert sleeper is not None
    lines = seen.decode().splitlines()
    assert lines[:-1] == [f"line {number}" for number in range(len(lines) - 1)]
    await guest.close()
    await machine.kill()


async def test_a_host_that_follows_at_once_is_not_taken_for_the_one_that_went(
    guests: vmm.Guests, drives: tuple[Drive, ...]
) -> None:
    """The port's news that a host has gone can come behind the next one's greeting."""
    machine = await guests.vmm().start(guests.spec(drives=drives))
    guest = await open_guest(machine)
    await guest.configure(basic_config())
    half = encode(Frame(FrameType.DATA, 1, os.urandom(32_768)))
    for number in range(100):
        await guest.exec(Program(("sleep", "4242")), stdin=True)
        guest._channel._writer.write(half[: 5 + number * 300])
        await guest._channel._writer.drain()
        await guest.close()
        guest = await open_guest(machine)
        assert await shell(guest, f"echo {number}") == f"{number}\n"
    await guest.close()
    await machine.kill()


async def test_floods_leave_room_for_a_small_exec(guests: vmm.Guests, drives: tuple[Drive, ...]) -> None:
    machine = await guests.vmm().start(guests.spec(drives=drives))
    guest = await open_guest(machine)
    await guest.configure(basic_config())
    carried, flooding = 0, asyncio.Event()

    async def flood() -> None:
        nonlocal carried
        session = await guest.exec(Program(("cat", "/dev/zero")), stdin=False)
        try:
            async for _, data in session.output():
                carried += len(data)
                if carried > 8_000_000:
                    flooding.set()
        finally:
            await session.close()

    floods = [asyncio.create_task(flood()) for _ in range(3)]
    await flooding.wait()
    before = carried
    for number in range(20):
        assert await shell(guest, f"echo {number}") == f"{number}\n"
    assert carried > before
    # producing a flood is work for idle times only
    assert await shell(guest, "ps -o nice,args | grep -c '^ *19 *[c]at /dev/zero'") == "3\n"
    for task in floods:
        task.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    await guest.close()
    await machine.kill()

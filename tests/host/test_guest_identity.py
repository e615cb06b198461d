"""Real microVMs that become others: frozen user processes, a fork with an identity of its own, and what it kept."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from primordia.drivers.guest_channel import ChannelGuest, connect
from primordia.drivers.net_linux import taps
from primordia.ports.guest import CONFIRMED, ExecSession, GuestError, GuestIdentity, GuestNetwork, Program, SecretFile
from primordia.ports.vmm import Drive, Machine, MachineSpec, Nic
from primordia.testing import vmm
from primordia.testing.guest import basic_identity, deadline, make_disk, make_root
from primordia.testing.network import Space, eventually
from primordia.testing.vmm import tools
from primordia.wire.guest_frames import GuestState
from primordia.wire.nodeconfig import Tools

__all__ = ["deadline", "tools"]

pytestmark = pytest.mark.usefixtures("deadline")
BOOT_TIMEOUT_S = 90
STANDS_S = 0.7
SOMEWHERE = "10.9.9.9"
PARENT_MAC = "02:50:0a:01:01:01"
WAY_OUT = GuestNetwork("", "", "169.254.1.1", "02:00:00:00:00:01")

# A server (what it says of connections that were dropped is no line of the log), connections to it over the guest's own
# address and over lo, and a line for each tick with the boot id it saw.
MAIN = (
    "nc -ll -p 7000 -e cat 2>/dev/null & sleep 0.3; (sleep 9999 | nc 10.1.1.1 7000) & (sleep 9999 | nc 127.0.0.1 7000) & "
    "while :; do read id < /proc/sys/kernel/random/boot_id; echo $id; sleep 0.02; done"
)


@dataclass
class Lab:
    """One parent to be, and the wires of all machines in a namespace of the test's own."""

    guests: vmm.Guests
    space: Space
    folder: Path
    spec: MachineSpec
    packets: socket.socket

    async def nic(self, name: str) -> Nic:
        """A card whose packets the test sees and nobody answers."""
        descriptor = self.space.call(lambda: taps.create(name))
        await self.space.ip(f"link set {name} up")
        return Nic(descriptor, PARENT_MAC)

    async def child(self, name: str) -> Machine:
        """A paused fork of what was frozen into the folder `image`."""
        shutil.copy(self.folder / "scratch-frozen.img", self.folder / f"scratch-{name}.img")
        spec = replace(
            self.spec,
            uid=f"{self.spec.uid}-{name}",
            run_dir=self.spec.run_dir.with_name(name),
            cgroup=name,
            drives=(self.spec.drives[0], Drive("scratch", self.folder / f"scratch-{name}.img")),
            nic=await self.nic(name),
        )
        try:
            return await self.guests.vmm().fork(spec, self.folder / "image")
        finally:
            if spec.nic is not None:
                os.close(spec.nic.tap_fd)

    def first_numbers(self) -> dict[str, set[int]]:
        """Initial sequence numbers of the connections to SOMEWHERE seen on the wires, by source address."""
        found: dict[str, set[int]] = {}
        for packet in _read_all(self.packets):
            ip = packet[14:]
            if packet[12:14] == b"\x08\x00" and ip[9] == socket.IPPROTO_TCP and ip[16:20] == socket.inet_aton(SOMEWHERE):
                tcp = ip[(ip[0] & 15) * 4 :]
                found.setdefault(socket.inet_ntoa(ip[12:16]), set()).add(int.from_bytes(tcp[4:8], "big"))
        return found


def _read_all(packets: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield packets.recv(2048)
        except BlockingIOError:
            return


@pytest.fixture
async def lab(tools: Tools, tmp_path: Path) -> AsyncIterator[Lab]:
    (tmp_path / "root").mkdir()
    root = await make_disk(tmp_path / "root.img", 32, await make_root(tmp_path / "root"))
    scratch = await make_disk(tmp_path / "scratch.img", 32)
    space = await Space.create()
    try:
        packets = space.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3)))
        with packets:
            async with vmm.guests(tools, tmp_path) as guests:
                spec = guests.spec(drives=(Drive("root", root, read_only=True), Drive("scratch", scratch)))
                yield Lab(guests, space, tmp_path, spec, packets)
    finally:
        await space.remove()


def identity(number: int, **changes: object) -> GuestIdentity:
    """Somebody with an address of their own."""
    network = GuestNetwork(f"10.1.1.{number}", f"02:50:0a:01:01:{number:02x}", "169.254.1.1", "02:00:00:00:00:01")
    return basic_identity(
        hostname=f"guest-{number}",
        machine_id=f"{number:032x}",
        wall_ns=time.time_ns(),
        network=network,
        hosts={f"peer-{number}": f"10.7.0.{number}"},
        secrets=(SecretFile(f"/run/secrets/key-{number}", b"secret"),),
        **changes,
    )


async def open_guest(machine: Machine) -> ChannelGuest:
    return await connect(*await machine.open_channel(), timeout_s=BOOT_TIMEOUT_S)


async def shell(guest: ChannelGuest, script: str) -> str:
    session = await guest.exec(Program(("sh", "-c", script)), stdin=False)
    received = [item async for item in session.output()]
    assert (await session.wait()).code == 0, received
    return b"".join(data for _, data in received).decode()


async def check_identity(guest: ChannelGuest, number: int, *, others: tuple[int, ...]) -> None:
    """All that was confirmed, asked of programs."""
    words = await shell(guest, "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id")
    assert words.split()[:3] == [f"guest-{number}", f"guest-{number}", f"{number:032x}"]
    assert words.split()[3].replace("-", "") == guest.agent_boot_id
    addresses = await shell(guest, "ifconfig eth0; route -n; cat /proc/net/arp")
    assert re.findall(r"^0\.0\.0\.0 +169\.254\.1\.1 .*eth0$", addresses, re.MULTILINE)
    assert re.findall(r"^169\.254\.1\.1 +0x1 +0x6 +02:00:00:00:00:01 .*eth0$", addresses, re.MULTILINE)
    assert f"02:50:0A:01:01:{number:02X}" in addresses.upper()
    assert re.findall(r"10\.1\.1\.\d+", addresses)[0] == f"10.1.1.{number}"
    names = await shell(guest, "cat /etc/hosts; ls /run/secrets; cat /proc/mounts")
    assert f"10.7.0.{number}\tpeer-{number}" in names
    assert f"/run/secrets/key-{number}" in names
    for other in others:
        assert f"10.1.1.{other}" not in addresses + names
        assert not re.search(rf"(peer|key)-{other}\b", names)
    begin = time.time()
    words = await shell(guest, "adjtimex")
    seconds, micros = (int(re.findall(rf"time.{name}: +(\d+)", words)[0]) for name in ("tv_sec", "tv_usec"))
    said = seconds + micros / 1e6
    late_ms = (said - (begin + time.time()) / 2) * 1000
    print(f"guest {number}: its clock is {late_ms:.1f} ms off, half of {(time.time() - begin) * 1000:.1f} ms unsure")
    assert abs(late_ms) < 5000


async def connections(guest: ChannelGuest) -> tuple[int, int, int]:
    """Ends of connections at addresses 10.1.1.x, at 127.0.0.1, and listening sockets at port 7000; IPv4 in IPv6 counts too."""
    table = await shell(guest, "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null")
    sockets = re.findall(r"^ *\d+: [0-9A-F]*([0-9A-F]{8}):([0-9A-F]{4}) \S+ (\S\S)", table, re.MULTILINE)
    world = [address for address, _, state in sockets if state == "01" and address.endswith("01010A")]
    own = [address for address, _, state in sockets if state == "01" and address == "0100007F"]
    return len(world), len(own), sum(port == "1B58" and state == "0A" for _, port, state in sockets)


async def log_of(guest: ChannelGuest) -> list[str]:
    """Whole lines that the main program has written until now."""
    data = b""
    chunks = guest.logs(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            async for chunk in chunks:
                data += chunk.data
    return data.decode().splitlines()


async def test_a_fork_is_nobody_s_twin(lab: Lab) -> None:
    nic = await lab.nic("parent")
    try:
        machine = await lab.guests.vmm().start(replace(lab.spec, nic=nic))
    finally:
        os.close(nic.tap_fd)
    parent = await become_parent(machine)
    session = await parent.exec(Program(("cat",)), stdin=True)
    before = await freeze(lab, machine, parent, session)
    machines = [await lab.child(f"child{number}") for number in (2, 3)]
    children = [await become_child(machines[number - 2], number, parent, before) for number in (2, 3)]
    await draw_what_no_other_draws(lab, (parent, *children))
    await session.end_input()
    assert (await session.wait()).code == 0
    # and once more, on a guest that runs
    assert await children[0].identify(identity(4)) == CONFIRMED
    await check_identity(children[0], 4, others=(1, 2, 3))
    for guest in (parent, *children):
        await guest.close()
    for each in (machine, *machines):
        await each.kill()


async def become_parent(machine: Machine) -> ChannelGuest:
    """Boot, identity, and a main program with connections."""
    parent = await open_guest(machine)
    await parent.prepare("root", "scratch")
    assert await parent.identify(identity(1)) == CONFIRMED
    await check_identity(parent, 1, others=(2, 3))
    await parent.start_main(Program(("sh", "-c", MAIN)))

    async def connected() -> bool:
        return await connections(parent) == (2, 2, 1)

    await eventually(connected)
    return parent


async def freeze(lab: Lab, machine: Machine, parent: ChannelGuest, session: ExecSession) -> list[str]:
    """Take the image `image`: user processes stand, and then go on as if nothing had been. Returns the log of that moment."""
    await parent.freeze()
    before = await log_of(parent)
    await asyncio.sleep(STANDS_S)
    assert await log_of(parent) == before
    with pytest.raises(GuestError, match="frozen"):
        await parent.exec(Program(("true",)), stdin=False)

    async def clone_scratch() -> None:
        shutil.copy(lab.folder / "scratch.img", lab.folder / "scratch-frozen.img")

    taken = await machine.freeze(lab.folder / "image", during=clone_scratch)
    print(f"frozen in {taken.pause_s * 1000:.0f} ms")
    await session.write(b"still here\n")
    await parent.thaw()
    assert await anext(session.output()) == ("stdout", b"still here\n")

    async def goes_on() -> bool:
        return await log_of(parent) != before

    await eventually(goes_on)
    assert await connections(parent) == (2, 2, 1)
    return before


async def become_child(machine: Machine, number: int, parent: ChannelGuest, before: list[str]) -> ChannelGuest:
    """A fork that stands until it is somebody else, and is nothing of its parent then."""
    await machine.resume()
    child = await open_guest(machine)
    assert child.state == GuestState.PREPARED | GuestState.CONFIGURED | GuestState.MAIN_RUNNING | GuestState.FROZEN
    assert child.agent_boot_id == parent.agent_boot_id
    await asyncio.sleep(STANDS_S)
    assert await log_of(child) == before, "the user's code ran before the identity"
    # One gets the network that it rehearsed with, as forks in a pool do; the other has but the way out, as those of a template.
    for passing in (identity(5), identity(2) if number == 2 else replace(identity(3), network=WAY_OUT)):
        assert await child.identify(replace(passing, rehearsal=True)) == CONFIRMED[:-2]
    assert await log_of(child) == before, "the user's code ran in a rehearsal"
    hook = Program(("sh", "-c", "cat /proc/sys/kernel/random/boot_id > /tmp/hook"))
    begin = time.perf_counter()
    assert await child.identify(identity(number, hooks=(hook,))) == CONFIRMED
    print(f"guest {number} confirmed after {(time.perf_counter() - begin) * 1000:.1f} ms")
    assert child.agent_boot_id != parent.agent_boot_id
    await check_identity(child, number, others=tuple({1, 2, 3, 5} - {number}))
    assert (await shell(child, "cat /tmp/hook")).strip().replace("-", "") == child.agent_boot_id

    async def goes_on() -> bool:
        return len(await log_of(child)) > len(before) + 1

    await eventually(goes_on)
    # the one that was read before the freeze may have been written after it
    new = (await log_of(child))[len(before) + 1 :]
    assert {line.replace("-", "") for line in new} == {child.agent_boot_id}
    assert await connections(child) == (0, 2, 1)
    return child


async def draw_what_no_other_draws(lab: Lab, guests: tuple[ChannelGuest, ...]) -> None:
    """Random bytes, and the first numbers of TCP connections to the same place."""
    drawn = [await shell(guest, "head -c 16 /dev/urandom | od -An -tx1") for guest in guests]
    assert len(set(drawn)) == len(guests)
    for guest in guests:
        await shell(guest, f"nc -w 1 {SOMEWHERE} 80 </dev/null >/dev/null 2>&1 & sleep 0.2")
    first = lab.first_numbers()
    assert set(first) == {"10.1.1.1", "10.1.1.2", "10.1.1.3"}
    assert len(set.union(*first.values())) == 3, first

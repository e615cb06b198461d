"""The real agent, under the sanitizers, inside namespaces of this host: what the contract does not ask of a fake."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from primordia.drivers.guest_channel import ChannelGuest
from primordia.drivers.guest_channel.calls import identity_params
from primordia.drivers.guest_channel.channel import greet
from primordia.host.agent_build import build_agent, find_sources
from primordia.kit.command import run as run_command
from primordia.ports.guest import (
    CONFIRMED,
    ByteStream,
    ExitStatus,
    GuestError,
    GuestGoneError,
    GuestNetwork,
    Mount,
    Program,
    SecretFile,
)
from primordia.testing.guest import HostedGuests, basic_config, basic_identity, deadline, guests, sanitized_agent
from primordia.testing.network import eventually
from primordia.wire.guest_frames import HOST_STREAMS_MAX, Decoder, Frame, FrameType, GuestState, encode, greeting

__all__ = ["deadline", "guests", "sanitized_agent"]

pytestmark = pytest.mark.usefixtures("deadline")


@pytest.fixture
async def guest(guests: HostedGuests) -> ChannelGuest:
    guest = await guests.connect()
    await guest.configure(basic_config())
    return guest


async def out(guest: ChannelGuest, *argv: str, stdin: bytes = b"", **fields: Any) -> bytes:
    """Standard output of a program that succeeds."""
    session = await guest.exec(Program(argv, **fields), stdin=bool(stdin))
    if stdin:
        await session.write(stdin)
        await session.end_input()
    received = [item async for item in session.output()]
    assert (await session.wait()).code == 0, received
    return b"".join(data for channel, data in received if channel == "stdout")


async def shell(guest: ChannelGuest, script: str, **fields: Any) -> str:
    return (await out(guest, "sh", "-c", script, **fields)).decode()


async def refused(awaitable: object) -> GuestError:
    with pytest.raises(GuestError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value


def archive(*entries: tuple[str, dict[str, object], bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, fields, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in fields.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


async def one_chunk(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_the_c_tests_and_the_fuzz_driver_pass(tmp_path: Path) -> None:
    done = await run_command(["make", "-C", str(find_sources()), f"BUILD={tmp_path}", "check", "fuzz"], timeout_s=300)
    assert b"0 failures" in done.stderr


# ---- programs ----


async def test_a_program_gets_its_environment_folder_and_user(guest: ChannelGuest) -> None:
    fields = {"env": (("A", "b=c"), ("HOME", "/tmp")), "working_dir": "/tmp", "user": "worker"}
    words = await shell(guest, "id -u; id -G; pwd; echo $A $HOME", **fields)
    assert words.split() == ["1000", "1000", "2000", "/tmp", "b=c", "/tmp"]
    assert int(await shell(guest, "ulimit -n")) > 1024
    assert (await shell(guest, "id -u; id -g; echo $HOME", user="4321:worker")).split() == ["4321", "1000", "/"]
    assert (await shell(guest, "echo $HOME; echo $PATH")).split() == [
        "/root",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    assert await shell(guest, "echo x > /dev/stderr; echo y > /dev/stdout", user="worker") == "y\n"


@pytest.mark.parametrize(
    ("fields", "reason", "word"),
    [
        ({"argv": ("true",), "user": "nobody-here"}, "ENOENT", "nobody-here"),
        ({"argv": ("true",), "working_dir": "/missing"}, "ENOENT", "/missing"),
        ({"argv": ("/etc/passwd",)}, "EACCES", "/etc/passwd"),
        ({"argv": ("/bin",)}, "EACCES", "/bin"),
        ({"argv": ()}, "EINVAL", "no program"),
        ({"argv": ("true",), "env": (("A", "\0"),)}, "E2BIG", "NUL"),
        ({"argv": ("true", "x" * 5_000_000)}, "E2BIG", "longer"),
    ],
)
async def test_what_cannot_start_is_explained(guest: ChannelGuest, fields: dict[str, object], reason: str, word: str) -> None:
    for call in (guest.exec(Program(**fields), stdin=False), guest.start_main(Program(**fields))):  # type: ignore[arg-type]
        error = await refused(call)
        assert error.reason == reason
        assert word in str(error)


async def test_long_arguments_pass(guest: ChannelGuest) -> None:
    words = [os.urandom(40_000).hex() for _ in range(8)]
    assert await out(guest, "echo", *words) == " ".join(words).encode() + b"\n"


async def test_a_terminal_its_size_and_its_signals(guest: ChannelGuest) -> None:
    session = await guest.exec(Program(("sh",), tty=True, rows=30, columns=100), stdin=True)
    seen = b""

    async def see(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            seen += (await anext(output))[1]
        seen = seen[seen.index(wanted) + len(wanted) :]

    async def enter(line: bytes) -> None:
        await see(b"# ")
        await session.write(line)

    output = session.output()
    await enter(b"stty size\n")
    await see(b"\r\n30 100\r\n")
    await session.resize(50, 132)
    await enter(b"stty size; echo $TERM; tty\n")
    await see(b"\r\n50 132\r\nxterm\r\n/dev/pts/0")
    await enter(b"sh -c 'echo asleep; sleep 3600'\n")
    await see(b"\r\nasleep\r\n")
    await session.write(b"\x03")
    await enter(b"exit 5\n")
    async for _ in output:
        pass
    assert await session.wait() == ExitStatus(5)


async def test_the_end_of_input_reaches_a_terminal(guest: ChannelGuest) -> None:
    session = await guest.exec(Program(("cat",), tty=True), stdin=True)
    await session.write(b"line\n")
    await session.end_input()
    assert b"".join([data async for _, data in session.output()]) == b"line\r\nline\r\n"
    assert await session.wait() == ExitStatus(0)


async def test_a_background_child_does_not_keep_an_exec(guest: ChannelGuest) -> None:
    assert await shell(guest, "sleep 3600 & echo started") == "started\n"

    async def goes_on() -> bool:
        return "sleep 3600" in await shell(guest, "ps")  # once it has become that program

    await eventually(goes_on)


async def test_closing_an_exec_hangs_it_up_and_then_kills_it(guest: ChannelGuest) -> None:
    session = await guest.exec(Program(("sh", "-c", "trap '' HUP; echo on; sleep 3600; sleep 3600")), stdin=False)
    assert (await anext(session.output()))[1] == b"on\n"
    await session.close()
    await shell(guest, "while ps | grep -q '[s]leep 3600'; do sleep 0.1; done")


async def test_orphans_are_reaped(guest: ChannelGuest) -> None:
    await shell(guest, "for i in 1 2 3 4 5 6 7 8; do (sh -c 'sleep 0.05' &) ; done; sleep 0.3")
    assert " Z " not in await shell(guest, "ps -o pid,stat,args")


async def test_a_reader_that_stops_does_not_hold_the_others(guest: ChannelGuest) -> None:
    stuck = await guest.exec(Program(("cat", "/dev/zero")), stdin=False)
    blocked = await guest.exec(Program(("sleep", "3600")), stdin=True)
    writing = asyncio.create_task(blocked.write(bytes(2_000_000)))
    for number in range(10):
        assert await shell(guest, f"echo {number}") == f"{number}\n"
    assert not writing.done()
    await stuck.close()
    await blocked.close()
    await writing


async def test_floods_side_by_side_with_a_small_exec(guest: ChannelGuest) -> None:
    async def flood() -> None:
        session = await guest.exec(Program(("cat", "/dev/zero")), stdin=False)
        try:
            async for _ in session.output():
                pass
        finally:
            await session.close()

    floods = [asyncio.create_task(flood()) for _ in range(3)]
    for number in range(20):
        assert await shell(guest, f"echo {number}") == f"{number}\n"
    data = os.urandom(2_000_000)
    assert await out(guest, "cat", stdin=data[:100_000]) == data[:100_000]
    for task in floods:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*floods, return_exceptions=True)


# ---- the main program ----


async def test_the_log_survives_reconnects_and_counts_what_is_lost(guests: HostedGuests) -> None:
    guest = await guests.connect()
    await guest.configure(basic_config())
    script = "echo first; i=0; while [ $i -lt 60000 ]; do echo 123456789; i=$((i+1)); done; echo last; sleep 3600"
    await guest.start_main(Program(("sh", "-c", script)))
    first = await anext(guest.logs(0))
    assert (first.offset, first.data[:6], first.lost) == (0, b"first\n", 0)
    await guest.close()
    again = await guests.connect()
    assert again.agent_boot_id == guest.agent_boot_id
    assert again.state == GuestState.PREPARED | GuestState.CONFIGURED | GuestState.MAIN_RUNNING
    total, seen, at = 6 + 60_000 * 10 + 5, b"", 6
    async for chunk in again.logs(6):
        assert chunk.offset == at + chunk.lost
        at = chunk.offset + len(chunk.data)
        seen += chunk.data
        if at == total:
            break
    assert seen.endswith(b"\nlast\n")
    # the ring holds the last 256 KiB for a reader that comes later
    late = await anext(again.logs(6))
    assert late.lost == late.offset - 6 >= total - 6 - 262_144


async def test_the_log_ends_with_the_program(guest: ChannelGuest) -> None:
    follower = asyncio.create_task(collect(guest))
    await guest.start_main(Program(("sh", "-c", "echo a; echo b >&2; exit 9"), tty=True))
    assert await guest.wait_main() == ExitStatus(9)
    assert await follower == b"a\r\nb\r\n"
    error = await refused(guest.start_main(Program(("true",))))
    assert error.reason == "EALREADY"


async def collect(guest: ChannelGuest) -> bytes:
    return b"".join([chunk.data async for chunk in guest.logs(0)])


async def test_a_crashing_main_program_leaves_the_agent(guest: ChannelGuest) -> None:
    await guest.start_main(Program(("sh", "-c", "kill -SEGV $$")))
    assert await guest.wait_main() == ExitStatus(139, signal.SIGSEGV)
    assert await shell(guest, "echo alive") == "alive\n"


# ---- the channel ----


@pytest.mark.parametrize("cut", [1, 11, 12, 500, 32_779])
async def test_a_host_that_dies_in_mid_frame(guests: HostedGuests, cut: int) -> None:
    first = await guests.connect()
    await first.configure(basic_config())
    session = await first.exec(Program(("cat",)), stdin=True)
    half = encode(Frame(FrameType.DATA, 1, os.urandom(32_768)))[:cut]
    first._channel._writer.write(half)
    await asyncio.sleep(0.05)
    again = await guests.connect()
    assert await shell(again, "echo well") == "well\n"
    with pytest.raises(GuestGoneError):
        await session.wait()
    assert "cat" not in await shell(again, "sleep 0.1; ps | grep -v grep | grep ' cat$' || true")


async def test_bytes_that_are_no_protocol_do_not_hurt_the_agent(guests: HostedGuests) -> None:
    for junk in (os.urandom(200_000), greeting(bytes(16)) + os.urandom(100_000), b"\x08\x00\xff\xff" * 5000):
        reader, writer = await guests.open()
        writer.write(junk)
        await writer.drain()
        reader.feed_eof()
        guest = await guests.connect()
        assert await guest.ping() >= 0
        writer.transport.abort()


async def test_too_many_calls_are_refused_and_the_others_go_on(guest: ChannelGuest) -> None:
    calls = [asyncio.create_task(guest.wait_main()) for _ in range(HOST_STREAMS_MAX)]
    await asyncio.sleep(0)
    assert (await refused(guest.main_state())).reason == "EMFILE"
    assert await guest.ping() >= 0
    for call in calls:
        assert not call.done()
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (await guest.main_state()).phase == "none"


async def test_the_agent_itself_refuses_too_many_streams(guests: HostedGuests) -> None:
    reader, writer = await guests.open()
    _, rest = await greet(reader, writer, 60)
    opening = [Frame(FrameType.OPEN, number, b"kind=wait_main\0") for number in range(1, 2 * HOST_STREAMS_MAX + 3, 2)]
    writer.write(b"".join(encode(frame) for frame in opening))
    decoder, answers = Decoder(), list[Frame]()
    answers += decoder.feed(rest)
    while len(answers) < len(opening):
        answers += decoder.feed(await reader.read(65536))
    writer.transport.abort()
    assert {frame.stream for frame in answers} == {frame.stream for frame in opening}
    assert [(frame.stream, frame.type) for frame in answers if frame.type is not FrameType.OPENED] == [
        (2 * HOST_STREAMS_MAX + 1, FrameType.REFUSED)
    ]


async def test_configuration_that_fails_names_the_step_and_may_be_repeated(guests: HostedGuests) -> None:
    guest = await guests.connect()
    for changes, word in (
        ({"entropy": b"few"}, "entropy"),
        ({"mounts": (Mount("nodrive", "/data"),)}, "drive nodrive"),
        ({"hostname": "x" * 100}, "hostname"),
        ({"secrets": (SecretFile("relative", b""),)}, "secret"),
    ):
        error = await refused(guest.configure(basic_config(**changes)))
        assert word in str(error)
    await guest.configure(
        basic_config(secrets=(SecretFile("/etc/passwd", b"root:x:0:0::/:\n", 0o444), SecretFile("/k/a", b"s")))
    )
    assert await shell(guest, "cat /etc/passwd; stat -c '%a %u' /etc/passwd /k/a") == "root:x:0:0::/:\n444 0\n400 0\n"
    assert "tmpfs" in await shell(guest, "grep ' /k/a ' /proc/mounts")


async def test_an_identity_that_makes_no_sense_is_refused_by_the_step(guest: ChannelGuest) -> None:
    for changes, word in (
        ([("wall_ns", "0")], "clock"),
        ([("entropy", "xy" * 32)], "entropy"),
        ([("machine_id", "")], "hostname"),
        ([("secret", "400:0:/run/odd")], "secret /run/odd"),
    ):
        params = dict(identity_params(basic_identity())) | dict(changes)
        if word == "hostname":
            del params["hostname"]
        assert word in str(await refused(guest._call("identify", list(params.items()))))
    for hook in ("zz", b"argv".hex(), b"cwd=/\0".hex()):
        await guest._call("identify", identity_params(basic_identity()))
        assert "hook" in str(await refused(guest._call("release", [("hook", hook)])))
    assert set(await guest.identify(basic_identity())) == set(CONFIRMED)


async def test_what_a_program_put_in_the_way_of_an_identity(guest: ChannelGuest) -> None:
    """Links and folders where our files go, a file that is open, a secret that was moved."""
    await guest.identify(basic_identity(secrets=(SecretFile("/run/a", b"one"), SecretFile("/data/b", b"two"))))
    await shell(
        guest, "cd /etc; rm -f hosts hostname; echo kept > /tmp/target; ln -s /tmp/target hosts; ln /tmp/target hostname"
    )
    await shell(guest, "mount --bind /run/a /tmp/copy 2>/dev/null || { touch /tmp/copy; mount --bind /run/a /tmp/copy; }")
    holder = await guest.exec(Program(("sh", "-c", "exec 3< /run/a; read go; cat <&3; echo end")), stdin=True)
    await shell(guest, "while ! ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q /run/a; do sleep 0.05; done")
    await guest.freeze()
    await guest.identify(basic_identity(hosts={"db": "10.1.2.3"}))
    assert await shell(guest, "cat /tmp/target; ls /run/a /data/b 2>/dev/null; cat /tmp/copy") == "kept\n"
    assert "10.1.2.3\tdb" in await shell(guest, "cat /etc/hosts")
    assert await shell(guest, "cat /etc/hostname") == "shop-redis\n"
    await holder.write(b"go\n")
    assert b"".join([data async for _, data in holder.output()]) == b"end\n"


async def test_the_card_is_given_over_and_taken_away(guests: HostedGuests) -> None:
    guest = await guests.connect()
    network = GuestNetwork("10.1.2.3", "02:50:0a:01:02:03", "169.254.1.1", "02:00:00:00:00:01")
    await guest.ping()
    with guests.network() as namespace:
        await run_command(["ip", "link", "add", "wire", "type", "veth", "peer", "name", "eth0"], netns=namespace)
        await run_command(["ip", "link", "set", "wire", "up"], netns=namespace)
        await guest.configure(basic_config(network=network))
        await guest.identify(basic_identity(network=network))
        next_one = replace(network, address="10.1.2.4", mac="02:50:0a:01:02:04", gateway="169.254.1.2")
        assert set(await guest.identify(basic_identity(network=next_one))) == set(CONFIRMED)
        shown = (await run_command(["ip", "address", "show", "eth0"], netns=namespace)).text()
        route = (await run_command(["ip", "route"], netns=namespace)).text()
        neighbours = (await run_command(["ip", "neighbour"], netns=namespace)).text()
        assert "10.1.2.3" not in shown + route
        assert "02:50:0a:01:02:04" in shown
        assert "via 169.254.1.2" in route
        assert "169.254.1.1 " not in neighbours
        # and one without any network
        assert set(await guest.identify(basic_identity())) == set(CONFIRMED)
        assert "inet " not in (await run_command(["ip", "address", "show", "eth0"], netns=namespace)).text()
        assert (await run_command(["ip", "route"], netns=namespace)).text() == ""


async def test_connections_to_sockets_in_the_guest(guest: ChannelGuest) -> None:
    guest.on_stream("api", serve_http)  # served to programs at a socket of the agent's: in and out again
    stream = await guest.connect_unix("/run/primordia.sock")
    await stream.write(b"GET /v1/self HTTP/1.1\r\n\r\n")
    answer = b""
    while part := await stream.read():
        answer += part
    assert answer.endswith(b'{"path": "/v1/self", "node": {"rack": "r1"}}')
    await stream.close()
    for path, reason in (("relative", "EINVAL"), ("/" + "x" * 200, "EINVAL"), ("/etc/passwd", "ECONNREFUSED")):
        assert (await refused(guest.connect_unix(path))).reason == reason


# ---- files ----


async def test_odd_names_links_modes_and_times_come_back(guest: ChannelGuest) -> None:
    long = "/".join(["d" * 200] * 6)
    sent = archive(
        ("plain", {"mode": 0o4751, "uid": 7, "gid": 3_000_000, "mtime": 1_000_000_000}, b"x" * 5000),
        ("space and \u00e9 \u2603\nnewline", {"mode": 0o600}, b"odd"),
        (long + "/deep", {}, b"deep"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/" + "t" * 300}, b""),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "plain"}, b""),
        ("closed", {"type": tarfile.DIRTYPE, "mode": 0o500, "mtime": 1_100_000_000}, b""),
        ("closed/inside", {"mtime": -3600}, b"1"),
        ("fifo", {"type": tarfile.FIFOTYPE, "mode": 0o622}, b""),
        ("empty", {}, b""),
    )
    await guest.write_tar("/data", one_chunk(sent))
    assert await shell(guest, "stat -c '%a %u %g %Y %h' /data/plain") == "4751 7 3000000 1000000000 2\n"
    assert await shell(guest, "stat -c '%a %Y' /data/closed") == "500 1100000000\n"
    back = b"".join([chunk async for chunk in guest.read_tar("/data")])
    with tarfile.open(fileobj=io.BytesIO(back)) as tar:
        found = {entry.name.removeprefix("data").removeprefix("/"): entry for entry in tar}
        assert tar.extractfile(found[long + "/deep"]).read() == b"deep"  # type: ignore[union-attr]
    plain, hard = (found["plain"], found["hard"]) if found["hard"].islnk() else (found["hard"], found["plain"])
    assert (plain.mode, plain.uid, plain.gid, plain.mtime, plain.size) == (0o4751, 7, 3_000_000, 1_000_000_000, 5000)
    assert hard.islnk()
    assert found["link"].linkname == "/" + "t" * 300
    assert found["space and \u00e9 \u2603\nnewline"].mode == 0o600
    assert found["closed"].isdir()
    assert found["closed/inside"].mtime == -3600
    assert found["fifo"].isfifo()
    assert len(found) == 9 + 6 + 1


async def test_archives_of_other_tars_are_read(guest: ChannelGuest) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        entry = tarfile.TarInfo("n" * 150 + "/" + "m" * 150)
        entry.size, entry.uid, entry.mtime = 3, 2**30, 2**33
        tar.addfile(entry, io.BytesIO(b"gnu"))
        link = tarfile.TarInfo("to-long")
        link.type, link.linkname = tarfile.SYMTYPE, "l" * 250
        tar.addfile(link)
    await guest.write_tar("/data", one_chunk(buffer.getvalue()))
    assert await shell(guest, f"cd /data; cat {entry.name}; stat -c ' %u %Y' {entry.name}") == f"gnu {2**30} {2**33}\n"
    assert await shell(guest, "readlink /data/to-long") == "l" * 250 + "\n"


@pytest.mark.parametrize(
    "entries",
    [
        [("../x", {}, b"")],
        [("/x", {}, b"")],
        [("a/../../x", {}, b"")],
        [("out", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}, b""), ("out/x", {}, b"")],
        [("out", {"type": tarfile.SYMTYPE, "linkname": "../tmp"}, b""), ("out/x", {}, b"")],
        [("out", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}, b""), ("out", {"type": tarfile.DIRTYPE}, b"")],
        [("x", {"type": tarfile.LNKTYPE, "linkname": "../etc/passwd"}, b"")],
        [("x", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b"")],
        [("self", {"type": tarfile.SYMTYPE, "linkname": "/proc/self/cwd"}, b""), ("self/x", {}, b"")],
    ],
)
async def test_archives_stay_in_their_folder(guest: ChannelGuest, entries: list[tuple[str, dict[str, object], bytes]]) -> None:
    error = await refused(guest.write_tar("/data", one_chunk(archive(*entries))))
    assert error.reason == "EPERM"
    assert await shell(guest, "ls /tmp /x 2>/dev/null || true") == "/tmp:\n"


async def test_links_inside_and_files_in_the_way(guest: ChannelGuest) -> None:
    await shell(guest, "cd /data; mkdir real; ln -s real inside; echo keep > target; ln -s target file; mkdir folder")
    await guest.write_tar("/data", one_chunk(archive(("inside/a", {}, b"1"), ("file", {}, b"2"))))
    assert (
        await shell(guest, "cat /data/real/a /data/file /data/target; test -L /data/file || echo replaced")
        == "12keep\nreplaced\n"
    )
    assert (await refused(guest.write_tar("/data", one_chunk(archive(("folder", {}, b"x")))))).reason == "EISDIR"
    device = archive(("sda", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0}, b""))
    assert (await refused(guest.write_tar("/data", one_chunk(device)))).reason == "EINVAL"
    torn = archive(("torn", {}, b"x" * 5000))[:3000]
    assert (await refused(guest.write_tar("/data", one_chunk(torn)))).reason == "EINVAL"


async def test_a_full_disk_is_said_and_the_copy_stops(guest: ChannelGuest) -> None:
    await shell(guest, "mount -t tmpfs -o size=1m none /data")
    big = archive(("big", {}, bytes(30_000_000)))
    error = await refused(guest.write_tar("/data", one_chunk(big)))
    assert error.reason == "ENOSPC"
    assert "big" in str(error)


async def test_reading_the_root_leaves_the_kernel_s_views_out(guest: ChannelGuest) -> None:
    names = []
    data = b"".join([chunk async for chunk in guest.read_tar("/")])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
    assert "./proc" in names
    assert not [name for name in names if name.startswith("./proc/")]
    assert "./etc/hostname" in names


# ---- connections ----


async def test_tcp_both_ways_with_half_closing(guest: ChannelGuest) -> None:
    await guest.start_main(Program(("nc", "-l", "-p", "7000", "-e", "cat")))
    stream = None
    while stream is None:
        try:
            stream = await guest.connect_tcp(7000)
        except GuestError:
            await asyncio.sleep(0.05)
    data = os.urandom(1_500_000)

    async def send() -> None:
        await stream.write(data)
        await stream.end()

    sending = asyncio.create_task(send())
    received = b""
    while part := await stream.read():
        received += part
    await sending
    assert received == data
    assert (await refused(guest.connect_tcp(80, "not-an-address"))).reason == "EINVAL"


async def serve_http(stream: ByteStream) -> None:
    """As the in-guest API would."""
    request = b""
    while b"\r\n\r\n" not in request and (part := await stream.read()):
        request += part
    body = b'{"path": "' + request.split()[1] + b'", "node": {"rack": "r1"}}'
    await stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    await stream.end()


async def test_the_in_guest_api_by_socket_and_by_address(guest: ChannelGuest, tmp_path: Path) -> None:
    guest.on_stream("api", serve_http)
    assert "r1" in await shell(guest, "wget -q -O - http://169.254.169.254/v1/self", user="worker")
    kbl = (await build_agent(tmp_path / "kbl")).read_bytes()
    await guest.write_tar("/data", one_chunk(archive(("kbl", {"mode": 0o755}, kbl))))
    assert await shell(guest, "/data/kbl self", user="worker") == "path: /v1/self\nnode.rack: r1\n"
    assert '"path": "/v1/self"' in await shell(guest, "/data/kbl self -o json", user="worker")
    six = await shell(guest, "for i in 1 2 3 4 5 6; do wget -q -O - http://169.254.169.254/$i & done; wait")
    assert sorted(re.findall(r'"path": "/(\d)"', six)) == list("123456")


async def test_an_unserved_api_closes_cleanly(guest: ChannelGuest) -> None:
    assert "ok" in await shell(guest, "wget -q -T 5 -O - http://169.254.169.254/ || echo ok")


async def serve_names(stream: ByteStream) -> None:
    """Answers each query with itself, as many times as the name's first letter says."""
    head = await stream.read(2)
    while len(head) == 2:
        size = int.from_bytes(head, "big")
        query = b""
        while len(query) < size:
            query += await stream.read(size - len(query))
        answer = query[:2] + b"\x81\x80" + query[4:6] + b"\x00\x01\x00\x00\x00\x00" + query[12:]
        answer += b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x01\x02\x03"
        if query[13:14] == b"b":
            answer += bytes(2000)
        await stream.write(len(answer).to_bytes(2, "big") + answer)
        head = await stream.read(2)


async def ask(guests: HostedGuests, query: bytes, kind: socket.SocketKind) -> bytes:
    """A program of the guest asks the name server at its own address."""
    client = guests.inside(lambda: socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK))
    loop = asyncio.get_running_loop()
    with client:
        await loop.sock_connect(client, ("169.254.169.254", 53))
        await loop.sock_sendall(client, query)
        answer = await loop.sock_recv(client, 65536)
        while kind is socket.SOCK_STREAM and len(answer) < 2 + int.from_bytes(answer[:2], "big"):
            answer += await loop.sock_recv(client, 65536)
        return answer


def query_for(name: bytes, edns: int = 0) -> bytes:
    head = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00" + bytes([edns > 0])
    question = bytes([len(name)]) + name + b"\x00\x00\x01\x00\x01"
    return head + question + (b"\x00\x00\x29" + edns.to_bytes(2, "big") + bytes(6) if edns else b"")


async def test_names_over_udp_and_tcp(guests: HostedGuests, guest: ChannelGuest) -> None:
    guest.on_stream("dns", serve_names)
    assert "10.1.2.3" in await shell(guest, "nslookup -type=a answer 169.254.169.254")
    assert (await ask(guests, query_for(b"small"), socket.SOCK_DGRAM)).endswith(b"\x0a\x01\x02\x03")
    for edns in (0, 600, 4096):  # the answer has more than 2,000 bytes
        cut = await ask(guests, query_for(b"big", edns), socket.SOCK_DGRAM)
        assert cut == b"\x12\x34\x83\x80\x00\x01" + bytes(6) + query_for(b"big")[12:]
    whole = await ask(guests, len(query_for(b"big")).to_bytes(2, "big") + query_for(b"big"), socket.SOCK_STREAM)
    assert len(whole) > 2000
    assert whole[4] == 0x81


async def test_names_fail_when_nobody_serves_them(guest: ChannelGuest) -> None:
    assert "SERVFAIL" in await shell(guest, "nslookup -type=a answer 169.254.169.254 2>&1 || true")


async def test_the_card_gets_address_gateway_and_route(guests: HostedGuests) -> None:
    guest = await guests.connect()
    network = GuestNetwork("10.1.2.3", "02:50:0a:01:02:03", "169.254.1.1", "02:00:00:00:00:01", 1400)
    await guest.ping()  # the agent is there, and so is its network
    error = await refused(guest.configure(basic_config(network=network)))
    assert (error.reason, "network card" in str(error)) == ("ENODEV", True)
    with guests.network() as namespace:
        await run_command(["ip", "link", "add", "wire", "type", "veth", "peer", "name", "eth0"], netns=namespace)
        await run_command(["ip", "link", "set", "wire", "up"], netns=namespace)
        error = await refused(guest.configure(basic_config(network=replace(network, gateway_mac="nonsense"))))
        assert "network settings" in str(error)
        await guest.configure(basic_config(network=network))
        card = (await run_command(["ip", "address"], netns=namespace)).text()
        route = (await run_command(["ip", "route"], netns=namespace)).text()
        neighbour = (await run_command(["ip", "neighbour"], netns=namespace)).text()
    assert "inet 10.1.2.3/32 scope global" in card
    assert "inet 169.254.169.254/32 scope host" in card
    assert "mtu 1400" in card
    assert "02:50:0a:01:02:03" in card
    assert route.startswith("default via 169.254.1.1")
    assert "onlink" in route
    assert "src 10.1.2.3" in route
    assert "169.254.1.1" in neighbour
    assert "02:00:00:00:00:01 PERMANENT" in neighbour
    assert "10.1.2.3\tshop-redis" in await shell(guest, "cat /etc/hosts")


# ---- the end ----


async def test_shutdown_asks_first_and_then_ends_everything(guests: HostedGuests) -> None:
    guest = await guests.connect()
    await guest.configure(basic_config())
    await guest.start_main(Program(("sh", "-c", "trap 'echo asked; exit 4' TERM; echo ready; while :; do sleep 0.05; done")))
    assert (await anext(guest.logs(0))).data == b"ready\n"
    waiter = asyncio.create_task(guest.wait_main())
    follower = asyncio.create_task(collect(guest))
    await guest.shutdown(30)
    assert (await refused(guest.exec(Program(("true",)), stdin=False))).reason == "ESHUTDOWN"
    assert await waiter == ExitStatus(4)
    assert (await follower).startswith(b"ready\n") and b"asked\n" in await follower
    await guest.closed()


async def test_shutdown_does_not_wait_for_the_stubborn(guests: HostedGuests) -> None:
    guest = await guests.connect()
    await guest.configure(basic_config())
    await guest.start_main(Program(("sh", "-c", "trap '' TERM; while :; do sleep 1; done")))
    await guest.shutdown(0.2)
    await guest.closed()

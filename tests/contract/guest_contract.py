"""What every body of the guest port promises. A body's test file gives the fixture `open_guest`, which connects to one and
the same guest again and again; the guest has `echo`, `cat`, `sleep`, `true` and `false`, and a folder /data."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from primordia.ports.guest import (
    CONFIRMED,
    ByteStream,
    ExitStatus,
    Guest,
    GuestError,
    GuestGoneError,
    LogChunk,
    Program,
    SecretFile,
)
from primordia.testing.guest import basic_config, basic_identity

DEADLINE_S = 120
OpenGuest = Callable[[], Awaitable[Guest]]


async def run(guest: Guest, *argv: str, stdin: bytes | None = None, **fields: object) -> tuple[bytes, bytes, ExitStatus]:
    """Standard output, standard error and end of a program."""
    program = Program(argv, **fields)  # type: ignore[arg-type]
    session = await guest.exec(program, stdin=stdin is not None)
    output = {"stdout": b"", "stderr": b""}

    async def feed() -> None:
        if stdin is not None:
            await session.write(stdin)
            await session.end_input()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(feed())
        async for channel, data in session.output():
            output[channel] += data
    return output["stdout"], output["stderr"], await session.wait()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


async def in_chunks(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read_files(guest: Guest, path: str) -> dict[str, bytes]:
    data = b"".join([chunk async for chunk in guest.read_tar(path)])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}  # type: ignore[union-attr]


async def follow(guest: Guest, offset: int = 0) -> list[LogChunk]:
    async with asyncio.timeout(DEADLINE_S):
        return [chunk async for chunk in guest.logs(offset)]


class GuestContract:
    """Subclassed for each body."""

    @pytest.fixture
    async def guest(self, open_guest: OpenGuest) -> Guest:
        guest = await open_guest()
        await guest.configure(basic_config(hosts={"db": "10.1.2.3"}, secrets=(SecretFile("/etc/keys/token", b"s\0cret"),)))
        return guest

    async def test_a_guest_without_configuration_runs_nothing(self, open_guest: OpenGuest) -> None:
        guest = await open_guest()
        assert (await guest.main_state()).phase == "none"
        with pytest.raises(GuestError) as caught:
            await guest.exec(Program(("true",)), stdin=False)
        assert caught.value.reason == "EAGAIN"
        with pytest.raises(GuestError):
            await guest.start_main(Program(("true",)))

    async def test_it_is_configured_once(self, guest: Guest) -> None:
        with pytest.raises(GuestError) as caught:
            await guest.configure(basic_config())
        assert caught.value.reason == "EALREADY"

    async def test_a_prepared_guest_runs_nothing_until_it_has_an_identity(self, open_guest: OpenGuest) -> None:
        guest = await open_guest()
        for call in (guest.identify(basic_identity()), guest.freeze(), guest.thaw()):
            with pytest.raises(GuestError) as caught:
                await call
            assert caught.value.reason == "EAGAIN"
        await guest.prepare("root", "scratch")
        await guest.prepare("root", "scratch")
        with pytest.raises(GuestError) as caught:
            await guest.exec(Program(("true",)), stdin=False)
        assert caught.value.reason == "EAGAIN"
        before = guest.agent_boot_id
        assert await guest.identify(basic_identity()) == CONFIRMED
        assert guest.agent_boot_id != before
        assert (await run(guest, "cat", "/etc/hostname"))[0] == b"shop-redis\n"

    async def test_another_identity_leaves_nothing_of_the_one_before(self, guest: Guest) -> None:
        boot_id = guest.agent_boot_id
        other = basic_identity(
            hostname="box-7", machine_id="ab" * 16, hosts={"cache": "10.9.9.9"}, secrets=(SecretFile("/run/other", b"2"),)
        )
        assert await guest.identify(other) == CONFIRMED
        assert guest.agent_boot_id != boot_id
        assert (await run(guest, "cat", "/etc/hostname", "/etc/machine-id"))[0] == b"box-7\n" + b"ab" * 16 + b"\n"
        shown = (await run(guest, "cat", "/proc/sys/kernel/random/boot_id"))[0].decode()
        assert shown.strip().replace("-", "") == guest.agent_boot_id
        hosts = (await run(guest, "cat", "/etc/hosts"))[0]
        assert b"10.9.9.9\tcache\n" in hosts
        assert b"10.1.2.3" not in hosts
        assert (await run(guest, "cat", "/etc/keys/token"))[2].code == 1
        assert (await run(guest, "cat", "/run/other"))[0] == b"2"
        await guest.identify(basic_identity(inherit_secrets=True, secrets=(SecretFile("/run/more", b"3"),)))
        assert (await run(guest, "cat", "/run/other", "/run/more"))[0] == b"23"

    async def test_a_frozen_guest_stands_and_goes_on(self, guest: Guest) -> None:
        session = await guest.exec(Program(("cat",)), stdin=True)
        output = session.output()
        await session.write(b"one\n")
        assert await anext(output) == ("stdout", b"one\n")
        await guest.freeze()
        await guest.freeze()
        await session.write(b"two\n")
        answer = asyncio.ensure_future(anext(output))
        for call in (guest.exec(Program(("true",)), stdin=False), guest.connect_tcp(80), guest.sync()):
            with pytest.raises(GuestError) as caught:
                await call
            assert caught.value.reason == "EAGAIN"
        assert (await guest.main_state()).phase == "none"
        assert await guest.ping() >= 0
        await asyncio.sleep(0.2)
        assert not answer.done()
        await guest.thaw()
        await guest.thaw()
        async with asyncio.timeout(DEADLINE_S):
            assert await answer == ("stdout", b"two\n")
        await session.end_input()
        assert (await session.wait()).code == 0

    async def test_a_frozen_guest_waits_for_the_next_host(self, guest: Guest, open_guest: OpenGuest) -> None:
        await guest.start_main(Program(("sleep", "3600")))
        await guest.freeze()
        await guest.close()
        again = await open_guest()
        with pytest.raises(GuestError) as caught:
            await again.exec(Program(("true",)), stdin=False)
        assert caught.value.reason == "EAGAIN"
        assert (await again.main_state()).phase == "running"
        assert await again.identify(basic_identity(hooks=(Program(("true",)), Program(("echo", "hook"))))) == CONFIRMED
        assert (await run(again, "echo", "well"))[0] == b"well\n"

    async def test_a_rehearsal_lets_nobody_go(self, guest: Guest) -> None:
        session = await guest.exec(Program(("cat",)), stdin=True)
        output = session.output()
        await guest.freeze()
        said = await guest.identify(basic_identity(rehearsal=True, hooks=(Program(("false",)),)))
        assert said == CONFIRMED[:-2]
        await guest.rehearse()
        await session.write(b"one\n")
        answer = asyncio.ensure_future(anext(output))
        with pytest.raises(GuestError) as caught:
            await guest.exec(Program(("true",)), stdin=False)
        assert caught.value.reason == "EAGAIN"
        assert not answer.done()
        assert await guest.identify(basic_identity(hostname="box-7")) == CONFIRMED
        async with asyncio.timeout(DEADLINE_S):
            assert await answer == ("stdout", b"one\n")
        assert (await run(guest, "cat", "/etc/hostname"))[0] == b"box-7\n"
        await session.end_input()
        await session.wait()

    async def test_a_hook_that_fails_is_named(self, guest: Guest) -> None:
        with pytest.raises(GuestError, match="hook false ended with code 1"):
            await guest.identify(basic_identity(hooks=(Program(("true",)), Program(("false",)), Program(("true",)))))
        with pytest.raises(GuestError, match="no-such-hook"):
            await guest.identify(basic_identity(hooks=(Program(("no-such-hook",)),)))
        assert await guest.identify(basic_identity()) == CONFIRMED

    async def test_a_socket_that_nobody_made(self, guest: Guest) -> None:
        with pytest.raises(GuestError) as caught:
            await guest.connect_unix("/run/no.sock")
        assert caught.value.reason == "ENOENT"

    async def test_names_and_secrets_are_there(self, guest: Guest) -> None:
        assert (await run(guest, "cat", "/etc/hostname"))[0] == b"shop-redis\n"
        assert (await run(guest, "cat", "/etc/keys/token"))[0] == b"s\0cret"
        assert b"10.1.2.3\tdb\n" in (await run(guest, "cat", "/etc/hosts"))[0]
        await guest.set_hosts({"cache": "10.9.9.9"})
        hosts = (await run(guest, "cat", "/etc/hosts"))[0]
        assert b"10.9.9.9\tcache\n" in hosts
        assert b"10.1.2.3" not in hosts

    async def test_exec_gives_output_and_code(self, guest: Guest) -> None:
        assert await run(guest, "echo", "one", "two") == (b"one two\n", b"", ExitStatus(0))
        assert (await run(guest, "false"))[2] == ExitStatus(1)
        out, err, status = await run(guest, "cat", "/no/such")
        assert (out, status.code) == (b"", 1)
        assert b"/no/such" in err

    async def test_exec_of_a_missing_command_is_refused(self, guest: Guest) -> None:
        with pytest.raises(GuestError) as caught:
            await guest.exec(Program(("no-such-command",)), stdin=False)
        assert caught.value.reason == "ENOENT"
        assert "no-such-command" in str(caught.value)

    async def test_exec_passes_a_megabyte_through(self, guest: Guest) -> None:
        data = os.urandom(1_000_000)
        out, _, status = await run(guest, "cat", stdin=data)
        assert out == data
        assert status == ExitStatus(0)

    async def test_exec_without_input_sees_its_end(self, guest: Guest) -> None:
        assert await run(guest, "cat") == (b"", b"", ExitStatus(0))

    async def test_signals_end_an_exec(self, guest: Guest) -> None:
        session = await guest.exec(Program(("sleep", "3600")), stdin=False)
        await session.signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            assert await session.wait() == ExitStatus(143, signal.SIGTERM)

    async def test_calls_run_side_by_side(self, guest: Guest) -> None:
        sleeper = await guest.exec(Program(("sleep", "3600")), stdin=False)
        results = await asyncio.gather(*(run(guest, "echo", str(number)) for number in range(12)))
        assert [result[0] for result in results] == [f"{number}\n".encode() for number in range(12)]
        assert await guest.ping() >= 0
        await sleeper.close()

    async def test_the_main_program_and_its_end(self, guest: Guest) -> None:
        await guest.start_main(Program(("sleep", "3600")))
        assert (await guest.main_state()).phase == "running"
        with pytest.raises(GuestError) as caught:
            await guest.start_main(Program(("sleep", "3600")))
        assert caught.value.reason == "EALREADY"
        waiter = asyncio.create_task(guest.wait_main())
        await guest.signal_main(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            assert await waiter == ExitStatus(143, signal.SIGTERM)
        state = await guest.main_state()
        assert (state.phase, state.status) == ("ended", ExitStatus(143, signal.SIGTERM))
        with pytest.raises(GuestError) as caught:
            await guest.signal_main(signal.SIGTERM)
        assert caught.value.reason == "ESRCH"

    async def test_a_main_program_that_cannot_start(self, guest: Guest) -> None:
        with pytest.raises(GuestError) as caught:
            await guest.start_main(Program(("no-such-server",)))
        assert caught.value.reason == "ENOENT"
        assert (await guest.main_state()).phase == "none"
        await guest.start_main(Program(("true",)))
        assert await guest.wait_main() == ExitStatus(0)

    async def test_logs_follow_from_an_offset_to_the_end(self, guest: Guest) -> None:
        await guest.start_main(Program(("echo", "hello")))
        assert await follow(guest) == [LogChunk(0, b"hello\n")]
        assert await follow(guest, 4) == [LogChunk(4, b"o\n")]
        assert await follow(guest, 6) == []

    async def test_a_main_program_outlives_its_connection_and_an_exec_does_not(
        self, guest: Guest, open_guest: OpenGuest
    ) -> None:
        await guest.start_main(Program(("sleep", "3600")))
        session = await guest.exec(Program(("sleep", "3600")), stdin=False)
        boot_id = guest.agent_boot_id
        await guest.close()
        await guest.closed()
        with pytest.raises(GuestGoneError):
            await guest.ping()
        again = await open_guest()
        assert again.agent_boot_id == boot_id
        assert (await again.main_state()).phase == "running"
        with contextlib.suppress(GuestGoneError):
            assert (await session.wait()).code == 129

    async def test_files_go_in_and_out_as_tar(self, guest: Guest) -> None:
        big = os.urandom(700_000)
        await guest.write_tar("/data", in_chunks(tar_of({"a.txt": b"alpha", "sub/b.bin": big, "sub/empty": b""})))
        assert await read_files(guest, "/data/a.txt") == {"a.txt": b"alpha"}
        assert await read_files(guest, "/data") == {"data/a.txt": b"alpha", "data/sub/b.bin": big, "data/sub/empty": b""}

    async def test_missing_and_escaping_paths_are_refused(self, guest: Guest) -> None:
        with pytest.raises(GuestError) as caught:
            await read_files(guest, "/no/such")
        assert caught.value.reason == "ENOENT"
        with pytest.raises(GuestError) as caught:
            await guest.write_tar("/no/such", in_chunks(tar_of({"a": b""})))
        assert caught.value.reason == "ENOENT"
        for name in ("../a", "/etc/a", "b/../../a"):
            with pytest.raises(GuestError) as caught:
                await guest.write_tar("/data", in_chunks(tar_of({name: b""})))
            assert caught.value.reason == "EPERM", name
        with pytest.raises(GuestError) as caught:
            await guest.write_tar("/data", in_chunks(b"no tar at all" * 100))
        assert caught.value.reason == "EINVAL"

    async def test_a_refused_connection(self, guest: Guest) -> None:
        with pytest.raises(GuestError) as caught:
            await guest.connect_tcp(9)
        assert caught.value.reason == "ECONNREFUSED"

    async def test_sync_returns(self, guest: Guest) -> None:
        await guest.sync()

    async def test_calls_on_a_closed_connection_say_so(self, guest: Guest) -> None:
        await guest.close()
        for call in (guest.sync(), guest.main_state(), guest.exec(Program(("true",)), stdin=False), guest.connect_tcp(80)):
            with pytest.raises(GuestGoneError):
                await call


async def echo_handler(stream: ByteStream) -> None:
    """Serves a stream by sending back what comes."""
    while data := await stream.read():
        await stream.write(data)
    await stream.end()

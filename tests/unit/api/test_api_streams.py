"""Exec, logs, files and forwarded ports, through the client, with real processes, terminals and sockets behind the API."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from primordia.api.services import Limits
from primordia.client import AsyncClient
from primordia.client.errors import BrokenAnswerError
from primordia.kit.errors import NotFoundError, PermanentError, TemporaryError
from primordia.ports.contexts import LogLine
from primordia.ports.guest import GuestGoneError
from primordia.testing.api import LocalSession, TestApi, connected, raw_session, running_api
from primordia.wire.kinds import path_of
from primordia.wire.resources import Context, Lifeform
from primordia.wire.streams import V4, V5

DEADLINE_S = 60


@pytest.fixture(params=["own node", "another node"])
async def api(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[TestApi]:
    """Everything must be the same when the node that is asked is not the one that runs the context."""
    relayed = request.param == "another node"
    async with asyncio.timeout(2 * DEADLINE_S), running_api(tmp_path, limits=Limits(ping_s=0.2), relayed=relayed) as running:
        await running.lifeform()
        yield running


@pytest.fixture
async def client(api: TestApi) -> AsyncIterator[AsyncClient]:
    async with connected(api.admin) as connection:
        yield connection


# ---------------------------------------------------------------- exec


async def test_output_input_and_exit_code(client: AsyncClient) -> None:
    result = await client.exec("shop", ["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"hello")
    assert (result.code, result.stdout, result.stderr, result.error) == (3, b"hello", b"no\n", "")
    assert (await client.exec("shop", ["true"])).code == 0
    assert (await client.exec("shop.main", ["true"], kind=Context)).code == 0


async def test_without_input_the_command_reads_none(client: AsyncClient) -> None:
    assert (await client.exec("shop", ["cat"])).stdout == b""


async def test_a_command_that_is_not_there(client: AsyncClient) -> None:
    result = await client.exec("shop", ["nonesuch"])
    assert result.code == 127
    assert "nonesuch" in result.error


async def test_what_cannot_be_executed(api: TestApi, client: AsyncClient) -> None:
    with pytest.raises(NotFoundError, match="Lifeform default/nope"):
        await client.exec("nope", ["true"])
    with pytest.raises(PermanentError, match=r"no context 'x'\. It has main"):
        await client.exec("shop", ["true"], container="x")
    with pytest.raises(PermanentError, match="command"):
        await client.exec("shop", [])
    with pytest.raises(PermanentError, match="NUL"):
        await client.exec("shop", ["a\0b"])
    api.contexts.uids.clear()
    with pytest.raises(NotFoundError, match="does not run"):
        await client.exec("shop", ["true"])
    await api.registry.delete(Context, "shop.main", "default")
    with pytest.raises(TemporaryError, match="no microVM"):
        await client.exec("shop", ["true"])


async def test_long_commands(client: AsyncClient) -> None:
    word = "x" * 100_000
    assert (await client.exec("shop", ["printf", "%s", word])).stdout == word.encode()
    with pytest.raises(PermanentError, match="longer than"):
        await client.exec("shop", ["true", "x" * 140_000])


async def test_a_guest_that_goes_away_in_the_middle(api: TestApi, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaking(self: LocalSession) -> AsyncIterator[tuple[str, bytes]]:
        yield "stdout", b"half"
        raise GuestGoneError("The guest is gone.")

    monkeypatch.setattr(LocalSession, "output", breaking)
    with pytest.raises(TemporaryError, match="The guest is gone"):
        await client.exec("shop", ["true"])


async def test_a_failure_of_ours_in_the_middle_is_no_whole_answer(
    api: TestApi, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaking(uid: str, path: str) -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ValueError("a bug")

    monkeypatch.setattr(api.contexts, "read_tar", breaking)
    with pytest.raises(BrokenAnswerError):
        [chunk async for chunk in client.read_tar("shop", "/f")]
    assert "a bug" in caplog.text


async def test_much_data_both_ways(client: AsyncClient) -> None:
    sent = hashlib.sha256(b"seed").digest() * 200_000
    result = await client.exec("shop", ["sh", "-c", "tee /dev/stderr"], stdin=sent)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(sent).digest()
    assert len(result.stderr) == len(sent)


async def test_a_client_that_does_not_read_holds_up_the_command(api: TestApi, client: AsyncClient) -> None:
    async with client.exec_session("shop", ["sh", "-c", "exec head -c 500000000 /dev/zero"]) as session:
        (process,) = [each.process for each in api.contexts.sessions]
        await asyncio.sleep(1)
        assert process.returncode is None
        count = 0
        async for _, data in session.output():
            count += len(data)
            if count > 50_000_000:
                break
        assert process.returncode is None, "half a gigabyte was taken in while nobody read it"


async def test_terminals_and_their_size(client: AsyncClient) -> None:
    async with client.exec_session("shop", ["sh"], stdin=True, tty=True) as session:
        await session.resize(33, 77)
        await session.write(b"stty size; test -t 0 && echo TTY; exit 5\n")
        seen = b"".join([data async for _, data in session.output()])
        assert b"33 77" in seen
        assert b"TTY" in seen
        assert (await session.result()).code == 5


async def test_a_client_that_leaves_ends_the_command(api: TestApi, client: AsyncClient) -> None:
    async with client.exec_session("shop", ["sh", "-c", "echo up; sleep 1000"]) as session:
        assert [item async for item in _first(session.output())] == [("stdout", b"up\n")]
    async with asyncio.timeout(DEADLINE_S):
        await api.contexts.sessions[0].closed.wait()
    assert api.contexts.sessions[0].process.returncode is not None


async def test_a_client_that_is_cut_off_ends_the_command_even_while_its_input_waits(api: TestApi) -> None:
    url = api.url + path_of(Lifeform, "default", "shop", "exec")
    async with raw_session(api.admin) as session:
        socket = await session.ws_connect(
            url, params=[("command", "sleep"), ("command", "1000"), ("stdin", "1")], protocols=[V5]
        )
        sending = asyncio.create_task(_flood(socket))
        await asyncio.sleep(0.5)  # by now the pipe to a command that never reads is full
        assert not sending.done()
        transport = socket.get_extra_info("socket")
        assert transport is not None
        socket._response.connection.transport.abort()  # type: ignore[union-attr]  # as a process that is killed
        sending.cancel()
        await asyncio.wait([sending])
    async with asyncio.timeout(DEADLINE_S):
        await api.contexts.sessions[0].closed.wait()


async def _flood(socket: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        await socket.send_bytes(b"\x00" + b"x" * 30_000)


async def test_both_protocols_and_odd_messages(api: TestApi) -> None:
    url = api.url + path_of(Lifeform, "default", "shop", "exec")
    params = [("command", "sh"), ("command", "-c"), ("command", "read x; echo $x"), ("stdin", "1")]
    async with raw_session(api.admin) as session:
        for protocol in (V4, V5):
            async with session.ws_connect(url, params=params, protocols=[protocol]) as socket:
                assert socket.protocol == protocol
                for odd in (b"", b"\x09x", b"\x04{", b'\x04{"Width":-1,"Height":99999}', b"\xff", b"\xff\x07", b"\x00"):
                    await socket.send_bytes(odd)
                await socket.send_str("text")
                await socket.send_bytes(b"\x00hi\n")
                messages = [message.data async for message in socket]
            assert messages[0] == b"\x01hi\n"
            assert messages[-1][:1] == b"\x03"
            assert json.loads(messages[-1][1:])["status"] == "Success"
        async with session.get(url, params=params) as answer:
            assert (answer.status, (await answer.json())["reason"]) == (400, "BadRequest")


async def test_stopping_the_server_ends_commands(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api, connected(api.admin) as client:
        await api.lifeform()
        async with client.exec_session("shop", ["sleep", "1000"]) as session:
            async with asyncio.timeout(DEADLINE_S):
                await api.server.stop()
                await api.contexts.sessions[0].closed.wait()
                with pytest.raises(BrokenAnswerError):
                    await session.result()


async def _first(items: AsyncIterator[tuple[str, bytes]]) -> AsyncIterator[tuple[str, bytes]]:
    async for item in items:
        yield item
        return


# ---------------------------------------------------------------- logs


def _line(text: str) -> LogLine:
    return LogLine("2026-01-01T00:00:00Z", text.encode())


async def test_logs(api: TestApi, client: AsyncClient) -> None:
    api.contexts.lines = [_line("one"), _line("two")]
    assert b"".join([chunk async for chunk in client.logs("shop")]) == b"one\ntwo\n"
    stamped = b"".join([chunk async for chunk in client.logs("shop", tail=1, timestamps=True)])
    assert stamped == b"2026-01-01T00:00:00Z two\n"
    assert b"".join([chunk async for chunk in client.logs("shop", tail=0)]) == b""
    with pytest.raises(NotFoundError, match="no run before"):
        [chunk async for chunk in client.logs("shop", previous=True)]


async def test_logs_are_followed(api: TestApi, client: AsyncClient) -> None:
    async with contextlib.aclosing(client.logs("shop", follow=True)) as chunks:
        reading = asyncio.create_task(anext(chunks))
        await asyncio.sleep(0.5)  # longer than headers wait for a first line
        for text in ("one", "two"):
            api.contexts.lines.append(_line(text))
            api.contexts.more.set()
            async with asyncio.timeout(DEADLINE_S):
                assert await reading == f"{text}\n".encode()
            reading = asyncio.create_task(anext(chunks))
        reading.cancel()
        await asyncio.wait([reading])


# ---------------------------------------------------------------- files


async def test_files_there_and_back(api: TestApi, client: AsyncClient) -> None:
    source = api.contexts.root / "src"
    source.mkdir()
    (source / "f").write_bytes(b"x" * 300_000)
    chunks = [chunk async for chunk in client.read_tar("shop", "/src")]
    (api.contexts.root / "dst").mkdir()
    await client.write_tar("shop", "/dst", chunks)
    assert (api.contexts.root / "dst" / "src" / "f").read_bytes() == b"x" * 300_000


async def test_a_slow_guest_s_refusal_is_told_too(api: TestApi, client: AsyncClient) -> None:
    api.contexts.slow_s = 0.5  # a log that is followed would have its headers by then
    with pytest.raises(NotFoundError, match="/nope does not exist"):
        [chunk async for chunk in client.read_tar("shop", "/nope")]


async def test_files_that_are_not_there(client: AsyncClient) -> None:
    with pytest.raises(NotFoundError, match="/nope does not exist"):
        [chunk async for chunk in client.read_tar("shop", "/nope")]
    with pytest.raises(PermanentError, match="/nope is no folder"):
        await client.write_tar("shop", "/nope", [b"x"])
    with pytest.raises(PermanentError, match="no tar"):
        await client.write_tar("shop", "/", [b"garbage"])
    for path in ("", "relative", "/a/../b"):
        with pytest.raises(PermanentError, match="path"):
            [chunk async for chunk in client.read_tar("shop", path)]


async def test_a_tar_stream_that_breaks_is_not_taken_for_whole(
    api: TestApi, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaking(uid: str, path: str) -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise TemporaryError("The guest is gone.")

    monkeypatch.setattr(api.contexts, "read_tar", breaking)
    with pytest.raises(BrokenAnswerError):
        [chunk async for chunk in client.read_tar("shop", "/f")]


async def test_uploads_are_held_up_by_who_takes_them(
    api: TestApi, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0
    go = asyncio.Event()

    async def slow(uid: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        await go.wait()
        async for _ in chunks:
            pass

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 100_000
            yield b"x" * 100_000

    monkeypatch.setattr(api.contexts, "write_tar", slow)
    upload = asyncio.create_task(client.write_tar("shop", "/", endless()))
    await asyncio.sleep(1)
    assert sent < 50_000_000, "the server took it all in while nobody wanted it"
    go.set()
    await upload
    assert sent == 100_000_000


async def test_a_large_tar_is_no_memory(api: TestApi, client: AsyncClient) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("big")
        info.size = 5_000_000
        tar.addfile(info, io.BytesIO(b"y" * info.size))
    await client.write_tar("shop", "/", [buffer.getvalue()])
    assert (api.contexts.root / "big").stat().st_size == 5_000_000


# ---------------------------------------------------------------- ports


@contextlib.asynccontextmanager
async def _echo() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(data[::-1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_forwarded_ports_carry_both_ways_and_half_close(client: AsyncClient) -> None:
    async with _echo() as port, client.port_forward("shop", port) as local:
        for size in (1, 3_000_000):
            sent = bytes(range(256)) * (size // 256 + 1)
            reader, writer = await asyncio.open_connection("127.0.0.1", local)
            writer.write(sent)
            writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                assert await reader.read() == sent[::-1]
            writer.close()


async def test_a_client_that_leaves_after_its_half_close_ends_the_connection(client: AsyncClient) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # its half-close; we go on saying nothing
        writer.write(b"x")
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(0.05)
                writer.write(b"x")
                await writer.drain()
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(DEADLINE_S):
        async with client.connect_port("shop", server.sockets[0].getsockname()[1]) as stream:
            await stream.end()
            assert await stream.read() == b"x"
        await closed.wait()


async def test_a_port_where_nobody_listens(api: TestApi, client: AsyncClient) -> None:
    async with _echo() as port:
        pass
    with pytest.raises(PermanentError, match="Nothing listens"):
        async with client.connect_port("shop", port):
            pass
    async with client.port_forward("shop", port) as local:
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()

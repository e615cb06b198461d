"""The relay's edges: a node that is not there, hangs, breaks off or answers nonsense; log lines in any pieces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primordia.api.auth import NODES
from primordia.drivers.contexts_remote import failures, peer, watch
from primordia.drivers.contexts_remote.contexts import Peers, RemoteContexts
from primordia.drivers.contexts_remote.lines import LONGEST_BYTES, Lines
from primordia.kit import pki
from primordia.kit.clock import SystemClock
from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError, TemporaryError
from primordia.ports.contexts import LogLine
from primordia.ports.guest import GuestError, Program
from primordia.testing.api import TestApi, running_api
from primordia.wire.meta import Status, StatusCause, StatusDetails
from primordia.wire.streams import end_of

HOST = "127.0.0.1"
DEADLINE_S = 60


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    async with asyncio.timeout(2 * DEADLINE_S), running_api(tmp_path) as running:
        await running.lifeform()
        yield running


@contextlib.asynccontextmanager
async def remote(folder: Path, ca: pki.KeyPair, port: int) -> AsyncIterator[RemoteContexts]:
    paths = folder / "ca.crt", folder / "n2.crt", folder / "n2.key"
    paths[0].write_bytes(ca.certificate)
    pki.issue(ca, "n2", NODES, san_ip=[HOST], server=True).write(paths[1], paths[2])
    peers = Peers(pki.client_context(*paths), port, SystemClock())
    try:
        yield peers.contexts("n1", HOST)
    finally:
        await peers.close()


def port_of(api: TestApi) -> int:
    return int(api.url.rpartition(":")[2])


async def uid_of(api: TestApi) -> str:
    (uid,) = api.contexts.uids
    return uid


async def test_a_whole_program_is_carried_and_signalled(api: TestApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Program] = []
    plain = api.contexts.exec

    async def spying(uid: str, program: Program, *, stdin: bool) -> object:
        seen.append(program)
        return await plain(uid, program, stdin=stdin)

    monkeypatch.setattr(api.contexts, "exec", spying)
    asked = Program(
        argv=("sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done"),
        env=(("A", "1=2"), ("B", "")),
        working_dir="/srv",
        user="worker:staff",
        rows=7,
        columns=11,
    )
    async with remote(tmp_path, api.ca, port_of(api)) as contexts:
        session = await contexts.exec(await uid_of(api), asked, stdin=False)
        output = session.output()
        assert await anext(output) == ("stdout", b"ready\n")
        await session.signal(10)
        assert (await session.wait()).code == 9
        await session.close()
    assert seen == [asked]


async def test_a_foreign_uid_is_not_passed_on(api: TestApi, tmp_path: Path) -> None:
    async with remote(tmp_path, api.ca, port_of(api)) as contexts:
        with pytest.raises(NotFoundError, match="does not run the context x"):
            await contexts.exec("x", Program(("true",)), stdin=False)
        with pytest.raises(NotFoundError, match="does not run the context x"):
            [line async for line in contexts.logs("x", follow=False, tail=None)]


async def test_nobody_listens(api: TestApi, tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda r, w: None, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with remote(tmp_path, api.ca, port) as contexts:
        with pytest.raises(TemporaryError, match=rf"^Node n1, where the context is, does not answer at 127\.0\.0\.1:{port} \("):
            await contexts.exec("x", Program(("true",)), stdin=False)
        with pytest.raises(failures.NodeUnreachableError):
            await contexts.write_tar("x", "/", _chunks())


async def test_a_node_that_hangs_before_its_handshake(api: TestApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "CONNECT_WITHIN_S", 0.3)
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: held.append(writer), HOST, 0)
    async with remote(tmp_path, api.ca, server.sockets[0].getsockname()[1]) as contexts:
        with pytest.raises(failures.NodeUnreachableError, match="n1"):
            async with asyncio.timeout(DEADLINE_S):
                [piece async for piece in contexts.read_tar("x", "/f")]
    for writer in held:
        writer.close()
    server.close()


async def test_a_node_of_another_authority_is_not_believed(api: TestApi, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    async with remote(folder, pki.make_ca("other"), port_of(api)) as contexts:
        with pytest.raises(failures.NodeUnreachableError, match=r"(?i)certificate"):
            await contexts.exec("x", Program(("true",)), stdin=False)


async def test_streams_of_a_node_that_falls_silent_are_cut(
    api: TestApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers nothing any more, and its connections stay: as a machine that lost its power."""
    monkeypatch.setattr(watch, "EVERY_S", 0.05)
    uid = await uid_of(api)
    api.contexts.lines.append(LogLine("2026-01-01T00:00:00Z", b"one"))
    async with remote(tmp_path, api.ca, port_of(api)) as contexts, asyncio.timeout(DEADLINE_S):
        session = await contexts.exec(uid, Program(("sleep", "600")), stdin=False)
        lines = contexts.logs(uid, follow=True, tail=None)
        assert (await anext(lines)).text == b"one"
        upload = asyncio.create_task(contexts.write_tar(uid, "/", _endless()))
        stream = await contexts.connect_tcp(uid, port_of(api))
        await asyncio.sleep(0.3)  # asked several times by now, and nothing was cut
        assert not upload.done()

        async def silent(self: peer.Peer) -> bool:
            return False

        monkeypatch.setattr(contexts._peer._watch, "_answers", lambda: silent(contexts._peer))
        for waiting in (session.wait(), anext(lines), upload, stream.read()):
            with pytest.raises(failures.NodeUnreachableError, match="n1"):
                await waiting
        await session.close()
        await stream.close()


async def _chunks() -> AsyncIterator[bytes]:
    yield b"x"


async def _endless() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.get_running_loop().create_future()


# ---------------------------------------------------------------- pure


def test_lines_come_back_however_they_are_cut() -> None:
    text = b"t1 one\nt2 \nt3 a b\xff\n without time\nt5 unfinished"
    wanted = [LogLine("t1", b"one"), LogLine("t2", b""), LogLine("t3", b"a b\xff"), LogLine("", b"without time")]
    for size in range(1, len(text) + 1):
        lines = Lines()
        assert [line for at in range(0, len(text), size) for line in lines.feed(text[at : at + size])] == wanted


def test_a_line_without_an_end_is_bounded() -> None:
    lines = Lines()
    with pytest.raises(TemporaryError):
        for _ in range(LONGEST_BYTES // 2**20 + 1):
            list(lines.feed(b"x" * 2**20))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status(code=404, message="gone"), NotFoundError),
        (Status(code=503, message="later"), TemporaryError),
        (Status(code=504, message="slow"), TemporaryError),
        (Status(code=500, message="bug"), PrimordiaError),
        (Status(code=403, message="no"), PermanentError),
        (
            Status(code=404, message="no", details=StatusDetails(causes=(StatusCause(reason="ENOENT", message="no"),))),
            GuestError,
        ),
    ],
)
def test_a_refusal_is_the_error_that_the_node_raised(status: Status, kind: type[PrimordiaError]) -> None:
    error = failures.error_of(status, "n1")
    assert type(error) is kind
    assert status.message in str(error)


def test_an_answer_that_is_no_status() -> None:
    assert "n1 answered HTTP 502" in str(failures.error_of_answer(502, b"<html>", "n1"))
    assert end_of(3).code == 500  # an exit code is no refusal: see RemoteSession.wait

"""The node's small parts: programs, records, facts, logs, the in-guest API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primordia.drivers.guest_fake import stream_pair
from primordia.kit.errors import CapacityError, InvalidError, TemporaryError
from primordia.kit.paths import NodePaths
from primordia.node import log_files
from primordia.node.facts import LinuxHost, parse_meminfo
from primordia.node.guest_api import GuestApi, Self, Sync
from primordia.node.log_files import LogFiles, parse_line, tail_offset
from primordia.node.logs import LogBook
from primordia.node.program import fingerprint, program_of
from primordia.node.records import Record, Records, RunRecord
from primordia.ports.guest import LogChunk
from primordia.testing.virtual import VirtualClock, run_virtual
from primordia.wire.data import SyncResult
from primordia.wire.resources import (
    ContextSpec,
    ContextTemplate,
    EnvVar,
    ImageConfig,
    Port,
    Probe,
    Resources,
    TcpSocketAction,
)

UID = "0f2343f4-3e93-40c9-969c-93b7e8dca09f"
TEMPLATE = ContextTemplate(name="main", image="x")
SPEC = ContextSpec(lifeform="shop", lifeform_uid=UID, node="n1", epoch=1, template=TEMPLATE)


# ---------------------------------------------------------------- programs


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        (None, None, ("entry", "cmd")),
        (None, ("a",), ("entry", "a")),
        (None, (), ("entry",)),
        (("c",), None, ("c",)),
        (("c",), ("a",), ("c", "a")),
    ],
)
def test_command_and_args_as_kubernetes_lays_them(
    command: tuple[str, ...] | None, args: tuple[str, ...] | None, argv: tuple[str, ...]
) -> None:
    image = ImageConfig(entrypoint=("entry",), cmd=("cmd",), working_dir="/srv", user="redis")
    program = program_of(msgspec.structs.replace(TEMPLATE, command=command, args=args), image)
    assert (program.argv, program.working_dir, program.user) == (argv, "/srv", "redis")


def test_the_lifeforms_words_go_over_the_images() -> None:
    image = ImageConfig(cmd=("x",), env=(EnvVar(name="A", value="1"), EnvVar(name="B", value="2")), user="redis")
    template = msgspec.structs.replace(TEMPLATE, env=(EnvVar(name="B", value="3"),), user="0:0", working_dir="/w", tty=True)
    program = program_of(template, image)
    assert program.env == (("A", "1"), ("B", "3"))
    assert (program.user, program.working_dir, program.tty) == ("0:0", "/w", True)


def test_nothing_to_run_is_said() -> None:
    with pytest.raises(InvalidError, match=r"contexts\[main\].command: the image 'x' does not say what to run"):
        program_of(TEMPLATE, ImageConfig())


def test_what_asks_for_a_new_start() -> None:
    def changed(**fields: object) -> str:
        return fingerprint(msgspec.structs.replace(SPEC, template=msgspec.structs.replace(TEMPLATE, **fields)))

    same = fingerprint(SPEC)
    assert changed(ports=(Port(container_port=1),)) == same
    assert changed(readiness_probe=Probe(tcp_socket=TcpSocketAction(port=1))) == same
    assert fingerprint(msgspec.structs.replace(SPEC, wanted="Stopped", lifeform_labels={"a": "b"})) == same
    others = {changed(image="y"), changed(command=("z",)), changed(resources=Resources(memory="1Gi")), changed(user="u")}
    others.add(fingerprint(msgspec.structs.replace(SPEC, epoch=2)))
    assert len(others) == 5 and same not in others


# ---------------------------------------------------------------- records


async def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = Records(NodePaths(tmp_path / "state", tmp_path / "run"))
    run = RunRecord(number=3, fingerprint="f", phase="ended", because="Created", boot_id="b", exit_code=0, ends=2)
    record = Record(uid=UID, namespace="default", name="shop.main", spec=SPEC, address="10.128.0.1", run=run)
    await records.save(record)
    assert records.load_all() == [record]
    assert (records.folder(UID) / "record.json").stat().st_mode & 0o077 == 0
    await records.remove(UID)
    await records.remove(UID)
    assert records.load_all() == [] and records.uids() == set()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100, b'{"uid": "x"}', b"[1]"])
async def test_records_that_are_none_are_put_aside(tmp_path: Path, content: bytes) -> None:
    records = Records(NodePaths(tmp_path, tmp_path / "run"))
    folder = records.folder(UID)
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(content)
    assert records.load_all() == []
    assert [entry.name.partition(".")[2][:11] for entry in folder.parent.iterdir()] == ["quarantined"]


@pytest.mark.parametrize("uid", ["", "..", "../../etc", "0f2343f4", UID + "/..", UID.upper()])
def test_a_uid_that_is_none_becomes_no_path(tmp_path: Path, uid: str) -> None:
    with pytest.raises(InvalidError):
        Records(NodePaths(tmp_path, tmp_path)).folder(uid)


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    async def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    records = Records(NodePaths(tmp_path, tmp_path), full)
    with pytest.raises(CapacityError, match="No space left on device"):
        await records.save(Record(uid=UID, namespace="default", name="shop.main", spec=SPEC))


def test_the_machines_figures_are_plausible(tmp_path: Path) -> None:
    host = LinuxHost()
    assert 0 < host.memory_available() <= host.memory_total()
    size, free = host.disk(tmp_path)
    assert 0 < free <= size and host.cpus() >= 1 and len(host.boot_id()) == 36
    assert parse_meminfo("MemTotal:  5 kB\nMemAvailable: 3 kB\n", "MemAvailable") == 3072
    assert parse_meminfo("", "MemTotal") == 0


# ---------------------------------------------------------------- logs


class Source:
    """A guest of which only the log is asked: everything it ever wrote, in pieces."""

    def __init__(self, output: bytes, piece: int, start: int = 0, pause_s: float = 0.0) -> None:
        self.output = output
        self.piece = piece
        self.start = start
        self.pause_s = pause_s

    async def logs(self, offset: int) -> AsyncIterator[LogChunk]:
        at = max(offset, self.start)
        lost = at - offset
        while at < len(self.output):
            data = self.output[at : at + self.piece]
            yield LogChunk(at, data, lost)
            await asyncio.sleep(self.pause_s)
            at, lost = at + len(data), 0


async def read(book: LogBook, **how: object) -> list[bytes]:
    options = {"follow": False, "tail": None, **how}
    return [line.text async for line in book.read(**options)]  # type: ignore[arg-type]


@given(
    lines=st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=30),
    piece=st.integers(1, 50),
    cut=st.integers(0, 400),
)
@settings(max_examples=60, deadline=None)
def test_a_log_is_whole_however_it_comes_and_wherever_the_daemon_dies(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], piece: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    output = b"".join(line + b"\n" for line in lines)

    async def main() -> None:
        book = LogBook(folder, VirtualClock())
        book.begin(1)
        await book.follow(Source(output[:cut], piece))  # type: ignore[arg-type]
        # The daemon dies here, in the middle of a write: the file has more than the position tells.
        with (folder / "current").open("ab") as file:
            file.write(b"2026-01-01T00:00:00Z torn")
        after = LogBook(folder, VirtualClock())
        after.reopen()
        await after.follow(Source(output, piece))  # type: ignore[arg-type]
        after.complete()
        assert await read(after) == lines
        for tail in (0, 1, 5, 100):
            assert await read(after, tail=tail) == (lines[-tail:] if tail else [])

    run_virtual(main())


def test_what_the_ring_dropped_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        book = LogBook(tmp_path / "log", VirtualClock())
        book.begin(1)
        await book.follow(Source(b"a\nbcd\ne\n", 100, start=4))  # type: ignore[arg-type]
        assert await read(book) == [b"[primordia: 4 bytes of output were lost]", b"d", b"e"]

    run_virtual(main())


def test_lines_without_an_end_and_lying_offsets_do_no_harm(tmp_path: Path) -> None:
    class Liar:
        async def logs(self, offset: int) -> AsyncIterator[LogChunk]:
            yield LogChunk(0, b"one\n")
            yield LogChunk(0, b"one\ntwo\n")
            yield LogChunk(2, b"x")
            yield LogChunk(8, b"y" * 50_000)
            yield LogChunk(2**62, b"far\n")

    async def main() -> None:
        book = LogBook(tmp_path / "log", VirtualClock())
        book.begin(1)
        await book.follow(Liar())  # type: ignore[arg-type]
        book.complete()
        found = await read(book)
        assert found[:2] == [b"one", b"two"] and b"".join(found[2:6]) == b"y" * 50_000
        assert max(len(line) for line in found) <= 16384
        assert found[-1] == b"far"

    run_virtual(main())


def test_files_rotate_and_readers_see_no_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "ROTATE_BYTES", 4000)

    async def main() -> None:
        book = LogBook(tmp_path / "log", VirtualClock())
        book.begin(1)
        lines = [b"line %d" % number for number in range(150)]
        reader = asyncio.create_task(read(book, follow=True))
        await asyncio.sleep(0.1)
        await book.follow(Source(b"\n".join(lines) + b"\n", 64, pause_s=0.1))  # type: ignore[arg-type]
        book.complete()
        kept = await read(book)
        assert kept == lines[-len(kept) :] and len(kept) > 100
        assert await read(book, tail=110) == lines[-110:]
        assert (tmp_path / "log" / "current").stat().st_size <= 4000
        followed = await reader
        assert followed == lines
        book.begin(2)
        assert await read(book) == []
        assert await read(book, previous=True) == [parse_line(each).text for each in _raw(tmp_path / "log" / "previous")]

    def _raw(path: Path) -> list[bytes]:
        return path.read_bytes().splitlines()

    run_virtual(main())


def test_a_flood_of_empty_lines_is_slowed_by_what_they_cost(tmp_path: Path) -> None:
    async def main() -> float:
        clock = VirtualClock()
        book = LogBook(tmp_path / "log", clock)
        book.begin(1)
        await book.follow(Source(b"\n" * 2**20, 32768))  # type: ignore[arg-type]
        return clock.boottime()

    assert run_virtual(main()) > 20  # its file would be thirty times as large as what the guest wrote


def test_a_flood_is_slowed_not_stored_without_bound(tmp_path: Path) -> None:
    async def main() -> float:
        clock = VirtualClock()
        book = LogBook(tmp_path / "log", clock)
        book.begin(1)
        begin = clock.boottime()
        await book.follow(Source(b"0123456789abcde\n" * 2**20, 32768))  # type: ignore[arg-type]
        assert sum(file.stat().st_size for file in (tmp_path / "log").iterdir()) < 17 * 2**20
        return clock.boottime() - begin

    assert run_virtual(main()) >= 10


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        book = LogBook(tmp_path / "log", VirtualClock())
        book.begin(1)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as hurt:
            hurt.setattr(LogFiles, "append", full)
            await book.follow(Source(b"lost\n", 10))  # type: ignore[arg-type]
        await book.follow(Source(b"lost\nkept\n", 10))  # type: ignore[arg-type]
        assert await read(book) == [b"kept"]

    run_virtual(main())


@given(content=st.binary(max_size=300), lines=st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_tail_offset_agrees_with_counting(tmp_path_factory: pytest.TempPathFactory, content: bytes, lines: int) -> None:
    path = tmp_path_factory.mktemp("tail") / "file"
    content = content + b"\n" if content and not content.endswith(b"\n") else content
    path.write_bytes(content)
    offset, _ = tail_offset(path, lines)
    whole = content.split(b"\n")[:-1]
    assert content[offset:].split(b"\n")[:-1] == (whole[-lines:] if lines else [])


# ---------------------------------------------------------------- the in-guest API

ME = Self(
    name="shop",
    namespace="default",
    uid=UID,
    context="main",
    epoch=1,
    node="n1",
    rack="r1",
    segment="east",
    started_because="Created",
    address="10.128.0.1",
)


async def ask(*pieces: bytes, end: bool = True) -> bytes:
    """What the API answers to these bytes."""
    guest, host = stream_pair()
    serving = asyncio.create_task(GuestApi(lambda: ME, VirtualClock()).serve(host))
    answer = b""

    async def send() -> None:
        for piece in pieces:
            await guest.write(piece)
        if end:
            await guest.end()

    sending = asyncio.create_task(send())
    while data := await guest.read():
        answer += data
    await serving
    await asyncio.gather(sending, return_exceptions=True)
    return answer


def get(path: str = "/v1/self", method: str = "GET", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{more}\r\n".encode()


def test_a_sync_is_posted_and_says_what_it_did() -> None:
    post = get("/v1/sync", "POST", "Content-Length: 0\r\n")

    async def asked(sync: Sync | None) -> bytes:
        guest, host = stream_pair()
        serving = asyncio.create_task(GuestApi(lambda: ME, VirtualClock(), sync).serve(host))
        await guest.write(post)
        await guest.end()
        answer = b""
        while data := await guest.read():
            answer += data
        await serving
        return answer

    async def done(timeout_s: float) -> SyncResult:
        return SyncResult(number=7, epoch=2, copies=("n2",), at="now")

    async def late(timeout_s: float) -> SyncResult:
        raise TemporaryError("It waited for node n2.", reason="SyncTimeout")

    good = run_virtual(asked(done))
    assert good.startswith(b"HTTP/1.1 200")
    assert json.loads(good.rpartition(b"\r\n\r\n")[2]) == {"number": 7, "epoch": 2, "copies": ["n2"], "at": "now"}
    failed = run_virtual(asked(late))
    assert failed.startswith(b"HTTP/1.1 503")
    assert b"waited for node n2" in failed
    assert run_virtual(asked(None)).startswith(b"HTTP/1.1 409")


def test_self_is_told_on_one_connection_many_times() -> None:
    answer = run_virtual(ask(get(), get(), get()))
    assert answer.count(b"HTTP/1.1 200") == 3
    body = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    assert body["name"] == "shop" and body["startedBecause"] == "Created"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), b"404"),
        (get("/v1/self/x"), b"404"),
        (get(method="POST", more="Content-Length: 2\r\n") + b"{}", b"405"),
        (get(method="DELETE"), b"405"),
        (get("/v1/sync"), b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (get(more="Content-Length: -1\r\n"), b"400"),
        (b"\x00\xff" * 500 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40000, b"431"),
        (get(method="POST", more="Content-Length: 99999999\r\n") + b"x" * 200_000, b"413"),
        (get(method="POST", more="Expect: 100-continue\r\nContent-Length: 5\r\n"), b"417"),
        (get("/v1/self?x=y"), b"200"),
    ],
)
def test_answers_to_odd_requests(request_: bytes, status: bytes) -> None:
    assert run_virtual(ask(request_)).split()[1] == status


def test_head_has_no_body_and_405_names_what_may_be_done() -> None:
    head = run_virtual(ask(get(method="HEAD")))
    assert head.endswith(b"\r\n\r\n") and b"Content-Length: 0" not in head
    assert b"allow: get, head" in run_virtual(ask(get(method="PUT"))).lower()


def test_a_silent_or_slow_guest_is_hung_up_on() -> None:
    async def main() -> float:
        clock = VirtualClock()
        begin = clock.boottime()
        assert await ask(b"GET /v1/se", end=False) == b""
        return clock.boottime() - begin

    assert run_virtual(main()) == 30


@given(st.lists(st.binary(max_size=200), max_size=6))
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_end_their_own_connection_only(pieces: list[bytes]) -> None:
    answer = run_virtual(ask(*pieces))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


def test_many_connections_at_once() -> None:
    async def main() -> list[bytes]:
        return await asyncio.gather(*(ask(get()) for _ in range(300)))

    assert all(b" 200 " in answer for answer in run_virtual(main()))

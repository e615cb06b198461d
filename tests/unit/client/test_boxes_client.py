"""Boxes from Python, against a real server whose boxes are this machine: what they give, stream, raise and leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.client import (
    AsyncClient,
    Box,
    BoxGoneError,
    CapacityError,
    Client,
    CodeResult,
    CommandFailedError,
    CommandTimeoutError,
    ForkError,
    ForkRequest,
    MissingPathError,
    SyncBox,
)
from primordia.client.box_files import parse_listing
from primordia.client.errors import BrokenAnswerError
from primordia.client.interpreter import SOCKET
from primordia.client.templates import plain_template, template_settled
from primordia.host.agent_build import find_interpreter
from primordia.kit.errors import InvalidError, NotFoundError, PermanentError
from primordia.ports import forks
from primordia.testing.api import TestApi, connected, running_api
from primordia.wire.resources import Context, Resources, Template, TemplateStatus

DEADLINE_S = 60


@pytest.fixture(params=["own node", "another node"])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[TestApi]:
    relayed = request.param == "another node"
    # The context's files lie in a folder with a short name: a socket's address has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="box-") as folder:
        async with asyncio.timeout(2 * DEADLINE_S), running_api(Path(folder), relayed=relayed) as running:
            await running.template("py")
            yield running


@pytest.fixture
async def client(api: TestApi) -> AsyncIterator[AsyncClient]:
    async with connected(api.admin) as connection:
        yield connection


@pytest.fixture
async def box(client: AsyncClient) -> AsyncIterator[Box]:
    async with client.box("py") as claimed:
        yield claimed


async def boxes_of(api: TestApi) -> list[str]:
    return [each.metadata.name for each in (await api.registry.list(Context)).items]


# ---------------------------------------------------------------- life


async def test_a_box_lives_for_its_block(api: TestApi, client: AsyncClient) -> None:
    api.forks.warm = 1
    async with client.box("py", ttl=60, labels={"job": "7"}) as box:
        assert (box.warm, box.confirmed_ms, box.namespace) == (True, 1.5, "default")
        context = await box.context()
        assert (context.metadata.uid, context.metadata.labels["job"]) == (box.uid, "7")
        assert context.spec.expires_at
    assert await boxes_of(api) == []
    kept = await client.box("py", name="mine")
    assert await boxes_of(api) == ["mine"]
    await kept.kill()
    await kept.kill()
    assert await boxes_of(api) == []


async def test_a_box_is_killed_when_its_block_fails_or_is_cancelled(api: TestApi, client: AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.box("py"):
            raise ZeroDivisionError
    begun = asyncio.Event()

    async def work() -> None:
        async with client.box("py") as box:
            begun.set()
            await box.run("sleep 60")

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await boxes_of(api) == []


async def test_boxes_that_cannot_be(api: TestApi, client: AsyncClient) -> None:
    with pytest.raises(NotFoundError, match="primordia template create nope"):
        await client.box("nope")
    with pytest.raises(InvalidError, match="either a template or an image"):
        client.box()
    api.forks.refusals.append(CapacityError("Node n1 has no room for another fork."))
    with pytest.raises(CapacityError, match="no room"):
        await client.box("py")


async def test_a_box_of_an_image_comes_from_its_plain_template(api: TestApi, client: AsyncClient) -> None:
    async def build() -> None:
        made = await client.wait(Template, "plain-redis", lambda obj: obj is not None)
        assert made is not None
        ready = TemplateStatus(phase="Ready", observed_generation=1)
        await api.registry.update_status(msgspec.structs.replace(made, status=ready))

    builder = asyncio.create_task(build())
    async with client.box(image="redis") as box:
        assert (await box.context()).spec.from_template == "plain-redis"
    await builder
    async with client.box(image="redis"):
        pass
    await client.create(plain_template("broken"))
    failed = TemplateStatus(phase="Failed", observed_generation=1, message="There is no image broken.")
    template = await api.registry.get(Template, "plain-broken")
    await api.registry.update_status(msgspec.structs.replace(template, status=failed))
    with pytest.raises(PermanentError, match="There is no image broken"):
        await client.box(image="broken")


def test_plain_templates_have_names_of_their_own() -> None:
    names = {
        plain_template(image, Resources(memory=memory)).metadata.name
        for image in ("redis", "Redis", "docker.io/redis:7", "x" * 300)
        for memory in ("128Mi", "256Mi")
    }
    assert len(names) == 8
    assert all(len(name) < 63 for name in names)
    assert not template_settled(None)


# ---------------------------------------------------------------- commands


async def test_commands(box: Box) -> None:
    result = await box.run("cat; echo no >&2; exit 3", stdin="hello")
    assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("hello", "no\n", 3, False)
    with pytest.raises(CommandFailedError, match=r"exit code 3: no\."):
        result.check()
    assert (await box.run(["printf", "%s", "a b; c"])).check().stdout == "a b; c"
    assert (await box.run("echo $A; pwd", env={"A": "1=2 3"}, cwd="/tmp")).stdout == "1=2 3\n/tmp\n"
    missing = await box.run(["nonesuch"])
    assert missing.exit_code == 127
    assert "nonesuch" in missing.stderr
    with pytest.raises(PermanentError, match="env"):
        await box.run("true", env={"=": "x"})


async def test_output_as_it_comes(box: Box) -> None:
    seen: list[str] = []
    result = await box.run("echo one; echo two >&2", on_stdout=seen.append, on_stderr=seen.append)
    assert sorted(seen) == ["one\n", "two\n"]
    assert result.stdout == "one\n"
    # The command waits for what is read in the middle of its output: nothing is held back until its end.
    async with contextlib.aclosing(box.stream("echo ready; sleep 60")) as chunks:
        first = await anext(chunks)
        assert (first.stream, first.text) == ("stdout", "ready\n")
    async with box.session("read line; echo got $line", stdin=True) as session:
        await session.write(b"it\n")
        assert [data async for _, data in session.output()] == [b"got it\n"]


async def test_a_command_that_does_not_end_in_time_is_ended(api: TestApi, box: Box) -> None:
    with pytest.raises(CommandTimeoutError, match=r"within 0\.3 s"):
        await box.run("echo begun; sleep 600", timeout=0.3)
    await asyncio.wait_for(api.contexts.sessions[-1].closed.wait(), DEADLINE_S)


async def test_what_is_done_in_a_box_that_is_gone(api: TestApi, client: AsyncClient, box: Box) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(box.run("echo x; sleep 600", on_stdout=lambda _: begun.set()))
    await begun.wait()
    await box.kill()
    await api.contexts.sessions[-1].close()
    with contextlib.suppress(BoxGoneError):  # or the command was seen to end
        await task
    for attempt in (box.run("true"), box.files.read("/x"), box.run_code("1"), box.fork(), box.context()):
        with pytest.raises(BoxGoneError, match="is no more"):
            await attempt


# ---------------------------------------------------------------- files


async def test_files(api: TestApi, box: Box) -> None:
    (api.contexts.root / "srv").mkdir()
    await box.files.write("/srv/note", "grüß dich", mode=0o600)
    await box.files.write("/srv/blob", bytes(range(256)) * 1000)
    assert await box.files.read_text("/srv/note") == "grüß dich"
    assert await box.files.read("/srv/blob") == bytes(range(256)) * 1000
    assert (api.contexts.root / "srv/note").stat().st_mode & 0o777 == 0o600
    with pytest.raises(MissingPathError):
        await box.files.read("/srv/nope")
    with pytest.raises(PermanentError, match="is no file"):
        await box.files.read("/srv")
    with pytest.raises(PermanentError):
        await box.files.write("/nowhere/x", b"")
    for bad in ("note", "", "/"):
        with pytest.raises(InvalidError, match="path"):
            await box.files.write(bad, b"")


async def test_listing(api: TestApi, box: Box) -> None:
    folder = api.contexts.root / "many"
    odd = ["a b", "-rf", "new\nline", ".hidden", "ü", "$(touch x)", "..dots"]
    for name in odd:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("x" * 7)
    (folder / "sub").mkdir(mode=0o750)
    (folder / "dangling").symlink_to("nowhere")
    found = {each.name: each for each in await box.files.list(str(folder))}
    assert set(found) == {*odd, "sub", "dangling"}
    assert (found["a b"].type, found["a b"].size) == ("file", 7)
    assert (found["sub"].type, found["sub"].mode, found["dangling"].type) == ("folder", 0o750, "link")
    assert found["ü"].modified == int((folder / "ü").stat().st_mtime)
    assert await box.files.list(str(folder / "sub")) == []
    with pytest.raises(MissingPathError):
        await box.files.list(str(folder / "nope"))
    await box.files.make_folder(str(folder / "deep/er"))
    await box.files.remove(str(folder))
    assert not folder.exists()


def test_a_listing_that_is_none() -> None:
    with pytest.raises(BrokenAnswerError):
        parse_listing("x y z/\n")


# ---------------------------------------------------------------- code


@pytest.fixture
async def interpreter(api: TestApi) -> AsyncIterator[None]:
    """The one that templates carry, in the place where boxes have it."""
    folder = (api.contexts.root / SOCKET.lstrip("/")).parent
    folder.mkdir(parents=True)
    shutil.copy(find_interpreter(), folder / "interpreter.py")
    process = await asyncio.create_subprocess_exec(sys.executable, str(folder / "interpreter.py"), "import json")
    while not (folder / "ready").exists():
        assert process.returncode is None
        await asyncio.sleep(0.02)
    yield
    process.kill()
    await process.wait()


async def test_code_keeps_its_variables(interpreter: None, box: Box) -> None:
    assert await box.run_code("x = 41") == CodeResult()
    assert (await box.run_code("x + 1")).text == "42"
    told: list[str] = []
    printed = await box.run_code("print('hello')", on_stdout=told.append)
    assert (printed.stdout, printed.text, "".join(told)) == ("hello\n", "", "hello\n")
    failed = await box.run_code("1 / 0")
    assert not failed.ok
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ("ZeroDivisionError", "division by zero")
    assert "Traceback" in failed.error.traceback
    assert (await box.run_code("'x' * 100_000")).text == repr("x" * 100_000)


async def test_code_that_does_not_end_is_interrupted(interpreter: None, box: Box) -> None:
    await box.run_code("x = 1")
    with pytest.raises(CommandTimeoutError):
        await box.run_code("while True: x = 2", timeout=0.3)
    assert (await box.run_code("x")).text == "2"
    assert (await box.run_code("import os; os.environ['A']", env={"A": "b"})).text == "'b'"


@pytest.mark.parametrize("sent", [b"\xff\xff\xff\xff", b"\0\0\0\1[", b"\0\0\0\2[]", b"\0\0\0\x20{", b"\0", b""])
async def test_answers_that_are_none(api: TestApi, box: Box, sent: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4)
        writer.write(sent)
        writer.close()

    path = api.contexts.root / SOCKET.lstrip("/")
    path.parent.mkdir(parents=True)
    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(BrokenAnswerError):
            await box.run_code("1")


async def test_a_box_without_an_interpreter(box: Box) -> None:
    with pytest.raises(MissingPathError, match="has no interpreter"):
        await box.run_code("1")


# ---------------------------------------------------------------- forks


async def test_children(api: TestApi, client: AsyncClient, box: Box) -> None:
    kids = await box.fork(3, ttl=60, keep=True)
    assert len({kid.name for kid in kids} | {box.name}) == 4
    assert (await kids[0].run("echo here")).stdout == "here\n"
    (grandchild,) = await kids[0].fork()
    assert (await grandchild.context()).spec.depth == 2
    assert api.forks.forks[0] == (box.uid, forks.ForkRequest(3, ttl_s=60, lifetime="keep"))
    for each in (*kids, grandchild):
        await each.kill()
    await api.lifeform("shop")
    (child,) = await client.fork("shop", ForkRequest(command=("sh", "-c", "x")))
    assert (await child.context()).spec.parent == "shop.main"


async def test_children_of_which_some_cannot_be(api: TestApi, box: Box) -> None:
    api.forks.room = 2
    with pytest.raises(ForkError, match="1 of 3 children could not be made: There is no room") as caught:
        await box.fork(3)
    assert caught.value.reason == "InsufficientCapacity"
    for child in caught.value.children:
        await child.kill()
    assert await boxes_of(api) == [box.name]


# ---------------------------------------------------------------- not asynchronous


async def test_the_twins(api: TestApi, interpreter: None) -> None:
    def work() -> None:
        with Client(api.admin) as client, client.box("py", ttl=60) as box:
            assert isinstance(box, SyncBox)
            assert box.run("echo hi").stdout == "hi\n"
            assert [chunk.text for chunk in box.stream("echo hi")] == ["hi\n"]
            assert box.run_code("6 * 7").text == "42"
            box.files.write("/note", b"x")
            assert box.files.read("/note") == b"x"
            assert box.context().metadata.uid == box.uid
            (kid,) = box.fork(1)
            assert kid.run("echo kid").stdout == "kid\n"
            kid.kill()
            with pytest.raises(BoxGoneError):
                kid.run("true")

    await asyncio.wait_for(asyncio.to_thread(work), DEADLINE_S)
    assert await boxes_of(api) == []

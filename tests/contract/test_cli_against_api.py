"""The command line as people call it, as a process of its own, against a real API over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.client.config import save
from primordia.ports.contexts import LogLine
from primordia.registry.events import EventRecorder
from primordia.testing.api import TestApi, running_api
from primordia.testing.cli import Cli, Done
from primordia.wire.meta import Condition
from primordia.wire.resources import Lifeform

WEB = """\
apiVersion: primordia.dev/v1alpha1
kind: Lifeform
metadata: {name: web, labels: {app: web}}
spec:
  contexts:
    - {name: main, image: busybox}
"""


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    folder = tmp_path / "server"
    folder.mkdir()
    async with running_api(folder) as running:
        yield running


@pytest.fixture
async def cli(api: TestApi, tmp_path: Path) -> Cli:
    save(tmp_path / "config", api.admin)
    (tmp_path / "here").mkdir()
    return Cli(tmp_path / "here", tmp_path / "config")


async def test_apply_get_delete(cli: Cli) -> None:
    assert await cli.good("apply", "-f", "-", stdin=WEB) == "lifeform/web created\n"
    assert await cli.good("apply", "-f", "-", stdin=WEB) == "lifeform/web unchanged\n"
    changed = WEB.replace("app: web", "app: shop")
    assert await cli.good("apply", "-f", "-", "--dry-run", stdin=changed) == "lifeform/web configured (dry run)\n"
    assert await cli.good("apply", "-f", "-", stdin=changed) == "lifeform/web configured\n"
    table = (await cli.good("get", "lf")).splitlines()
    assert table[0].startswith("NAME") and table[1].startswith("web")
    assert (await cli.good("get", "lf", "-A", "--no-headers")).startswith("default")
    assert await cli.good("get", "lf", "-o", "name") == "lifeform/web\n"
    assert await cli.good("get", "lf", "-l", "app=web", "-o", "name") == ""
    listed = msgspec.json.decode(await cli.good("get", "lf", "-o", "json"))
    assert [item["metadata"]["name"] for item in listed["items"]] == ["web"]
    one = msgspec.json.decode(await cli.good("get", "lf/web", "-o", "json"))
    assert list(one)[:4] == ["apiVersion", "kind", "metadata", "spec"]
    # What `get -o yaml` gives can be applied again.
    await cli.good("apply", "-f", "-", stdin=await cli.good("get", "lf", "web", "-o", "yaml"))
    assert await cli.good("delete", "lf", "web", "--no-wait") == "lifeform/web is being deleted\n"


async def test_wide_has_more_columns_and_an_empty_list_says_so(cli: Cli) -> None:
    done = await cli("get", "lf")
    assert (done.code, done.out) == (0, "")
    assert done.err == "No lifeforms found in namespace default.\n"
    await cli.good("apply", "-f", "-", stdin=WEB)
    plain, wide = await cli.good("get", "lf"), await cli.good("get", "lf", "-o", "wide")
    assert len(wide.splitlines()[0].split()) > len(plain.splitlines()[0].split())


async def test_every_wrong_field_is_named_with_its_file(cli: Cli) -> None:
    (cli.folder / "web.yaml").write_text(WEB.replace("image: busybox", "image: busybox, resources: {memory: 12Q}, imagee: x"))
    said = await cli.bad("apply", "-f", "web.yaml")
    assert "web.yaml" in said
    assert "spec.contexts[0]" in said


async def test_errors_are_one_line_with_a_remedy(cli: Cli, api: TestApi, tmp_path: Path) -> None:
    assert "missing" in await cli.bad("get", "lf", "missing")
    assert "Did you mean" in await cli.bad("get", "lifefroms")
    assert "web.yaml" in await cli.bad("apply", "-f", "web.yaml")
    assert "--for" in await cli.bad("wait", "lf/web", "--for", "sunshine")
    assert "everything" in await cli.bad("delete", "lf")
    cli.env["PRIMORDIA_CONFIG"] = str(tmp_path / "nowhere")
    assert "primordia up" in await cli.bad("get", "lf")
    (tmp_path / "broken").write_text("{]")
    cli.env["PRIMORDIA_CONFIG"] = str(tmp_path / "broken")
    assert "is not a config" in await cli.bad("status")
    save(tmp_path / "stranger", api.nobody)
    cli.env["PRIMORDIA_CONFIG"] = str(tmp_path / "stranger")
    await cli.bad("get", "lf")


async def test_nobody_answers(cli: Cli, api: TestApi) -> None:
    await api.server.stop()
    said = await cli.bad("get", "lf")
    assert "No soup answers" in said
    assert "primordia up" in said


async def test_wait_for_a_condition_that_comes_and_one_that_does_not(cli: Cli, api: TestApi) -> None:
    await cli.good("apply", "-f", "-", stdin=WEB)
    waiting = asyncio.create_task(cli("wait", "lf/web", "--for", "condition=Ready", "--timeout", "50"))

    def ready(obj: Lifeform) -> Lifeform:
        condition = Condition(type="Ready", status="True")
        return msgspec.structs.replace(obj, status=msgspec.structs.replace(obj.status, conditions=(condition,)))

    await asyncio.sleep(0.3)
    await api.registry.mutate(Lifeform, "web", "default", ready, status=True)
    done = await waiting
    assert (done.code, done.out) == (0, "lifeform/web condition Ready met\n")
    said = await cli.bad("wait", "lf/web", "--for", "phase=Suspended", "--timeout", "200ms")
    assert "did not get there" in said
    # What does not exist is gone already.
    assert (await cli("wait", "lf/other", "--for", "delete")).code == 0


async def test_watch_shows_changes_until_interrupted(cli: Cli, api: TestApi) -> None:
    watching = await cli.start("get", "lf", "-w")
    assert watching.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert (await watching.stdout.readline()).startswith(b"NAME")
            await api.lifeform("shop")
            assert (await watching.stdout.readline()).startswith(b"shop")
            watching.send_signal(signal.SIGINT)
            _, err = await watching.communicate()
        assert (watching.returncode, err) == (130, b"")
    finally:
        with contextlib.suppress(ProcessLookupError):
            watching.kill()


async def test_describe_and_events(cli: Cli, api: TestApi) -> None:
    await cli.good("apply", "-f", "-", stdin=WEB)
    recorder = EventRecorder(api.registry, "node", "n1")
    recorder.record(await api.registry.get(Lifeform, "web", "default"), "Unschedulable", "0/1 nodes fit.", warning=True)
    recording = asyncio.create_task(recorder.run())
    try:
        async with asyncio.timeout(60):
            said = ""
            while "Unschedulable" not in said:
                said = await cli.good("describe", "lf", "web")
    finally:
        recording.cancel()
        await asyncio.wait([recording])
    assert "Context main" in said and "busybox" in said
    assert "0/1 nodes fit." in await cli.good("events", "lf/web")
    assert "Unschedulable" in await cli.good("events")
    assert "Unschedulable" in await cli.good("status")


# ---------------------------------------------------------------- inside


async def test_exec_gives_streams_and_exit_code(cli: Cli, api: TestApi) -> None:
    await api.lifeform("shop")
    done = await cli("exec", "shop", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert done == Done(7, "out\n", "err\n")
    assert (await cli("exec", "-i", "shop/main", "--", "cat", stdin="typed")).out == "typed"
    missing = await cli("exec", "shop", "--", "/no/such/program")
    assert missing.code == 127
    assert missing.err.startswith("error: ")


async def test_exec_takes_a_file_as_its_input(cli: Cli, api: TestApi) -> None:
    """A regular file cannot be waited for by epoll."""
    await api.lifeform("shop")
    (cli.folder / "big").write_bytes(b"x" * 300_000)
    with (cli.folder / "big").open() as file:
        process = await cli.start("exec", "-i", "shop", "--", "wc", "-c", stdin=file.fileno())
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    assert out.strip() == b"300000"


async def test_exec_with_a_terminal(cli: Cli, api: TestApi) -> None:
    await api.lifeform("shop")
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "primordia.cli.main", "exec", "-it", "shop", "--", "/bin/sh"),
        env=cli.env,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    os.set_blocking(leader, False)
    seen = bytearray()
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(leader, readable.set)

    async def until(words: bytes) -> None:
        async with asyncio.timeout(60):
            while words not in seen:
                await readable.wait()
                readable.clear()
                with contextlib.suppress(OSError):
                    seen.extend(os.read(leader, 4096))

    try:
        os.write(leader, b"echo term''inal; exit 3\n")
        await until(b"terminal\r\n")
        async with asyncio.timeout(60):
            assert await process.wait() == 3
    finally:
        loop.remove_reader(leader)
        os.close(leader)
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def test_a_terminal_that_is_none(cli: Cli, api: TestApi) -> None:
    await api.lifeform("shop")
    assert "-t" in await cli.bad("exec", "-it", "shop", "--", "sh")


async def test_logs(cli: Cli, api: TestApi) -> None:
    await api.lifeform("shop")
    api.contexts.lines += [LogLine("2026-01-01T00:00:00Z", text) for text in (b"one", b"two", b"three")]
    assert await cli.good("logs", "shop") == "one\ntwo\nthree\n"
    assert await cli.good("logs", "shop", "--tail", "1") == "three\n"
    assert (await cli.good("logs", "shop", "--tail", "1", "--timestamps")).startswith("2026-01-01T00:00:00Z three")
    assert "negative" in await cli.bad("logs", "shop", "--tail", "-1")
    following = await cli.start("logs", "-f", "shop")
    assert following.stdout is not None
    async with asyncio.timeout(60):
        for word in (b"one\n", b"two\n", b"three\n"):
            assert await following.stdout.readline() == word
        following.send_signal(signal.SIGINT)
        _, err = await following.communicate()
    assert (following.returncode, err) == (130, b"")


async def test_cp_both_ways(cli: Cli, api: TestApi) -> None:
    await api.lifeform("shop")
    inside = api.contexts.root
    (cli.folder / "data" / "deep").mkdir(parents=True)
    (cli.folder / "data" / "deep" / "a").write_text("content")
    (inside / "srv").mkdir()
    await cli.good("cp", "data", "shop:/srv/")
    assert (inside / "srv" / "data" / "deep" / "a").read_text() == "content"
    await cli.good("cp", "data", "shop:/srv/other")
    assert (inside / "srv" / "other" / "deep" / "a").read_text() == "content"
    await cli.good("cp", "data/deep/a", "shop/main:/srv/renamed")
    assert (inside / "srv" / "renamed").read_text() == "content"
    await cli.good("cp", "shop:/srv/data", ".")
    await cli.good("cp", "shop:/srv/renamed", "back")
    assert (cli.folder / "back").read_text() == "content"
    await cli.good("cp", "shop:/srv", "whole")
    assert (cli.folder / "whole" / "other" / "deep" / "a").read_text() == "content"


async def test_cp_errors(cli: Cli, api: TestApi) -> None:
    await api.lifeform("shop")
    assert "missing" in await cli.bad("cp", "shop:/missing", ".")
    assert "missing" in await cli.bad("cp", "missing", "shop:/")
    assert "One of the two" in await cli.bad("cp", "a", "b")
    assert "no folder" in await cli.bad("cp", "shop:/", "not/there")


# ---------------------------------------------------------------- run, image, node, version


async def test_run_detached_with_a_dry_run_first(cli: Cli) -> None:
    manifest = await cli.good("run", "-d", "--name", "web", "--dry-run", "busybox", "--", "sleep", "9")
    assert "created" in await cli.good("apply", "--dry-run", "-f", "-", stdin=manifest)
    said = await cli.bad("run", "-d", "--name", "web", "--timeout", "300ms", "busybox")
    assert "did not get there" in said
    assert "already" in (await cli.bad("run", "-d", "--name", "web", "busybox")).lower()
    assert "exclude" in await cli.bad("run", "-d", "--rm", "busybox")


async def test_images(cli: Cli) -> None:
    assert "is being made" in await cli.good("image", "build", "redis", "--no-wait")
    spec = await cli.good("image", "inspect", "redis")
    assert "redis-server" in spec
    assert "--packages" in await cli.bad("image", "build", "unknown-thing", "--no-wait")
    await cli.good("image", "build", "mine", "--packages", "redis-server", "--cmd", "redis-server --port 1", "--no-wait")
    mine = msgspec.json.decode(await cli.good("get", "image", "mine", "-o", "json"))
    assert mine["spec"]["config"]["cmd"] == ["redis-server", "--port", "1"]
    await cli.good("image", "pull", "host:5000/team/app:v2", "--no-wait")
    names = (await cli.good("image", "ls", "-o", "name")).split()
    assert names == ["image/app-v2", "image/mine", "image/redis"]


async def test_version_with_and_without_a_soup(cli: Cli, api: TestApi) -> None:
    both = msgspec.json.decode(await cli.good("version", "-o", "json"))
    assert both["client"]["version"] and both["server"]
    await api.server.stop()
    alone = await cli("version")
    assert alone.code == 0
    assert "none: No soup answers" in alone.out


async def test_a_pipe_that_closes_is_quiet(cli: Cli, api: TestApi) -> None:
    for number in range(50):
        await api.lifeform(f"shop-{number}")
    process = await cli.start("get", "lf", "-o", "json")
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert await process.wait() == 0

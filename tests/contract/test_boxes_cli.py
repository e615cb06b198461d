"""Templates, boxes and forks on the command line, as a process of its own, against a real API over TLS."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.client.config import save
from primordia.testing.api import TestApi, connected, running_api
from primordia.testing.cli import Cli
from primordia.wire.resources import Context, Lifeform, Template, TemplateStatus

DEADLINE_S = 60


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    folder = tmp_path / "server"
    folder.mkdir()
    async with running_api(folder) as running:
        await running.template("py", image="python")
        yield running


@pytest.fixture
async def cli(api: TestApi, tmp_path: Path) -> Cli:
    save(tmp_path / "config", api.admin)
    (tmp_path / "here").mkdir()
    return Cli(tmp_path / "here", tmp_path / "config")


async def settle(api: TestApi, name: str, status: TemplateStatus) -> None:
    """Be the node that makes the template, once it is asked for."""
    async with connected(api.admin) as client:
        template = await client.wait(Template, name, lambda obj: obj is not None)
    assert template is not None
    await api.registry.update_status(msgspec.structs.replace(template, status=status))


async def contexts(api: TestApi) -> list[str]:
    return [each.metadata.name for each in (await api.registry.list(Context)).items]


async def test_templates(cli: Cli, api: TestApi) -> None:
    flags = ("--image", "python", "--memory", "256Mi", "--warm", "2:8", "-e", "A=b", "--user", "nobody", "--workdir", "/srv")
    (cli.folder / "warm.py").write_text("import json\n")
    assert "is being made" in await cli.good("template", "create", "warm", *flags, "--python", "@warm.py", "--no-wait")
    made = await api.registry.get(Template, "warm")
    assert made.spec.warm_up is not None
    assert (made.spec.warm_up.python, made.spec.warm.most, made.spec.resources.memory) == ("import json\n", 8, "256Mi")
    assert "is being made" in await cli.good("template", "create", "c", "--image", "x", "--warm-up", "a 'b c'", "--no-wait")
    command = (await api.registry.get(Template, "c")).spec.warm_up
    assert command is not None and command.command == ("a", "b c")
    assert "exclude" in await cli.bad("template", "create", "c", "--image", "x", "--warm-up", "a", "--python", "b")
    assert "MIN:MAX" in await cli.bad("template", "create", "c", "--image", "x", "--warm", "many")
    assert "spec.warm.max" in await cli.bad("template", "create", "c", "--image", "x", "--warm", "3:2")
    table = await cli.good("template", "ls")
    assert table.splitlines()[0] == (await cli.good("get", "templates")).splitlines()[0]
    assert [line.split()[0] for line in table.splitlines()] == ["NAME", "c", "py", "warm"]
    told = await cli.good("template", "describe", "warm")
    assert "python: import json" in told and "2 to 8 on each node" in told
    assert "not frozen yet" not in told
    assert await cli.good("template", "rm", "c", "warm") == "template/c removed\ntemplate/warm removed\n"
    assert "does not exist" in await cli.bad("template", "rm", "nope")


async def test_a_template_that_is_waited_for(cli: Cli, api: TestApi) -> None:
    async def told(name: str, status: TemplateStatus) -> str:
        process = await cli.start("template", "create", name, "--image", "x")
        async with asyncio.timeout(DEADLINE_S):
            await settle(api, name, status)
            out, err = await process.communicate()
        return (out + err).decode()

    assert "template/good ready" in await told("good", TemplateStatus(phase="Ready", observed_generation=1))
    failed = TemplateStatus(phase="Failed", observed_generation=1, message="The warm-up ended with exit code 1.")
    assert "exit code 1" in await told("bad", failed)
    manifest = "apiVersion: primordia.dev/v1alpha1\nkind: Template\nmetadata: {name: good}\nspec: {image: x}\n"
    # The fields that `create` gave and the manifest does not are taken away: the spec is the same, and so is what is Ready.
    assert "template/good configured" in await cli.good("apply", "-f", "-", "--wait", stdin=manifest)
    assert "used by template py" in await cli.bad("image", "rm", "python")


async def test_fork(cli: Cli, api: TestApi) -> None:
    parent = await api.lifeform("shop")
    api.forks.room = 2
    done = await cli("fork", "shop", "--count", "3", "--ttl", "10m", "--keep", "--inherit-secrets", "--", "sh", "-c", "x; y")
    assert done.code == 1
    head, *rows = done.out.splitlines()
    assert head.split() == ["CHILD", "CONFIRMED", "OUTCOME"]
    assert [row.split()[1:3] for row in rows[:2]] == [["10.0", "ms"], ["11.0", "ms"]]
    assert rows[2].split()[0] == "<none>" and "no room" in rows[2]
    assert "stood still for 2.5 ms, 4.0 KiB" in done.err
    uid, asked = api.forks.forks[-1]
    assert (uid, asked.count, asked.ttl_s, asked.lifetime, asked.inherit_secrets) == (parent.metadata.uid, 3, 600, "keep", True)
    assert asked.program is not None and asked.program.argv == ("sh", "-c", "x; y")
    api.forks.room = 1000
    for target in ("shop/main", "context/shop.main", "shop.main"):
        (child,) = (await cli.good("fork", target, "-q")).split()
        assert (await api.registry.get(Context, child, "default")).spec.parent == "shop.main"
    report = msgspec.json.decode(await cli.good("fork", f"context/{child}", "-o", "json"))
    assert report["pauseMs"] == 2.5
    grandchild = report["children"][0]["name"]
    row = next(line for line in (await cli.good("get", "ctx")).splitlines() if line.startswith(grandchild))
    assert child in row.split()
    assert "2 forks deep" in await cli.good("describe", "ctx", grandchild)
    assert "EXPIRES" in (await cli.good("get", "ctx", "-o", "wide")).splitlines()[0]
    assert "does not exist" in await cli.bad("fork", "nope")
    assert "count" in await cli.bad("fork", "shop", "--count", "0")
    assert "Lifeform shop" in await cli.bad("delete", "context", "shop.main")
    assert await cli.good("delete", "context", grandchild) == f"context/{grandchild} deleted\n"


async def test_commands_logs_and_files_of_a_box(cli: Cli, api: TestApi) -> None:
    said = await cli.good("run", "-d", "--template", "py", "--name", "mine", "--ttl", "10m", "-l", "a=b")
    assert said == "context/mine is running\n"
    for name in ("mine", "context/mine", "ctx/mine"):
        assert await cli.good("exec", name, "--", "echo", "hi") == "hi\n"
    assert await cli.good("logs", "mine") == ""
    (cli.folder / "note").write_text("x")
    await cli.good("cp", "note", "mine:/note")
    await cli.good("cp", "context/mine:/note", "back")
    assert (cli.folder / "back").read_text() == "x"
    told = await cli.good("describe", "context", "mine")
    assert "Template:" in told and "a fork made for it" in told and "clock, entropy" in told
    assert "Lifeform default/nope does not exist" in await cli.bad("exec", "nope", "--", "true")
    assert "names no context" in await cli.bad("exec", "context/a/b", "--", "true")
    assert await cli.good("delete", "context/mine") == "context/mine deleted\n"


async def test_one_command_in_a_box_of_its_own(cli: Cli, api: TestApi) -> None:
    done = await cli("run", "--rm", "--template", "py", "-e", "A=1", "--", "sh", "-c", "echo $A; exit 7")
    assert (done.code, done.out) == (7, "1\n")
    assert (await cli.good("run", "--rm", "--template", "py", "-i", "--", "cat", stdin="hello")) == "hello"
    assert await contexts(api) == []
    done = await cli("run", "--template", "py", "--name", "mine", "--", "true")
    assert "delete it with: primordia delete context mine" in done.err
    assert await contexts(api) == ["mine"]
    # Of an image: its plain template is made on the way.
    process = await cli.start("run", "--rm", "busybox", "--", "echo", "there")
    async with asyncio.timeout(DEADLINE_S):
        await settle(api, "plain-busybox", TemplateStatus(phase="Ready", observed_generation=1))
        out, err = await process.communicate()
    assert (process.returncode, out) == (0, b"there\n"), err
    assert await contexts(api) == ["mine"]
    assert "plain-busybox" not in await cli.good("template", "ls")
    assert "plain-busybox" in await cli.good("template", "ls", "--all")
    assert "plain-busybox" in await cli.good("get", "templates")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_box_ends_with_who_ran_it(cli: Cli, api: TestApi, number: int) -> None:
    process = await cli.start("run", "--rm", "--template", "py", "--", "sh", "-c", "echo begun; sleep 600")
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        assert await process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert await contexts(api) == []


async def test_what_a_box_has_not(cli: Cli) -> None:
    for words, said in (
        (("--template", "py", "busybox"), "exclude"),
        (("--template", "py", "-p", "80:80"), "no --publish"),
        (("--template", "py", "--secret", "a:/b"), "no --secret"),
        (("--template", "py", "--dry-run"), "no --dry-run"),
        (("--template", "py", "-d", "--rm"), "exclude"),
        (("--template", "py", "-d", "--", "x"), "exec"),
        (("--template", "nope", "--", "x"), "template create nope"),
        ((), "Name an image"),
        (("-d", "--ttl", "5s", "busybox"), "--ttl"),
    ):
        assert said in await cli.bad("run", *words)


async def test_a_fork_is_promoted(api: TestApi, cli: Cli) -> None:
    made = (await cli.good("run", "--template", "py", "--name", "job", "-d", "-q")).strip()
    child = (await cli.good("fork", f"context/{made}", "-q")).strip()
    told = await cli.good("promote", child, "kept", "--no-wait")
    assert told == "lifeform/kept is starting on n1, with volume kept.main (4.0 KiB)\n"
    assert (await api.registry.get(Lifeform, "kept", "default")).spec.contexts[0].name == "main"
    assert child not in (await cli.good("get", "ctx", "-o", "name"))
    assert "is not a name of lower-case letters" in await cli.bad("promote", made, "Not_This")
    assert "does not exist" in await cli.bad("promote", "nobody", "kept2")

"""Boxes and forks as their users have them, on a real soup: the command line, the Python client, a warmed interpreter."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primordia.bench import templates
from primordia.client import BoxGoneError, CommandTimeoutError, MissingPathError, connect, deleted
from primordia.host import leftovers
from primordia.kit import ids
from primordia.testing.cli import Cli
from primordia.wire.resources import Context

DEADLINE_S = 300
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and cgroups")


@pytest.fixture
async def cli(tmp_path: Path) -> AsyncIterator[Cli]:
    soup = f"boxes-{ids.suffix()}"
    cli = Cli(tmp_path, tmp_path / "config", within_s=DEADLINE_S)
    cli.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        await cli.good("up", "--soup", soup, "-q")
        yield cli
    finally:
        await cli("down", "--soup", soup, "--destroy", "--yes", "-q")
    assert [leak for leak in await leftovers.look() if soup in f"{leak.name} {leak.detail}"] == []


async def test_a_box_its_code_and_its_children(cli: Cli, tmp_path: Path) -> None:
    await cli.good("template", "create", "py", "--image", "python", "--python", "import json, random", "--warm", "1", "-q")
    done = await cli("run", "--rm", "-q", "--template", "py", "-e", "A=7", "--", "sh", "-c", "echo $A; exit 3")
    assert (done.code, done.out) == (3, "7\n")
    async with asyncio.timeout(DEADLINE_S), connect(tmp_path / "config") as soup:
        await templates.full(soup, "py", 1)
        async with soup.box("py", name="mine", ttl=600) as box:
            assert box.warm
            # Threads are numbered: its interpreter ran two requests of our own while it waited.
            assert (await box.run_code("import threading; threading.Thread().name")).text == "'Thread-7'"
            assert await cli.good("exec", "mine", "--", "echo", "hi") == "hi\n"
            assert "Expires" in await cli.good("describe", "context", "mine")
            assert (await box.run_code("x = 41; json.dumps(x + 1)")).text == "'42'"
            with pytest.raises(CommandTimeoutError):
                await box.run_code("while True: pass", timeout=1)
            await box.files.write("/tmp/note", "kept")
            assert [each.name for each in await box.files.list("/tmp")] == ["note"]
            with pytest.raises(MissingPathError):
                await box.files.read("/tmp/nope")
            kids = await box.fork(2)
            everybody = (box, *kids)
            code = "(x, open('/tmp/note').read(), random.random(), open('/proc/sys/kernel/random/boot_id').read())"
            answers = [eval((await each.run_code(code)).text) for each in everybody]
            assert [answer[:2] for answer in answers] == [(41, "kept")] * 3
            assert len({answer[2] for answer in answers}) == len({answer[3] for answer in answers}) == 3
            names = [(await each.run("hostname")).stdout.strip() for each in everybody]
            assert len(set(names)) == 3
            contexts = [await each.context() for each in kids]
            assert {(each.spec.parent, each.spec.depth) for each in contexts} == {("mine", 1)}
            assert all({"entropy", "network", "thawed"} <= set(each.status.confirmed) for each in contexts)
        for each in everybody:  # the children end with their parent
            await soup.wait(Context, each.name, deleted, timeout_s=60)
        with pytest.raises(BoxGoneError):
            await box.run("true")

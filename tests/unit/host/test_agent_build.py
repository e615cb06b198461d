"""Compiling the agent: cached by its sources, explained when the machine cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from primordia.host import agent_build
from primordia.kit.command import run
from primordia.kit.errors import PermanentError, UnsupportedError


def test_the_sources_are_found_and_named_by_their_content(tmp_path: Path) -> None:
    sources = agent_build.find_sources()
    copy = shutil.copytree(sources, tmp_path / "guest")
    assert agent_build.source_hash(copy) == agent_build.source_hash(sources)
    (copy / "loop.h").write_text((copy / "loop.h").read_text() + "\n")
    assert agent_build.source_hash(copy) != agent_build.source_hash(sources)


async def test_the_agent_is_static_and_compiled_once(tmp_path: Path) -> None:
    agent = await agent_build.ensure_agent(tmp_path)
    headers = await run(["readelf", "--program-headers", str(agent)])
    assert b"LOAD" in headers.stdout
    assert b"INTERP" not in headers.stdout
    stamp = agent.stat().st_mtime_ns
    assert (await agent_build.ensure_agent(tmp_path)).stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [agent]


async def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="Install gcc and libc6-dev"):
        await agent_build.build_agent(tmp_path / "agent")


@pytest.mark.parametrize(
    ("complaint", "kind", "words"),
    [
        ("/usr/bin/ld: cannot find -lc", UnsupportedError, "Install libc6-dev"),
        ("fatal error: stdio.h: No such file", UnsupportedError, "Install libc6-dev"),
        ("No space left on device", PermanentError, "No space left"),
    ],
)
async def test_a_failing_compiler_is_explained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str, kind: type[PermanentError], words: str
) -> None:
    gcc = tmp_path / "bin" / "gcc"
    gcc.parent.mkdir()
    gcc.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(gcc.parent))
    with pytest.raises(kind, match=words):
        await agent_build.build_agent(tmp_path / "out" / "agent")
    assert list((tmp_path / "out").iterdir()) == []

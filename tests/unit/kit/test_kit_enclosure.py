"""Enclosed programs: the command, and that nothing of them outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from primordia.kit.command import CommandError, run
from primordia.kit.enclosure import enclosed_argv, mounts_can_be_own, root_is_mounted

DEADLINE_S = 60


def test_a_plain_chroot_has_no_mount_point_at_its_root() -> None:
    assert root_is_mounted("23 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n")
    assert not root_is_mounted("40 23 0:21 / /proc rw - proc proc rw\n")


def test_the_command_dies_with_its_caller() -> None:
    argv = enclosed_argv(["make", "it"])
    assert argv[:4] == ["setpriv", "--pdeathsig", "KILL", "--"]
    assert {"--mount", "--pid", "--fork", "--kill-child=KILL"} <= set(argv)
    assert argv[-3:] == ["--", "make", "it"]


OWN = pytest.mark.skipif(os.geteuid() != 0 or not mounts_can_be_own(), reason="needs root and a / that is a mount point")


@pytest.fixture
def stays(tmp_path: Path) -> tuple[list[str], Path]:
    """A program that mounts, and whose child is in a session of its own; with a pipe that both hold open."""
    place, pipe = tmp_path / "place", tmp_path / "pipe"
    place.mkdir()
    os.mkfifo(pipe)
    script = f"exec >{pipe}; mount -t tmpfs tmpfs {place}; setsid sleep 3600 & echo $$; wait"
    return enclosed_argv(["sh", "-c", script]), pipe


async def first_words(pipe: Path) -> tuple[BinaryIO, bytes]:
    reader = await asyncio.to_thread(pipe.open, "rb")
    return reader, await asyncio.to_thread(reader.readline)


@OWN
async def test_a_cancelled_one_leaves_no_process_and_mounts_are_never_seen_outside(stays: tuple[list[str], Path]) -> None:
    argv, pipe = stays
    task = asyncio.create_task(run(argv, timeout_s=DEADLINE_S))
    async with asyncio.timeout(DEADLINE_S):
        reader, words = await first_words(pipe)
        with reader:
            assert words == b"1\n", "it is the first of its processes"
            assert str(pipe.parent) not in Path("/proc/self/mountinfo").read_text()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(reader.read) == b"", "whoever held the pipe is gone"


@OWN
async def test_one_whose_caller_is_killed_ends_with_it(stays: tuple[list[str], Path]) -> None:
    argv, pipe = stays
    caller = "import asyncio, sys; from primordia.kit.command import run; asyncio.run(run(sys.argv[1:]))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", caller, *argv)
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, words = await first_words(pipe)
            with reader:
                assert words == b"1\n"
                process.kill()
                assert await asyncio.to_thread(reader.read) == b""
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@OWN
async def test_its_words_and_its_exit_code_are_its_own() -> None:
    with pytest.raises(CommandError, match="exit code 7: no such thing") as caught:
        await run(enclosed_argv(["sh", "-c", "echo no such thing >&2; exit 7"]))
    assert caught.value.status == 7

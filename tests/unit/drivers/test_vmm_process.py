"""Processes that outlive us, run folders, and the bounded standard error."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.process import Process, launch, spawn
from primordia.drivers.vmm_qemu.tsc import host_tsc_khz

DEADLINE_S = 60.0


def start(run_dir: Path, code: str, *arguments: str, inherit: tuple[int, ...] = ()) -> Process:
    argv = [sys.executable, "-I", "-S", "-c", code, *arguments]
    return Process(spawn(argv, env={"A": "b"}, stderr=str(run_dir / rundir.STDERR), inherit=inherit))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


async def ended(process: Process) -> int | None:
    async with asyncio.timeout(DEADLINE_S):
        status = await process.wait()
    process.close()
    return status


async def test_exit_codes_and_signals(folder: Path) -> None:
    stderr = rundir.prepare(folder)
    assert await ended(start(folder, "raise SystemExit(7)")) == 7
    killed = start(folder, "import time; time.sleep(600)")
    killed.kill()
    assert await ended(killed) == -signal.SIGKILL
    os.close(stderr)


async def test_a_session_environment_and_descriptors_of_its_own(folder: Path) -> None:
    stderr = rundir.prepare(folder)
    reading, writing = os.pipe()
    code = """
import os, sys
seen = (os.getsid(0) == os.getpid(), os.environ["A"], "PATH" in os.environ)
os.write(int(sys.argv[1]), repr(seen).encode())
"""
    process = start(folder, code, str(writing), inherit=(writing,))
    os.close(writing)
    assert await ended(process) == 0
    assert os.read(reading, 100) == b"(True, 'b', False)"
    os.close(reading)
    os.close(stderr)


@pytest.mark.parametrize(
    ("told", "code"),
    [("os.write(tell, str(os.posix_spawn('/bin/sleep', ['sleep', '600'], {})).encode())", 0), ("pass", 5)],
)
async def test_who_was_launched_is_told_or_is_itself(folder: Path, told: str, code: int) -> None:
    stderr = rundir.prepare(folder)
    program = f"""
import os, sys, time
tell = int(os.environ["LAUNCH_TELL"])
os.set_inheritable(tell, False)
{told}
os.close(tell)
if {code}:
    time.sleep(600)
"""
    argv = [sys.executable, "-I", "-S", "-c", program]
    pid = await launch(argv, env={}, stderr=str(folder / rundir.STDERR), inherit=())
    while not (line := Path(f"/proc/{pid}/cmdline").read_bytes()):  # noqa: ASYNC110 (a moment into its exec it has none)
        await asyncio.sleep(0.01)
    assert line.split(b"\0")[0] == (b"sleep" if code == 0 else os.fsencode(sys.executable))
    os.kill(pid, signal.SIGKILL)
    os.close(stderr)


async def test_a_flood_on_standard_error_is_bounded_and_blocks_nobody(folder: Path) -> None:
    stderr = rundir.prepare(folder)
    code = """
import os
os.write(2, b"first words\\n")
refused = 0
for _ in range(4096):
    try:
        os.write(2, b"x" * 1024)
    except BlockingIOError:
        refused += 1
raise SystemExit(0 if refused else 1)
"""
    assert await ended(start(folder, code)) == 0
    words = rundir.read_stderr(stderr)
    assert words.startswith("first words\n")
    assert len(words) <= 65536
    assert rundir.read_stderr(stderr) == ""
    os.close(stderr)


async def test_a_pid_alone_is_not_believed(folder: Path) -> None:
    stderr = rundir.prepare(folder)
    process = start(folder, "import time; time.sleep(600)")
    found = Process.find(process.identity)
    assert found is not None
    found.close()
    assert Process.find(replace(process.identity, start_ticks=process.identity.start_ticks + 1)) is None
    assert Process.find(replace(process.identity, boot_id="another")) is None
    process.kill()
    assert await ended(process) == -signal.SIGKILL
    assert Process.find(process.identity) is None
    os.close(stderr)


def test_sockets_work_in_folders_with_long_paths(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / "run"
    stderr = rundir.prepare(deep)
    with rundir.listen(deep, rundir.AGENT) as listener, rundir.connect(deep, rundir.AGENT) as connection:
        accepted, _ = listener.accept()
        with accepted:
            connection.send(b"hello")
            assert accepted.recv(5) == b"hello"
    os.close(stderr)
    rundir.clear(deep)
    assert not deep.exists()


def test_clearing_keeps_what_is_not_ours(tmp_path: Path) -> None:
    stderr = rundir.prepare(tmp_path / "run")
    os.close(stderr)
    (tmp_path / "run" / "other").touch()
    rundir.clear(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["other"]


def test_a_file_that_poses_as_standard_error_is_not_read(tmp_path: Path) -> None:
    (tmp_path / rundir.STDERR).write_text("not a pipe")
    assert rundir.open_stderr(tmp_path) == -1
    assert rundir.read_stderr(-1) == ""


def test_the_counters_frequency_is_plausible() -> None:
    assert 200_000 < host_tsc_khz() < 10_000_000
    assert host_tsc_khz() == host_tsc_khz()

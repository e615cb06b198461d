"""What becomes QEMU: in its cgroups, with its descriptors alone, and with nothing that it could gain a privilege by."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.argv import launch_argv
from primordia.drivers.vmm_qemu.process import Process, launch
from primordia.host.agent_build import ensure_launcher
from primordia.kit import cgroup

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives privileges up, which needs some")

OWNER = 1_700_000_001


@pytest.fixture
async def launcher(tmp_path: Path) -> str:
    return str(await ensure_launcher(tmp_path))


def start(launcher: str, *command: str, owner: int = OWNER, groups: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """With three descriptors handed over, of which it may keep one."""
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    for descriptor in opened:
        os.set_inheritable(descriptor, True)
    try:
        argv = launch_argv(launcher, owner, (opened[1],), groups, command)
        return subprocess.run(argv, capture_output=True, text=True, pass_fds=opened, check=False, timeout=60)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def children_of(pid: int) -> list[str]:
    pids = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return [Path(f"/proc/{each}/comm").read_text().strip() for each in pids]


def until_it_sleeps(pid: int) -> None:
    """Until it is the program: the launcher names that in its own words as well."""
    for _ in range(6000):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sleep\0"):
            return
        time.sleep(0.01)


async def test_it_is_born_into_its_cgroups(launcher: str, tmp_path: Path) -> None:
    """Into that of v2 as a child of ours, whose pid it tells; the others it enters."""
    name = f"primordia-test-launch-{os.getpid()}"
    stderr = rundir.prepare(tmp_path / "run")
    cgroup.make(name)
    try:
        argv = launch_argv(launcher, OWNER, (), cgroup.procs_files(name), ("/bin/sleep", "600"))
        errors = str(tmp_path / "run" / rundir.STDERR)
        process = Process(await launch(argv, env={"A": "b"}, stderr=errors, inherit=()))
        pid = process.identity.pid
        for file in cgroup.procs_files(name):
            assert file.read_text().split() == [str(pid)]
        environment = Path(f"/proc/{pid}/environ")
        await asyncio.to_thread(until_it_sleeps, pid)
        assert environment.read_bytes() == b"A=b\0"
        assert sorted(file.name for file in Path(f"/proc/{pid}/fd").iterdir()) == ["0", "1", "2"]
        process.kill()
        assert await process.wait() == -signal.SIGKILL, "it is our own child"
        process.close()
        assert [name for name in children_of(os.getpid()) if "launch" in name] == [], "nobody is left to be buried"
    finally:
        cgroup.kill_tree(name)
        os.close(stderr)


async def test_nothing_is_left_that_it_was_not_given(launcher: str, tmp_path: Path) -> None:
    joined = tmp_path / "procs"
    joined.touch()
    done = start(launcher, "/bin/cat", "/proc/self/status", "/proc/self/oom_score_adj", "/proc/self/limits", groups=(joined,))
    assert done.returncode == 0, done.stderr
    said = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert said["Uid"].split() == said["Gid"].split() == [str(OWNER)] * 4
    assert said["Groups"].split() == []
    assert {said[name].strip("\t 0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert said["NoNewPrivs"].strip() == "1"
    assert "\n500\n" in done.stdout
    assert any(line.split()[4:6] == ["0", "0"] for line in done.stdout.splitlines() if line.startswith("Max core file size"))
    assert int(joined.read_text()) == int(said["Pid"]), "it entered its cgroup itself"
    assert len(start(launcher, "/bin/ls", "/proc/self/fd").stdout.split()) == 5, "standard three, the kept one, and ls's own"


@pytest.mark.parametrize(
    ("command", "owner", "group", "words"),
    [
        ("/nowhere/qemu", OWNER, "", "/nowhere/qemu: No such file"),
        ("/bin/true", 0, "", "0: Invalid argument"),
        ("/bin/true", OWNER, "/nowhere/procs", "/nowhere/procs: No such file"),
    ],
)
async def test_what_cannot_be_is_said_and_nothing_runs(launcher: str, command: str, owner: int, group: str, words: str) -> None:
    done = start(launcher, command, owner=owner, groups=(Path(group),) if group else ())
    assert done.returncode == 97
    assert words in done.stderr

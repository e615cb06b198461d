"""Freezing real processes in a real group, by whatever this machine has and by what others have."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from primordia.kit import cgroup, freezer, ids

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a cgroup, which needs root")

COUNT = "i=0; while :; do i=$((i+1)); done"
WAYS = ("v2", "v1", "signals")


@pytest.fixture(params=WAYS)
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A group of the test's own on a machine that freezes in that way."""
    here = cgroup.hierarchies()
    if request.param == "v1":
        here = replace(here, unified=None)
        if here.freezer_v1 is None:
            pytest.skip("this machine has no v1 freezer")
    elif request.param == "signals":
        here = replace(here, unified=None, freezer_v1=None, cpu_v1=here.cpu_v1 or here.unified)
        if here.cpu_v1 is None:
            pytest.skip("this machine has no other hierarchy")
    elif here.unified is None:
        pytest.skip("this machine has no cgroup v2")
    monkeypatch.setattr(cgroup, "hierarchies", lambda: here)
    name = f"primordia-test-freezer-{ids.suffix()}"
    cgroup.make(name)
    try:
        yield name
    finally:
        cgroup.kill_tree(name)


@contextlib.contextmanager
def counting(group: str) -> Iterator[int]:
    """A process that takes all the time it gets, in a group below this one."""
    inner = f"{group}/inner"
    cgroup.make(inner)
    process = subprocess.Popen(["/bin/sh", "-c", COUNT])
    try:
        for file in cgroup.procs_files(inner):
            file.write_text(str(process.pid))
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
            process.send_signal(signal.SIGCONT)
        freezer.thaw(group)
        process.wait()


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def goes_on(pid: int) -> bool:
    before, end = ticks(pid), time.monotonic() + 10
    while ticks(pid) == before and time.monotonic() < end:
        time.sleep(0.02)
    return ticks(pid) > before


def test_what_is_frozen_runs_no_instruction_and_then_goes_on(group: str) -> None:
    with counting(group) as pid:
        assert not freezer.stands(group) and goes_on(pid)
        assert freezer.freeze(group, timeout_s=10)
        before = ticks(pid)
        time.sleep(0.3)
        assert freezer.stands(group) and ticks(pid) == before
        freezer.thaw(group)
        assert goes_on(pid) and not freezer.stands(group)


def test_what_is_frozen_can_be_killed(group: str) -> None:
    with counting(group) as pid:
        assert freezer.freeze(group, timeout_s=10)
        cgroup.signal_kill(group)
        os.waitpid(pid, 0)
        assert not cgroup.pids(group)


def test_an_empty_or_missing_group_is_no_trouble(group: str) -> None:
    assert freezer.freeze(group, timeout_s=0.2)
    freezer.thaw(group)
    freezer.thaw(f"{group}/none")
    assert not freezer.stands(f"{group}/none")

"""Control groups on this machine: entering, limits, killing a tree, removal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from primordia.host import up as host
from primordia.kit import cgroup, ids
from primordia.kit.errors import NotFoundError, TemporaryError

ENTER_AND_SLEEP = """
import sys, time
from primordia.kit import cgroup
cgroup.enter_self(sys.argv[1])
print("in", flush=True)
time.sleep(600)
"""


@pytest.fixture
def group() -> Iterator[str]:
    name = f"primordia-test-cgroup-{os.getpid()}"
    yield name
    cgroup.kill_tree(name)
    assert not cgroup.exists(name)


def start_in(name: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", ENTER_AND_SLEEP, name], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    process.stdout.close()
    return process


def test_a_process_enters_every_hierarchy(group: str) -> None:
    process = start_in(group)

    assert cgroup.pids(group) == {process.pid}
    for file in cgroup.procs_files(group):
        assert file.read_text().split() == [str(process.pid)]

    cgroup.kill_tree(group)
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_a_whole_tree_dies_and_vanishes(group: str) -> None:
    children = [start_in(f"{group}/vm/{number}") for number in range(3)]

    cgroup.kill_tree(group)

    assert not cgroup.exists(group)
    assert [child.wait(timeout=10) for child in children] == [-signal.SIGKILL] * 3


def test_removal_refuses_a_group_in_use(group: str) -> None:
    process = start_in(group)

    with pytest.raises(TemporaryError, match="still in use"):
        cgroup.remove_tree(group, timeout_s=0.05)

    cgroup.kill_tree(group)
    process.wait(timeout=10)


def test_killing_or_removing_nothing_is_harmless() -> None:
    cgroup.kill_tree("primordia-test-never-made")
    cgroup.remove_tree("primordia-test-never-made")


def test_limits_are_what_was_asked(group: str) -> None:
    cgroup.make(group, cgroup.Limits(cpu_milli=1500, memory_bytes=64 << 20))
    here = cgroup.hierarchies()

    if here.memory_v1 is not None:
        assert int((here.memory_v1 / group / "memory.limit_in_bytes").read_text()) == 64 << 20
    elif "memory" in here.controllers and here.unified is not None:
        assert int((here.unified / group / "memory.max").read_text()) == 64 << 20
    if here.cpu_v1 is not None or "cpu" in here.controllers:
        assert cgroup.cpu_milli(group) == 1500
        cgroup.limit(group, cgroup.Limits(cpu_milli=200))
        assert cgroup.cpu_milli(group) == 200
        cgroup.limit(group, cgroup.Limits(cpu_milli=1500))
    if here.cpu_v1 is not None:
        assert int((here.cpu_v1 / group / "cpu.cfs_quota_us").read_text()) == 150_000
    elif "cpu" in here.controllers and here.unified is not None:
        assert (here.unified / group / "cpu.max").read_text().split() == ["150000", "100000"]


def test_going_over_the_memory_limit_is_seen(group: str) -> None:
    if any("memory" in sentence for sentence in cgroup.hierarchies().missing()):
        pytest.skip("this machine has no memory controller")
    cgroup.make(group, cgroup.Limits(memory_bytes=32 << 20))
    assert cgroup.oom_kills(group) == 0

    hungry = "import sys\nfrom primordia.kit import cgroup\ncgroup.enter_self(sys.argv[1])\nb = bytearray(256 << 20)\n"
    process = subprocess.run([sys.executable, "-c", hungry, group], check=False, timeout=60, env=os.environ)

    assert process.returncode == -signal.SIGKILL
    assert cgroup.oom_kills(group) == 1


def test_the_hierarchies_are_real() -> None:
    for root in cgroup.hierarchies().roots():
        assert (Path(root) / "cgroup.procs").exists()


async def test_what_is_left_of_a_soup_that_nobody_knows_is_ended_by_its_name() -> None:
    name = f"stray-{ids.suffix()}"
    process = start_in(f"primordia/{name}/n1/vm/x")
    with pytest.raises(NotFoundError):  # without --destroy it is no soup to keep the state of
        await host.down(name, lambda step: None)
    assert process.poll() is None
    await host.down(name, lambda step: None, destroy=True)
    assert process.wait(timeout=10) == -signal.SIGKILL and not cgroup.exists(f"primordia/{name}")
    with pytest.raises(NotFoundError):
        await host.down(name, lambda step: None, destroy=True)

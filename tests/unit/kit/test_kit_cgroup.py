"""Control groups: reading where they are mounted, and what is missing."""

from __future__ import annotations

from pathlib import Path

from primordia.kit.cgroup import Hierarchies, parse_mountinfo

UNIFIED = "30 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_a_machine_with_v2_alone() -> None:
    assert parse_mountinfo(UNIFIED) == Hierarchies(unified=Path("/sys/fs/cgroup"))


def test_a_machine_with_both() -> None:
    found = parse_mountinfo(HYBRID)

    assert found.unified == Path("/sys/fs/cgroup/unified")
    assert found.cpu_v1 == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.memory_v1 == Path("/sys/fs/cgroup/memory")


def test_an_optional_field_or_a_cut_line_confuses_nothing() -> None:
    assert parse_mountinfo("garbage\n30 23 0:27 / /sys - cgroup2\n" + UNIFIED).unified == Path("/sys/fs/cgroup")


def test_controllers_mounted_together_are_one_root() -> None:
    together = parse_mountinfo("32 31 0:29 / /cg/all rw - cgroup cgroup rw,cpu,memory\n")

    assert together.roots() == (Path("/cg/all"),)


def test_what_is_missing_is_said() -> None:
    assert len(Hierarchies().missing()) == 3
    assert Hierarchies(Path("/u"), controllers=frozenset({"cpu", "memory"})).missing() == ()
    assert Hierarchies(Path("/u"), cpu_v1=Path("/c"), memory_v1=Path("/m")).missing() == ()
    assert Hierarchies(Path("/u"), cpu_v1=Path("/c")).missing() == (
        "The memory controller is not available: memory limits do not hold.",
    )

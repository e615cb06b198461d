"""What counts as a leftover, and what a living soup may have."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from primordia.host.leaks import NodeView, Observed, Places, Process, SoupView, find, tap_name
from primordia.host.leftovers import groups_below, parse_mounts

PLACES = Places(Path("/var/lib/primordia"), Path("/run/primordia"), Path("/var/cache/primordia"))
UID = "0b9b1f0e-6f58-4a1e-9f0a-3f4c3c8f0f11"
UP = SoupView("default", True, (NodeView("n1", frozenset({UID})),))
DOWN = SoupView("default", False)

LIVING = Observed(
    processes=(
        Process(
            10,
            ("/primordia/default/n1/system",),
            "python\0-m\0primordia.supervisor\0/var/lib/primordia/default/nodes/n1/node.json",
        ),
        Process(11, ("/", f"/primordia/default/n1/vm/{UID}"), "qemu-system-x86_64\0-M\0microvm"),
    ),
    namespaces=("primordia-default-n1", "primordia-default-switch"),
    interfaces={"": (), "primordia-default-n1": ("lo", "uplink", tap_name(UID))},
    mounts=("/var/lib/primordia/default/pool",),
    loops=(("/dev/loop0", "/var/lib/primordia/default/pool.img"),),
    groups=("default", "default/n1", "default/n1/system", "default/n1/vm", f"default/n1/vm/{UID}"),
    run_folders=("default",),
    state_folders=("default",),
)


def _kinds(observed: Observed, *soups: SoupView) -> list[tuple[str, str]]:
    return [(leak.kind, leak.name) for leak in find(observed, soups, PLACES)]


def test_a_living_soup_leaks_nothing() -> None:
    assert _kinds(LIVING, UP) == []


def test_a_clean_machine_and_a_soup_that_is_down_leak_nothing() -> None:
    assert _kinds(Observed()) == []
    assert _kinds(Observed(state_folders=("default",)), DOWN) == []


def test_after_down_everything_but_state_is_a_leak() -> None:
    assert _kinds(LIVING, DOWN) == [
        ("cgroup", "primordia/default"),
        ("files", "/run/primordia/default"),
        ("interface", tap_name(UID)),
        ("loop", "/dev/loop0"),
        ("mount", "/var/lib/primordia/default/pool"),
        ("namespace", "primordia-default-n1"),
        ("namespace", "primordia-default-switch"),
        ("process", "10"),
        ("process", "11"),
    ]


def test_after_destroy_its_folder_is_a_leak_too() -> None:
    assert ("files", "/var/lib/primordia/default") in _kinds(LIVING)


def test_a_microvm_without_a_record_leaks_in_a_living_soup() -> None:
    forgotten = SoupView("default", True, (NodeView("n1", frozenset()),))
    assert _kinds(LIVING, forgotten) == [("cgroup", f"primordia/default/n1/vm/{UID}"), ("interface", tap_name(UID))]


def test_a_daemon_that_lost_its_cgroup_is_found_by_its_arguments() -> None:
    stray = Process(12, ("/",), "python\0-m\0primordia.daemon\0/var/lib/primordia/gone/nodes/n1/node.json\0")
    assert _kinds(replace(Observed(), processes=(stray,)), UP) == [("process", "12")]


def test_a_probe_that_was_killed_leaves_its_cgroup() -> None:
    assert _kinds(Observed(stray_groups=("primordia-probe-x",)), UP) == [("cgroup", "primordia-probe-x")]


def test_other_soups_and_foreign_processes_are_left_alone() -> None:
    foreign = Process(13, ("/system.slice/ssh.service",), "sshd\0-D")
    editor = Process(14, ("/user.slice",), "vim\0/var/lib/primordia/gone/nodes/n1/node.json")
    other = Process(15, ("/primordia-of-somebody/else",), "sleep\0infinity")
    assert _kinds(Observed(processes=(foreign, editor, other))) == []


def test_every_leak_has_a_remedy() -> None:
    assert all(leak.remedy and leak.detail for leak in find(LIVING, (), PLACES))


def test_mounts_of_ours_innermost_first_with_odd_names() -> None:
    mountinfo = (
        "20 1 0:19 / / rw - ext4 /dev/vda rw\n"
        "21 20 0:20 / /var/cache/primordia rw - tmpfs none rw\n"
        "22 21 0:21 / /var/cache/primordia/a\\040b rw - tmpfs none rw\n"
        "23 22 0:22 / /var/cache/primordia/a\\040b/c rw - proc none rw\n"
        "24 20 0:23 / /var/lib/primordia-other rw - tmpfs none rw\n"
    )
    assert list(parse_mounts(mountinfo, PLACES)) == ["/var/cache/primordia/a b/c", "/var/cache/primordia/a b"]


def test_groups_that_vanish_during_the_look_do_not_end_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "n1" / "vm" / UID / "too-deep").mkdir(parents=True)
    found = groups_below(tmp_path)
    first = next(found)
    shutil.rmtree(tmp_path)
    assert list(found) == [{"a": "b", "b": "a"}[first]]


def test_groups_are_found_four_deep(tmp_path: Path) -> None:
    (tmp_path / "a" / "n1" / "vm" / UID / "too-deep").mkdir(parents=True)
    (tmp_path / "a" / "cgroup.procs").touch()
    assert list(groups_below(tmp_path)) == ["a", "a/n1", "a/n1/vm", f"a/n1/vm/{UID}"]
    assert list(groups_below(tmp_path / "nowhere")) == []

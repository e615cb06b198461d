"""What the machine's own words are judged as."""

from __future__ import annotations

from pathlib import Path

from primordia.host import checks, packages
from primordia.kit import cgroup


def test_unprivileged_container_is_one_clear_failure() -> None:
    check = checks.container("         0     100000      65536\n")
    assert (check.level, check.reason) == ("fail", "UnprivilegedContainer")
    assert check.remedy


def test_the_machine_itself_has_all_ids() -> None:
    assert checks.container("         0          0 4294967295\n").level == "ok"


def test_old_python() -> None:
    assert checks.python((3, 10)).level == "fail"
    assert checks.python((3, 13)).level == "ok"


def test_memory_is_what_is_available() -> None:
    little = "MemTotal:       16000000 kB\nMemFree: 9000000 kB\nMemAvailable:     500000 kB\nHugePages_Total:       0\n"
    assert checks.memory(little).reason == "LittleMemory"
    assert checks.memory(little.replace(" 500000", "5000000")).level == "ok"


def test_disk_is_judged_where_the_folder_will_be(tmp_path: Path) -> None:
    assert str(tmp_path) in checks.disk(tmp_path / "not" / "yet").message


def test_missing_programs_name_package_reason_and_command(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(
        checks.shutil, "which", lambda program, path=None: None if program == "umoci" else f"/usr/bin/{program}"
    )
    check = checks.programs(frozenset({"libc6-dev"}))
    assert check.level == "fail"
    assert "umoci unpacks OCI images" in check.message
    assert check.remedy == "apt-get install umoci"


def test_cgroups_without_controllers_warn() -> None:
    partial = checks.cgroups(cgroup.Hierarchies(unified=Path("/sys/fs/cgroup")))
    assert (partial.level, partial.reason) == ("warn", "CgroupsPartial")
    assert checks.cgroups(cgroup.Hierarchies()).reason == "NoCgroups"


def test_a_refused_platform_ends_the_checks() -> None:
    mac = packages.Platform("Darwin", "arm64", {})
    assert checks.platform(mac).level == "fail"


async def test_probes_try_the_real_thing() -> None:
    """As root on a machine that can run us at all."""
    for probe in (checks.namespaces, checks.tun, checks.nftables):
        assert (await probe()).level == "ok", probe.__name__


async def test_a_failed_probe_says_what_the_program_said() -> None:
    said = await checks._try(["unshare", "--net", "--", "nft", "-f", "-"], stdin=b"add rule inet nowhere post drop\n")
    assert said is not None
    assert "No such file" in said

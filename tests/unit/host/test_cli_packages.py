"""Where we run and what that needs: by the os-release files of real distributions."""

from __future__ import annotations

import pytest

from primordia.host import packages
from primordia.host.packages import PACKAGES, Platform

DEBIAN_12 = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
DEBIAN_11 = 'PRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\nID=debian\nVERSION_ID="11"\n'
DEBIAN_SID = 'PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian\n'
UBUNTU_2404 = 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'
UBUNTU_2204 = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\n'
FEDORA = 'PRETTY_NAME="Fedora Linux 41 (Server Edition)"\nID=fedora\nVERSION_ID=41\n'
ROCKY = 'PRETTY_NAME="Rocky Linux 9.4"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n'
ARCH = 'PRETTY_NAME="Arch Linux"\nID=arch\n'


def _platform(release: str, *, system: str = "Linux", machine: str = "x86_64") -> Platform:
    return Platform(system, machine, packages.parse_os_release(release))


@pytest.mark.parametrize("release", [DEBIAN_12, DEBIAN_SID, UBUNTU_2404])
def test_supported(release: str) -> None:
    assert packages.refuse(_platform(release)) is None


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (_platform(DEBIAN_11), "TooOld"),
        (_platform(UBUNTU_2204), "TooOld"),
        (_platform(FEDORA), "Fedora"),
        (_platform(ROCKY), "RedHat"),
        (_platform(ARCH), "Distribution"),
        (_platform("", system="Darwin", machine="arm64"), "MacOS"),
        (_platform(DEBIAN_12, machine="aarch64"), "Architecture"),
    ],
)
def test_refused_with_a_remedy(found: Platform, reason: str) -> None:
    refusal = packages.refuse(found)
    assert refusal is not None
    assert refusal.reason == reason
    assert refusal.remedy.endswith(".")
    assert "\n" not in refusal.message + refusal.remedy


def test_fedora_names_every_package_a_port_needs() -> None:
    refusal = packages.refuse(_platform(FEDORA))
    assert refusal is not None
    for name in ("nftables", "glibc-static", "qemu-system-x86-core", "umoci"):
        assert name in refusal.remedy


def test_missing_packages_by_purpose() -> None:
    names = {package.name for package in PACKAGES}
    assert packages.missing("test", names) == ()
    assert [package.name for package in packages.missing("run", names - {"umoci", "make"})] == ["umoci"]
    assert {package.name for package in packages.missing("test", names - {"umoci", "make"})} == {"umoci", "make"}


def test_only_whole_installations_count() -> None:
    status = (
        "Package: gcc\nStatus: install ok installed\nDescription: compiler\n Package: decoy\n\n"
        "Package: umoci\nStatus: deinstall ok config-files\n\n"
        "Package: skopeo\nStatus: install ok half-configured\n"
    )
    assert packages.parse_installed(status) == {"gcc"}


def test_announcement_says_everything_that_changes() -> None:
    text = packages.announcement(packages.wanted("run"), venv=True, toolchain=True, image=True, keep=False)
    for words in (
        "umoci",
        "apt-get",
        "pip",
        "QEMU",
        "/var/cache/primordia",
        "127.77",
        "none of them starts a service",
        "all gone",
    ):
        assert words in text


def test_announcement_of_a_second_run_downloads_nothing() -> None:
    text = packages.announcement((), venv=False, toolchain=False, image=False, keep=True)
    assert "nothing: everything is in the cache" in text
    assert "install" not in text
    assert "primordia down --soup demo --destroy" in text

"""Which distribution packages set-up needs, why, and where Primordia can run at all.

One list, read by the bootstrap before anything of ours is installed and by `doctor` afterwards; so this module imports
nothing but the standard library. Packages that would start a service (QEMU's helpers, etcd) are not here: those
programs are unpacked into the cache and never installed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Purpose = Literal["run", "test"]


@dataclass(frozen=True)
class Package:
    """A distribution package. `program` is a file it brings that we call; `size_mb` is its part of the disk, roughly."""

    name: str
    why: str
    program: str
    fedora: str
    size_mb: int = 1
    purpose: Purpose = "run"


PACKAGES: tuple[Package, ...] = (
    Package("python3-venv", "keeps Primordia's Python packages to themselves", "", "python3", 3),
    Package("ca-certificates", "lets registries be checked", "update-ca-certificates", "ca-certificates", 1),
    Package("gcc", "compiles the guest agent, once", "gcc", "gcc", 120),
    Package("libc6-dev", "links the guest agent statically", "", "glibc-static", 15),
    Package("iproute2", "makes network namespaces and links", "ip", "iproute", 4),
    Package("nftables", "filters what contexts may reach", "nft", "nftables", 1),
    Package("mmdebstrap", "builds images from Debian packages", "mmdebstrap", "mmdebstrap", 1),
    Package("skopeo", "pulls OCI images", "skopeo", "skopeo", 30),
    Package("umoci", "unpacks OCI images", "umoci", "umoci", 15),
    Package("e2fsprogs", "makes the disks of microVMs", "mke2fs", "e2fsprogs", 2),
    Package("util-linux", "ends image builds with whoever began them", "setpriv", "util-linux", 4),
    Package("mount", "mounts and unmounts", "umount", "util-linux-core", 1),
    Package("kmod", "unpacks and orders kernel modules", "modprobe", "kmod", 1),
    Package("xz-utils", "unpacks kernel modules", "xz", "xz", 1),
    Package("zstd", "unpacks kernel modules", "zstd", "zstd", 1),
    Package("btrfs-progs", "makes the pools in which volumes lie", "mkfs.btrfs", "btrfs-progs", 1),
    Package("make", "runs the guest agent's own tests", "make", "make", 2, "test"),
    Package("busybox-static", "stands in for a guest's programs", "busybox", "busybox", 2, "test"),
)

# What the bootstrap cannot count before it is there, in MB: measured on Debian 12.
PYTHON_DOWNLOAD_MB = 45
TOOLCHAIN_DOWNLOAD_MB = 65
IMAGE_DOWNLOAD_MB = 45
DISK_MB = 1000
MEMORY_MB = 1200
POOLS_GB = 12


@dataclass(frozen=True)
class Platform:
    """What the machine calls itself."""

    system: str
    machine: str
    release: Mapping[str, str]

    @property
    def title(self) -> str:
        """The distribution's name for people."""
        return self.release.get("PRETTY_NAME") or self.system


@dataclass(frozen=True)
class Refusal:
    """Why we cannot run here, and what would help."""

    reason: str
    message: str
    remedy: str


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file; quotes are taken off, anything else is skipped."""
    values = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and key.isidentifier():
            values[key] = value.strip().strip("\"'")
    return values


def refuse(platform: Platform) -> Refusal | None:
    """Why Primordia cannot run on that platform, or None where it can: Debian 12 and 13 and newer, Ubuntu 24.04 and newer."""
    if platform.system == "Darwin":
        return Refusal("MacOS", "macOS has no network namespaces and no cgroups.", "Use a Debian 12 or newer virtual machine.")
    if platform.system != "Linux":
        return Refusal("NotLinux", f"{platform.system} is not Linux.", "Use a Debian 12 or newer machine.")
    if platform.machine not in ("x86_64", "amd64"):
        return Refusal(
            "Architecture",
            f"{platform.machine} is not supported yet: kernel and agent are built for x86-64.",
            "Use an x86-64 machine.",
        )
    return _refuse_distribution(platform)


def _refuse_distribution(platform: Platform) -> Refusal | None:
    release = platform.release
    name = release.get("ID", "")
    family = {name, *release.get("ID_LIKE", "").split()}
    version = _version(release.get("VERSION_ID", ""))
    if name == "fedora":
        return Refusal(
            "Fedora",
            f"{platform.title} is not supported yet: our tools come from apt.",
            f"Use Debian 12 or newer. A port would need: {' '.join(fedora_packages())}.",
        )
    if family & {"rhel", "centos"}:
        return Refusal(
            "RedHat",
            f"{platform.title} is not supported: its kernel has no btrfs and its tools do not come from apt.",
            "Use Debian 12 or newer, or Ubuntu 24.04 or newer.",
        )
    oldest = {"debian": (12, 0), "ubuntu": (24, 4)}.get(name)
    if oldest is not None and version is not None and version < oldest:
        return Refusal("TooOld", f"{platform.title} is too old.", "Use Debian 12 or newer, or Ubuntu 24.04 or newer.")
    if not family & {"debian", "ubuntu"}:
        return Refusal(
            "Distribution",
            f"{platform.title} has no apt, from which our tools come.",
            "Use Debian 12 or newer, or Ubuntu 24.04 or newer.",
        )
    return None


def _version(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    if not major.isdecimal():
        return None
    return int(major), int(minor) if minor.isdecimal() else 0


def fedora_packages() -> tuple[str, ...]:
    """What a port to Fedora would install, the programs that we unpack elsewhere included."""
    names = {package.fedora for package in PACKAGES} | {"qemu-system-x86-core", "etcd", "slirp4netns", "kernel-core"}
    return tuple(sorted(names))


def wanted(purpose: Purpose) -> tuple[Package, ...]:
    """The packages for running (`run`), or for running and testing (`test`)."""
    return tuple(package for package in PACKAGES if purpose == "test" or package.purpose == "run")


def missing(purpose: Purpose, installed: Collection[str]) -> tuple[Package, ...]:
    """Those wanted that are not installed."""
    return tuple(package for package in wanted(purpose) if package.name not in installed)


def parse_installed(dpkg_status: str) -> frozenset[str]:
    """Names of the installed packages in a dpkg status file."""
    installed = set()
    for stanza in dpkg_status.split("\n\n"):
        fields = dict(_fields(stanza))
        if fields.get("Status", "").endswith(" installed"):
            installed.add(fields.get("Package", ""))
    return frozenset(installed)


def _fields(stanza: str) -> Iterable[tuple[str, str]]:
    for line in stanza.splitlines():
        if not line.startswith((" ", "\t")):
            key, _, value = line.partition(":")
            yield key, value.strip()


def installed_packages(root: Path = Path("/")) -> frozenset[str]:
    """Names of the packages that dpkg has installed below `root`; none where there is no dpkg."""
    try:
        return parse_installed((root / "var/lib/dpkg/status").read_text(errors="replace"))
    except FileNotFoundError:
        return frozenset()


def read_platform() -> Platform:
    """This machine."""
    import platform

    release: dict[str, str] = {}
    for path in (Path("/etc/os-release"), Path("/usr/lib/os-release")):
        if path.is_file():
            release = parse_os_release(path.read_text(errors="replace"))
            break
    return Platform(platform.system(), platform.machine(), release)


def already(cache: Path) -> tuple[bool, bool]:
    """Whether QEMU and the rest are unpacked, and whether the demo's images are there, by a look at the cache's files."""
    unpacked = (cache / "toolchain/manifest.json").is_file()
    images = [image.read_text(errors="replace") for image in cache.glob("images/*/image.json")]
    return unpacked, all(any(name in image for image in images) for name in ("redis-server", "busybox-static"))


def announcement(packages: Iterable[Package], *, venv: bool, toolchain: bool, image: bool, keep: bool) -> str:
    """What `make demo` does to this machine, said before it does it. The flags say what is still to be fetched."""
    lines = ["This will", ""]
    names = [package.name for package in packages]
    if names:
        lines += [
            f"  install     {' '.join(names)}",
            "              by apt-get, from your own package sources; none of them starts a service",
        ]
    downloads = [
        (venv, f"Python packages by pip, about {PYTHON_DOWNLOAD_MB} MB"),
        (
            toolchain,
            f"QEMU, a kernel, etcd and slirp4netns by apt-get, about {TOOLCHAIN_DOWNLOAD_MB} MB, unpacked and not installed",
        ),
        (image, f"the packages of two images, Redis and busybox, about {IMAGE_DOWNLOAD_MB} MB"),
    ]
    fetched = [text for wanted_, text in downloads if wanted_]
    if fetched:
        lines += [f"  {'download' if not index else '':<11} {text}" for index, text in enumerate(fetched)]
    else:
        lines += ["  download    nothing: everything is in the cache"]
    lines += [
        f"  use         about {DISK_MB} MB of disk in /var/cache/primordia (yours to delete) and /var/lib/primordia,",
        f"              and while it runs {MEMORY_MB} MB of memory, and for six nodes' data {POOLS_GB} GiB of disk, or a",
        "              quarter of what is free where that is less",
        "  change      network namespaces and cgroups named primordia-*, and listeners on 127.77.0.0/16,",
        f"              {'until you run `primordia down --soup demo --destroy`' if keep else 'all gone at the end'};"
        " your own network is not touched",
        "",
    ]
    return "\n".join(lines)

"""Can this machine run Primordia, and how well? One function for each thing that can be missing.

A check reads or tries, and judges: `ok`, `warn` (it runs, but less well) or `fail` (it does not), with a typed reason and
a remedy. What tries something does it in a throw-away network namespace that ends with its process.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from primordia.host import packages
from primordia.kit import cgroup
from primordia.kit.command import CommandError, run
from primordia.kit.units import human_bytes

Level = Literal["ok", "warn", "fail"]

_MIB = 1024 * 1024
LEAST_MEMORY_BYTES = 1024 * _MIB
LEAST_DISK_BYTES = 2 * 1024 * _MIB
GOOD_DISK_BYTES = 5 * 1024 * _MIB
_ALL_IDS = 4_294_967_295
# What a microVM's path to the outside needs of the kernel: a NAT chain, a verdict map, a set of addresses.
_NFT_PROBE = b"""\
table inet primordia_probe {
  set hosts { type ipv4_addr; flags interval; elements = { 127.0.0.0/8 } }
  chain post { type nat hook postrouting priority srcnat; ip daddr @hosts masquerade; }
  chain forward { type filter hook forward priority filter; policy drop; ct state established,related accept; }
}
"""


@dataclass(frozen=True)
class Check:
    """What one check found. `reason` is a CamelCase word for machines, empty when all is well."""

    name: str
    level: Level
    message: str
    reason: str = ""
    remedy: str = ""


def platform(found: packages.Platform) -> Check:
    """Distribution and processor."""
    refusal = packages.refuse(found)
    if refusal is None:
        return Check("platform", "ok", f"{found.title}, {found.machine}")
    return Check("platform", "fail", refusal.message, refusal.reason, refusal.remedy)


def python(version: tuple[int, int]) -> Check:
    """The Python that runs us."""
    text = f"{version[0]}.{version[1]}"
    if version >= (3, 11):
        return Check("python", "ok", f"Python {text}")
    return Check("python", "fail", f"Python {text} is too old.", "PythonTooOld", "Install Python 3.11 or newer.")


def root(uid: int) -> Check:
    """Whether we may change the machine."""
    if uid == 0:
        return Check("root", "ok", "running as root")
    return Check("root", "warn", "Not root: some checks are left out.", "NotRoot", "Run `sudo primordia doctor`.")


def container(uid_map: str) -> Check:
    """A user namespace (an unprivileged container) maps only some ids: it can make neither devices nor owners."""
    fields = uid_map.split()
    if fields == ["0", "0", str(_ALL_IDS)]:
        return Check("container", "ok", "full range of user ids")
    return Check(
        "container",
        "fail",
        "This is an unprivileged container: it may not make TAP devices, cgroups and other users' processes.",
        "UnprivilegedContainer",
        "Run on the machine itself, in a virtual machine, or in a privileged container.",
    )


def programs(installed: frozenset[str]) -> Check:
    """The programs that we call, by the packages that bring them."""
    absent = [
        package
        for package in packages.wanted("run")
        if not (shutil.which(package.program, path=_path()) if package.program else package.name in installed)
    ]
    # A venv that exists needs nothing to be made any more.
    absent = [package for package in absent if package.name != "python3-venv"]
    if not absent:
        return Check("programs", "ok", "all there")
    names = " ".join(package.name for package in absent)
    reasons = "; ".join(f"{package.name} {package.why}" for package in absent)
    return Check("programs", "fail", f"Missing: {reasons}.", "ProgramsMissing", f"apt-get install {names}")


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


async def namespaces() -> Check:
    """Network namespaces, in which nodes and contexts live."""
    problem = await _try(["unshare", "--net", "--", "true"])
    if problem is None:
        return Check("namespaces", "ok", "network namespaces can be made")
    return Check(
        "namespaces",
        "fail",
        f"No network namespace can be made: {problem}",
        "NoNamespaces",
        "Use a kernel with CONFIG_NET_NS, and give the container CAP_SYS_ADMIN.",
    )


async def tun() -> Check:
    """TAP devices, the network cards of microVMs."""
    if not Path("/dev/net/tun").is_char_device():
        return Check("tun", "fail", "/dev/net/tun does not exist.", "NoTun", "modprobe tun, or give the container that device.")
    problem = await _try(["unshare", "--net", "--", "ip", "tuntap", "add", "dev", "probe", "mode", "tap"])
    if problem is None:
        return Check("tun", "ok", "TAP devices can be made")
    return Check("tun", "fail", f"No TAP device can be made: {problem}", "NoTun", "modprobe tun, and run with CAP_NET_ADMIN.")


async def nftables() -> Check:
    """Filter and address translation, tried in a namespace that ends with the try."""
    problem = await _try(["unshare", "--net", "--", "nft", "-f", "-"], stdin=_NFT_PROBE)
    if problem is None:
        return Check("nftables", "ok", "filters and address translation work")
    return Check(
        "nftables",
        "fail",
        f"The kernel refuses our kind of filter: {problem}",
        "NoNftables",
        "modprobe nf_tables nft_masq nft_ct, or use a kernel with them.",
    )


async def _try(argv: list[str], *, stdin: bytes | None = None) -> str | None:
    try:
        await run(argv, stdin=stdin, timeout_s=20)
    except CommandError as error:
        return error.message.splitlines()[0]
    return None


def file_systems(known: str, modules: Path) -> Check:
    """btrfs, on which the data of lifeforms lies. A node without it runs lifeforms without data."""
    if "\tbtrfs\n" in known or any(modules.glob("kernel/fs/btrfs/btrfs.ko*")):
        return Check("btrfs", "ok", "known to the kernel")
    return Check(
        "btrfs",
        "warn",
        "The kernel has no btrfs: no lifeform with data runs here, every other does.",
        "NoBtrfs",
        "Try: modprobe btrfs",
    )


def loop(control: Path) -> Check:
    """Loop devices, for pools in a file."""
    if control.is_char_device():
        return Check("loop", "ok", "loop devices can be made")
    return Check("loop", "warn", f"{control} does not exist: no pool in a file can be used.", "NoLoop", "modprobe loop")


def cgroups(found: cgroup.Hierarchies) -> Check:
    """Control groups: killing all of a microVM at once, freezing, and limits."""
    if not found.roots():
        return Check(
            "cgroups", "fail", "No cgroup hierarchy is mounted.", "NoCgroups", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        )
    if not any(os.access(place, os.W_OK) for place in found.roots()) and os.geteuid() == 0:
        return Check("cgroups", "fail", "Cgroups are read-only here.", "CgroupsReadOnly", "Mount /sys/fs/cgroup writable.")
    lacking = found.missing()
    if lacking:
        return Check(
            "cgroups", "warn", " ".join(lacking), "CgroupsPartial", "Boot with the unified hierarchy and all controllers."
        )
    kinds = "v1 and v2" if found.cpu_v1 or found.memory_v1 else "v2"
    return Check("cgroups", "ok", f"{kinds}: kill, freeze, CPU and memory limits")


def memory(meminfo: str) -> Check:
    """Room for microVMs in memory."""
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.split()[1:]}
    free = values.get("MemAvailable", 0)
    text = f"{human_bytes(free)} free of {human_bytes(values.get('MemTotal', 0))}"
    if free >= LEAST_MEMORY_BYTES:
        return Check("memory", "ok", text)
    return Check(
        "memory", "warn", f"Only {text}: few microVMs will fit.", "LittleMemory", "Free memory, or use a larger machine."
    )


def disk(place: Path) -> Check:
    """Room for downloads, images and scratch disks, at the nearest folder that exists."""
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{human_bytes(free)} free at {place}"
    if free < LEAST_DISK_BYTES:
        return Check(
            "disk", "fail", f"Only {text}.", "DiskFull", f"Free {human_bytes(LEAST_DISK_BYTES)}, or set PRIMORDIA_CACHE."
        )
    if free < GOOD_DISK_BYTES:
        return Check(
            "disk", "warn", f"Only {text}: few images will fit.", "LittleDisk", "Free some disk, or set PRIMORDIA_CACHE."
        )
    return Check("disk", "ok", text)


async def machine(cache: Path, state: Path) -> tuple[Check, ...]:
    """Every check that needs nothing of ours, in a fixed order. Without root those that try things are left out."""
    first = (
        platform(packages.read_platform()),
        python((sys.version_info.major, sys.version_info.minor)),
        root(os.geteuid()),
    )
    if first[0].level == "fail":
        return first
    release = os.uname().release
    rest = [container(Path("/proc/self/uid_map").read_text()), programs(packages.installed_packages())]
    if os.geteuid() == 0:
        rest += [await namespaces(), await tun(), await nftables()]
    rest += [
        cgroups(cgroup.hierarchies()),
        loop(Path("/dev/loop-control")),
        file_systems(Path("/proc/filesystems").read_text(), Path("/lib/modules") / release),
        memory(Path("/proc/meminfo").read_text()),
        disk(cache),
    ]
    if _device(cache) != _device(state):
        rest.append(disk(state))
    return (*first, *rest)


def _device(place: Path) -> int:
    while not place.exists():
        place = place.parent
    return place.stat().st_dev

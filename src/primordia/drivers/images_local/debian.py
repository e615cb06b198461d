"""Roots from packages, by mmdebstrap, out of the machine's own package sources.

The essential set and the wanted packages are installed in a chroot, without recommended packages, documentation,
manuals and translations; mmdebstrap keeps services from being started (policy-rc.d, a start-stop-daemon that does
nothing). Nothing of the machine stays in the root: no package sources, no proxy, no resolver, no names.
A package that stands alone (busybox-static) is only unpacked, without the essential set around it: two megabytes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from primordia.drivers.images_local.apt import Sources, select_settings, select_sources
from primordia.drivers.images_local.busybox import furnish_busybox
from primordia.drivers.images_local.disk import full, says_full
from primordia.drivers.images_local.tree import clear
from primordia.kit.command import run
from primordia.kit.enclosure import enclosed_argv, mounts_can_be_own
from primordia.kit.errors import InvalidError, NotFoundError, PermanentError, PrimordiaError, TemporaryError, UnsupportedError
from primordia.wire.resources import DebianSource

BUILDER = 1  # counts changes of what a build leaves; a new one builds every image again
FIELD = "spec.debian.packages"
ARCHITECTURE = "amd64"

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]")
_MOST_PACKAGES = 500
_ALONE = frozenset({"busybox-static"})
_EPOCH = "1767225600"  # 2026-01-01: the date that account files carry
_MERGED_USR_HOOK = Path("/usr/share/mmdebstrap/hooks/maybe-merged-usr")
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/lintian/*", "/usr/share/locale/*", "/usr/share/man/*")
# Debian 12's init-system-helpers takes either package; this one would bring the whole of perl.
_PREFERENCES = "Package: usrmerge\nPin: release *\nPin-Priority: -1\n"
_LEFTOVERS = (
    *("dev/", "boot/", "run/", "tmp/", "var/tmp/", "var/cache/apt/", "var/cache/debconf/", "var/cache/ldconfig/"),
    *("etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list", "etc/apt/sources.list.d/", "etc/dpkg/dpkg.cfg.d/99mmdebstrap"),
    *("etc/fstab", "etc/.pwd.lock", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-"),
    *("var/lib/apt/", "var/lib/dbus/machine-id", "var/lib/dpkg/available", "var/lib/dpkg/status-old", "var/lib/systemd/"),
    *("var/log/alternatives.log", "var/log/apt", "var/log/bootstrap.log", "var/log/dpkg.log"),
)


@dataclass(frozen=True)
class Distribution:
    """Which distribution the machine runs: `debian` or `ubuntu`, and its code name."""

    name: str
    codename: str


@dataclass(frozen=True)
class DebianPlan:
    """A build that was checked and can be named. `packages` is sorted, each once."""

    distribution: Distribution
    packages: tuple[str, ...]

    @property
    def key(self) -> str:
        """What the result depends on, but for the packages' versions of the day."""
        parts = (BUILDER, self.distribution.name, self.distribution.codename, ARCHITECTURE, self.packages)
        return hashlib.sha256(msgspec.json.encode(("debian", *parts))).hexdigest()

    @property
    def alone(self) -> bool:
        """Whether the packages are only unpacked."""
        return _ALONE.issuperset(self.packages)

    def __str__(self) -> str:
        return f"{self.distribution.name}/{self.distribution.codename}: {' '.join(self.packages)}"


def plan(source: DebianSource, distribution: Distribution) -> DebianPlan:
    """The build that a source asks for. InvalidError when a name is not a package's name."""
    if not source.packages:
        raise InvalidError(FIELD, "no package is named", remedy="Name at least one.")
    if len(source.packages) > _MOST_PACKAGES:
        raise InvalidError(FIELD, f"{len(source.packages)} packages are named; {_MOST_PACKAGES} is the limit")
    for index, name in enumerate(source.packages):
        if not _PACKAGE.fullmatch(name) or len(name) > 200:
            raise InvalidError(f"{FIELD}[{index}]", f"{name[:80]!r} is not the name of a package")
    return DebianPlan(distribution, tuple(sorted(set(source.packages))))


def read_distribution(os_release: str) -> Distribution:
    """The distribution by the text of /etc/os-release. UnsupportedError where packages are not Debian's."""
    pairs = (line.partition("=") for line in os_release.splitlines())
    fields = {name: value.strip().strip("\"'") for name, _, value in pairs}
    name, codename = fields.get("ID", ""), fields.get("VERSION_CODENAME", "")
    if name not in ("debian", "ubuntu") or not re.fullmatch(r"[a-z]+", codename):
        raise UnsupportedError(
            f"Images from packages need Debian or Ubuntu; this machine runs {fields.get('PRETTY_NAME') or 'another system'}.",
            remedy="Use an OCI image: spec.oci.reference.",
        )
    return Distribution(name, codename)


def this_distribution() -> Distribution:
    """The machine's own. UnsupportedError."""
    try:
        return read_distribution(Path("/etc/os-release").read_text())
    except OSError:
        return read_distribution("")


def mmdebstrap_argv(wanted: DebianPlan, tree: Path, inputs: Path, sources: Sources, *, merged_usr_hook: bool) -> list[str]:
    """The build's command. `inputs` holds the files that `write_inputs` wrote.

    Root mode, always: the daemon is root, and the mode works in a chroot or container too, where a user namespace
    cannot be made.
    """
    argv = ["mmdebstrap", "--mode=root", "--format=directory", f"--architectures={ARCHITECTURE}"]
    argv += [f"--variant={'extract' if wanted.alone else 'essential'}", f"--include={','.join(wanted.packages)}"]
    argv += [f"--aptopt={inputs / 'apt.conf'}", "--dpkgopt=force-unsafe-io"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
    argv += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    if merged_usr_hook and not wanted.alone:
        argv.append(f"--hook-dir={_MERGED_USR_HOOK}")
    argv += [wanted.distribution.codename, str(tree)]
    argv += [str(inputs / name) for name, text in (("apt.list", sources.one_line), ("apt.sources", sources.deb822)) if text]
    return argv


def apt_conf(settings: str, inputs: Path, etc_apt: Path) -> str:
    """The apt configuration of a build: the machine's settings, its credentials, our preferences."""
    return (
        f"{settings}"
        'Acquire::Languages "none";\n'
        'APT::Sandbox::User "root";\n'  # a build's folder is closed to every other user
        f'Dir::Etc::Preferences "{inputs / "preferences"}";\n'
        f'Dir::Etc::Netrc "{etc_apt / "auth.conf"}";\n'
        f'Dir::Etc::NetrcParts "{etc_apt / "auth.conf.d"}";\n'
    )


def write_inputs(inputs: Path, sources: Sources, conf: str) -> None:
    """Write what the command reads."""
    files = {"apt.list": sources.one_line, "apt.sources": sources.deb822, "apt.conf": conf, "preferences": _PREFERENCES}
    inputs.mkdir(mode=0o700)
    for name, text in files.items():
        (inputs / name).write_text(text)


async def build(wanted: DebianPlan, work: Path, netns: int | None) -> Path:
    """Build the tree below `work` and return it. Raises NotFoundError, TemporaryError, CapacityError, PermanentError."""
    etc_apt = Path("/etc/apt")
    sources = read_sources(etc_apt, wanted.distribution.codename)
    settings = select_settings((await run(["apt-config", "dump"], env={"LC_ALL": "C"})).text())
    inputs, tree = work / "inputs", work / "tree"
    write_inputs(inputs, sources, apt_conf(settings, inputs, etc_apt))
    argv = mmdebstrap_argv(wanted, tree, inputs, sources, merged_usr_hook=_MERGED_USR_HOOK.is_dir())
    environment = {"LC_ALL": "C", "SOURCE_DATE_EPOCH": _EPOCH, "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": str(work)}
    # It mounts /proc, /sys and more in the tree, and is killed when the build is cancelled.
    argv = enclosed_argv(argv) if mounts_can_be_own() else argv
    done = await run(argv, timeout_s=1800, env=environment, netns=netns, check=False)
    if done.status != 0:
        raise explain_build(done.stderr.decode(errors="replace"), wanted, work)
    tree.chmod(0o755)
    clear(tree, _LEFTOVERS)
    if wanted.alone:
        clear(tree, ("usr/share",))
        await furnish_busybox(tree)
    return tree


def read_sources(etc_apt: Path, codename: str) -> Sources:
    """The machine's package sources. PermanentError when it has none."""
    parts = etc_apt / "sources.list.d"
    lists = [
        path.read_text(errors="replace") for path in (etc_apt / "sources.list", *sorted(parts.glob("*.list"))) if path.is_file()
    ]
    deb822 = [path.read_text(errors="replace") for path in sorted(parts.glob("*.sources")) if path.is_file()]
    sources = select_sources(lists, deb822, codename)
    if not sources.one_line and not sources.deb822:
        raise PermanentError(f"{etc_apt} names no package source.", remedy="Add the distribution's mirror to it.")
    return sources


# What apt says (with LC_ALL=C), and what it means.
_MISSING = re.compile(r"Unable to locate package (\S+)|Package '?([^\s']+)'? has no installation candidate")
_UNREACHABLE = re.compile(
    r"Could not resolve|Temporary failure resolving|Could not connect|Connection timed out|Connection refused|Connection failed"
    r"|Unable to connect|Network is unreachable|No route to host|Failed to fetch|50[0234]  "
)


def explain_build(words: str, wanted: DebianPlan, folder: Path) -> PrimordiaError:
    """What the words of a failed build mean to the one who asked for it."""
    if says_full(words):
        return full(folder)
    if missing := _MISSING.search(words):
        name = missing[1] or missing[2]
        return NotFoundError(
            f"There is no package {name} in {wanted.distribution.name} {wanted.distribution.codename}.",
            remedy="Only the distribution's own package sources are searched; `apt-cache search` shows what they have.",
        )
    if _UNREACHABLE.search(words):
        return TemporaryError(
            f"The package mirror cannot be reached ({_complaint(words)}).",
            remedy="Does `apt-get update` work on this machine?",
            retry_after_s=10,
        )
    return PermanentError(f"The packages {' '.join(wanted.packages)} cannot be installed ({_complaint(words)}).")


def _complaint(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("E: ") and "mmdebstrap failed" not in line]
    return (told or lines or ["it said nothing"])[0][:300]

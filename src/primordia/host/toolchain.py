"""The programs a node needs and must not install: QEMU, a kernel, etcd, slirp4netns; unpacked into the cache.

Installing them would start services, add a kernel to the boot menu, or bring an older QEMU than the distribution's
backports have. So their packages are downloaded by apt, privately (host/apt.py), and unpacked: each into a folder that
appears whole, by rename, or not at all. One lock serves all who want the cache at once; what is warm needs neither lock
nor network, only a look at whether the files are there and the host's own packages are unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shlex
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from primordia.host import kernel
from primordia.host.agent_build import cached_agent, cached_launcher, ensure_agent, ensure_launcher, find_interpreter
from primordia.host.apt import PrivateApt, library_path, unpack
from primordia.host.apt_sources import newer
from primordia.host.initramfs import WANTED_FOR_XFS, build_initramfs, wanted_words
from primordia.host.packages import parse_os_release
from primordia.kit.command import CommandError, run
from primordia.kit.errors import PermanentError, UnsupportedError
from primordia.kit.files import write_atomic
from primordia.kit.ids import short_hash
from primordia.wire.nodeconfig import Tools

Progress = Callable[[str], None]

_DPKG_STATUS = Path("/var/lib/dpkg/status")
_OS_RELEASE = Path("/etc/os-release")
_FORMAT = 2


@dataclass(frozen=True)
class Download:
    """Something `ensure` would fetch; `size_bytes` is about right, for announcements."""

    name: str
    size_bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished toolchain is and what it was made under. Any difference means: look again."""

    format: int = _FORMAT
    dpkg_ns: int = 0
    agent: str = ""
    launcher: str = ""
    kernel: str = ""
    modules: str = ""
    tools: Tools


# Measured on Debian 12; a machine that has fewer libraries downloads more for QEMU.
_SIZES = {"package lists": 10_000_000, "qemu": 16_000_000, "kernel": 27_000_000, "etcd": 8_500_000, "slirp4netns": 100_000}


async def plan(cache: Path) -> list[Download]:
    """What `ensure` would download, with sizes; empty when the cache is warm. Makes and fetches nothing."""
    folder = cache / "toolchain"
    missing = []
    if not (folder / "qemu").is_dir():
        missing.append("qemu")
    if not (folder / "kernel").is_dir() and kernel.given() is None:
        missing.append("kernel")
    missing += [name for name in ("etcd", "slirp4netns") if not (folder / name).is_dir() and shutil.which(name) is None]
    if missing:
        missing.insert(0, "package lists")
    return [Download(name, _SIZES[name]) for name in missing]


def announcement(missing: Sequence[Download], cache: Path) -> str:
    """What `ensure` is about to do to this machine, in a sentence for people; empty when it fetches nothing."""
    if not missing:
        return ""
    parts = ", ".join(f"{each.name} {_megabytes(each.size_bytes)}" for each in missing)
    total = _megabytes(sum(each.size_bytes for each in missing))
    return f"This downloads about {total} by apt-get, once, into {cache}, and installs nothing: {parts}."


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1_000_000:.0f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1_000_000:.1f} MB"


async def ensure(cache: Path, progress: Progress) -> Tools:
    """Everything a node needs, made where it is missing; idempotent, and safe when two do it at once.

    Raises UnsupportedError on a distribution without apt, PermanentError (no package, no source), TemporaryError (network).
    """
    folder = cache / "toolchain"
    if (tools := _warm(folder)) is not None:
        return tools
    folder.mkdir(parents=True, exist_ok=True)
    async with _locked(folder / ".lock"):
        if (tools := _warm(folder)) is not None:
            return tools
        return await _Maker(folder, progress).make()


class _Maker:
    """One run of making what is missing, under the lock."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self._apt: PrivateApt | None = None

    async def make(self) -> Tools:
        try:
            qemu = await self._qemu()
            image = await self._kernel()
            etcd = await self._program("etcd", "etcd-server")
            slirp4netns = await self._program("slirp4netns", "slirp4netns")
        finally:
            if self._apt is not None:
                self._apt.remove()
        self._progress("compile the guest agent and pack the initramfs")
        agent = await ensure_agent(self._folder.parent)
        launcher = await ensure_launcher(self._folder.parent)
        initramfs = self._folder / f"initramfs-{short_hash(f'{agent.name} {image.modules} {_wanted()}', 16)}.img"
        programs = self._folder / "kernel" / "usr" / "bin"
        await build_initramfs(image.modules, agent, initramfs, interpreter=find_interpreter(), programs=programs)
        with_xfs = await self._with_xfs(image, agent, initramfs, programs)
        tools = Tools(
            qemu=qemu.qemu,
            qemu_library_path=qemu.qemu_library_path,
            qemu_data=qemu.qemu_data,
            launcher=str(launcher),
            kernel=str(image.path),
            kernel_version=image.modules.name,
            initramfs=str(initramfs),
            initramfs_xfs=str(with_xfs) if with_xfs is not None else "",
            etcd=etcd,
            slirp4netns=slirp4netns,
        )
        write_atomic(self._folder / "manifest.json", msgspec.json.encode(_manifest(tools)), mode=0o644)
        return tools

    async def _with_xfs(self, image: kernel.Image, agent: Path, plain: Path, programs: Path) -> Path | None:
        """The initramfs for guests with an xfs; None for a kernel that has none."""
        place = plain.with_name(f"{plain.stem}-xfs.img")
        try:
            await build_initramfs(
                image.modules, agent, place, interpreter=find_interpreter(), programs=programs, more=WANTED_FOR_XFS
            )
        except PermanentError:
            return None
        return place

    async def _qemu(self) -> Tools:
        """The newest of what the backports, the release and the machine itself have."""
        root = self._folder / "qemu"
        version = await qemu_version(qemu_tools(root))
        if not version:
            _discard(root)
            await self._component("qemu", self._unpack_qemu)
            version = await qemu_version(qemu_tools(root))
        own = Tools(qemu=shutil.which("qemu-system-x86_64") or "")
        own_version = await qemu_version(own)
        if not version and not own_version:
            _discard(root)
            raise UnsupportedError("QEMU was unpacked and does not run.", remedy="Install the package qemu-system-x86.")
        return own if own_version and not newer(version, own_version) else qemu_tools(root)

    async def _unpack_qemu(self, apt: PrivateApt, into: Path) -> None:
        for suite in dict.fromkeys((apt.backports, "")):
            debs = await apt.closure("qemu-system-x86", suite=suite)
            await unpack(debs, into)
            # Nothing comes down when the machine has the newest; then the folder stays empty and says so.
            if not debs or await qemu_version(qemu_tools(into)):
                return
            _discard(into)
            into.mkdir()

    async def _kernel(self) -> kernel.Image:
        own = kernel.given()
        if own is not None:
            return await kernel.prepare(own, self._folder)
        await self._component("kernel", kernel.fetch)
        return await kernel.prepare(kernel.unpacked(self._folder / "kernel"), self._folder)

    async def _program(self, name: str, package: str) -> str:
        """A program from the PATH, else unpacked, with a wrapper that lets it find its libraries."""
        if found := shutil.which(name):
            return found
        root = self._folder / name
        place = root / "run"
        if not await _runs(place):
            _discard(root)

            async def fetch(apt: PrivateApt, into: Path) -> None:
                await unpack(await apt.closure(package), into)
                write_wrapper(into, name, root)

            await self._component(name, fetch)
        if not await _runs(place):
            _discard(root)
            raise UnsupportedError(f"{name} was unpacked and does not run.", remedy=f"Install the package {package}.")
        return str(place)

    async def _component(self, name: str, build: Callable[[PrivateApt, Path], Awaitable[None]]) -> None:
        """Make a folder of the toolchain unless it is there: beside its place first, whole or not at all."""
        place = self._folder / name
        if place.is_dir():
            return
        partial = self._folder / f".{name}.partial"
        _discard(partial)
        try:
            apt = await self._ready_apt()
            self._progress(f"download and unpack {name}, about {_megabytes(_SIZES[name])}")
            partial.mkdir()
            await build(apt, partial)
            partial.rename(place)
        finally:
            _discard(partial)

    async def _ready_apt(self) -> PrivateApt:
        if self._apt is None:
            if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
                raise UnsupportedError(
                    "This system has no apt-get, so QEMU and kernel cannot be unpacked.",
                    remedy="Use Debian 12 or newer, or Ubuntu 24.04 or newer.",
                )
            self._progress(f"fetch package lists, about {_megabytes(_SIZES['package lists'])}")
            apt = PrivateApt(self._folder / ".apt")
            apt.remove()
            self._apt = apt
            await apt.prepare(parse_os_release(_OS_RELEASE.read_text()))
        return self._apt


def qemu_tools(root: Path) -> Tools:
    """QEMU in an unpacked tree: the program, its libraries, and the folders of its firmware."""
    program = root / "usr" / "bin" / "qemu-system-x86_64"
    data = [root / "usr" / "share" / name for name in ("qemu", "seabios")]
    return Tools(
        qemu=str(program),
        qemu_library_path=library_path(root),
        qemu_data=":".join(str(folder) for folder in data),
    )


async def qemu_version(tools: Tools) -> str:
    """Its version when it runs, else empty."""
    if not tools.qemu or not Path(tools.qemu).exists():
        return ""
    env = {"LD_LIBRARY_PATH": tools.qemu_library_path} if tools.qemu_library_path else None
    with contextlib.suppress(CommandError):
        words = (await run([tools.qemu, "--version"], env=env)).text().split()
        return words[words.index("version") + 1] if "version" in words[:-1] else ""
    return ""


def write_wrapper(tree: Path, program: str, place: Path) -> None:
    """`run` in an unpacked tree becomes the program with its libraries; the tree will lie at `place`."""
    found = next((path for path in (tree / "usr/bin" / program, tree / "usr/sbin" / program) if path.exists()), None)
    if found is None:
        raise PermanentError(f"The package of {program} has no program of that name.")
    final = place / found.relative_to(tree)
    libraries = library_path(tree).replace(str(tree), str(place))
    setting = f"LD_LIBRARY_PATH={shlex.quote(libraries)} " if libraries else ""
    wrapper = tree / "run"
    wrapper.write_text(f'#!/bin/sh\n{setting}exec {shlex.quote(str(final))} "$@"\n')
    wrapper.chmod(0o755)


async def _runs(program: Path) -> bool:
    if not program.exists():
        return False
    with contextlib.suppress(CommandError):
        await run([str(program), "--version"])
        return True
    return False


def _manifest(tools: Tools) -> Manifest:
    stamp = _DPKG_STATUS.stat().st_mtime_ns if _DPKG_STATUS.exists() else 0
    given = kernel.given()
    return Manifest(
        dpkg_ns=stamp,
        agent=cached_agent(Path()).name,
        launcher=cached_launcher(Path()).name,
        kernel=str(given.path) if given else "",
        modules=_wanted(),
        tools=tools,
    )


def _wanted() -> str:
    """The modules that are asked for, for guests with an xfs and for others."""
    return f"{wanted_words()}; {wanted_words(WANTED_FOR_XFS)}"


def _warm(folder: Path) -> Tools | None:
    """The tools of a finished toolchain that still holds; without starting anything."""
    try:
        found = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    tools = found.tools
    places = (tools.qemu, tools.launcher, tools.kernel, tools.initramfs, tools.etcd, tools.slirp4netns)
    whole = all(os.access(place, os.R_OK) for place in places)
    return tools if whole and found == _manifest(tools) else None


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    with path.open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        yield

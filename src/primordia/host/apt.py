"""apt-get with everything private: our own sources, lists and archives, the user's only for reading what is installed.

Nothing is installed, no hook of the user's configuration runs, no lock of the system is taken. Downloads are checked by
apt against the distribution's signed indices, with the user's own keys and proxy settings.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from primordia.host.apt_sources import Source, backports, own_sources, parse_deb822, parse_one_line
from primordia.kit.command import CommandError, run
from primordia.kit.errors import PermanentError, TemporaryError

_ENVIRONMENT = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
_UPDATE_TIMEOUT_S = 600.0
_DOWNLOAD_TIMEOUT_S = 1800.0
_CONFIGURATION = """\
Dir::State "{root}/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{root}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Debug::NoLocking "true";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Install-Recommends "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
"""


def user_sources(etc_apt: Path) -> tuple[Source, ...]:
    """Every source the user has, in apt's order of files."""
    found: list[Source] = []
    for path in (etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))):
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            found += parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)
    return tuple(found)


class PrivateApt:
    """apt in a folder of its own, made for one run and removed after it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._archives = root / "cache" / "archives"
        self.backports = ""

    async def prepare(self, os_release: Mapping[str, str], etc_apt: Path = Path("/etc/apt")) -> None:
        """Take over the sources and fetch their lists. Raises PermanentError without sources, TemporaryError offline."""
        codename = os_release.get("VERSION_CODENAME", "")
        sources = own_sources(user_sources(etc_apt), codename)
        if not sources:
            raise PermanentError(
                f"{etc_apt} names no package source of {os_release.get('PRETTY_NAME', 'this system')}.",
                remedy=f"Add one for {codename or 'its release'} with the component main, or restore the distribution's own.",
            )
        for folder in ("sources", "state/lists/partial", "cache/archives/partial"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        (self._root / "apt.conf").write_text(_CONFIGURATION.format(root=self._root))
        (self._root / "sources" / "own.sources").write_text("\n".join(source.render() for source in sources))
        extra = backports(sources, codename) if os_release.get("ID") == "debian" else None
        if extra is None or not await self._try_backports(extra):
            await self._update()
        if any(f"{codename}-backports" in source.suites for source in sources):
            self.backports = f"{codename}-backports"

    async def closure(self, package: str, *, suite: str = "") -> tuple[Path, ...]:
        """Download a package and all it needs that is not installed; nothing when it is installed in its newest version."""
        for old in self._archives.glob("*.deb"):
            old.unlink()
        target = ["-t", suite] if suite else []
        await self._get(_DOWNLOAD_TIMEOUT_S, "-y", "--download-only", "--no-install-recommends", *target, "install", package)
        return tuple(sorted(self._archives.glob("*.deb")))

    async def download(self, package: str, into: Path) -> Path:
        """Download one package alone. Raises PermanentError when there is none of that name."""
        into.mkdir(parents=True, exist_ok=True)
        before = set(into.glob("*.deb"))
        await self._get(_DOWNLOAD_TIMEOUT_S, "download", package, cwd=into)
        return next(iter(set(into.glob("*.deb")) - before))

    async def depends(self, package: str) -> tuple[str, ...]:
        """The names of the newest version's dependencies, in order; the first of alternatives."""
        shown = await run(
            ["apt-cache", "-c", str(self._root / "apt.conf"), "show", "--no-all-versions", package],
            env=_ENVIRONMENT,
            check=False,
        )
        names = []
        for line in shown.text().splitlines():
            label, _, value = line.partition(": ")
            if label in ("Depends", "Pre-Depends"):
                names += [re.split(r"[\s(:|]", item.strip(), maxsplit=1)[0] for item in value.split(",")]
        return tuple(names)

    def remove(self) -> None:
        """Delete lists and archives: a hundred megabytes that a warm cache does not need."""
        shutil.rmtree(self._root, ignore_errors=True)

    async def _try_backports(self, extra: Source) -> bool:
        place = self._root / "sources" / "backports.sources"
        place.write_text(extra.render())
        try:
            await self._update()
        except (PermanentError, TemporaryError):
            place.unlink()
            return False
        self.backports = extra.suites[0]
        return True

    async def _update(self) -> None:
        await self._get(_UPDATE_TIMEOUT_S, "-o", "APT::Update::Error-Mode=any", "update")

    async def _get(self, timeout_s: float, *words: str, cwd: Path | None = None) -> None:
        where = ["env", f"--chdir={cwd}"] if cwd else []
        argv = [*where, "apt-get", "-c", str(self._root / "apt.conf"), "-q", *words]
        try:
            await run(argv, timeout_s=timeout_s, env=_ENVIRONMENT)
        except CommandError as error:
            said = next((line for line in error.stderr.splitlines() if line.startswith("E:")), error.message)
            if "Unable to locate" in said or "no installation candidate" in said:
                raise PermanentError(f"The package sources have no {words[-1]}. apt said: {said}") from error
            raise TemporaryError(
                f"apt-get {words[-1]} failed: {said}", remedy="Check the network and the package sources, then try again."
            ) from error


async def unpack(debs: tuple[Path, ...], into: Path) -> None:
    """Unpack packages into a folder, without running or registering anything of them."""
    into.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        await run(["dpkg-deb", "-x", str(deb), str(into)], timeout_s=300)


def library_path(root: Path) -> str:
    """The folders of an unpacked tree that hold shared libraries, as LD_LIBRARY_PATH wants them."""
    folders = {
        path.parent for pattern in ("lib/*.so*", "lib/*/*.so*") for base in ("", "usr/") for path in root.glob(base + pattern)
    }
    return ":".join(str(folder) for folder in sorted(folders) if folder.name != "qemu")

"""Tar streams between a folder here and a context: packing what is ours, unpacking what a guest says.

A guest is untrusted. Unpacking writes below one folder and nowhere else: names that are absolute or climb are refused, as
are devices; a name whose parent has become a link is refused when it is reached, so that no order of members helps. Links
that lead out, which honest folders such as /etc have, are left out and told. Owners are ours, and set-uid bits go.
Extended headers are bounded, because tarfile reads them whole.
(tarfile's own filters are missing in the Python of Debian 12.)
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from primordia.kit.errors import PermanentError

_LARGEST_HEADER = 1024 * 1024
_MOST_MEMBERS = 1_000_000
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class HostileTarError(PermanentError):
    """A tar stream holds something that must not be unpacked."""

    reason = "HostileArchive"

    def __init__(self, name: str, problem: str) -> None:
        shown = name[:200].encode("unicode_escape").decode()
        super().__init__(
            f"The tar stream's member {shown!r} {problem}.", remedy="Nothing more was unpacked; do not trust this context."
        )


class _Member(tarfile.TarInfo):
    """A member whose extended headers are of bounded size. `_proc_member` is where tarfile begins with each header."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _LARGEST_HEADER:
            raise HostileTarError(self.name, "has a header larger than 1 MiB")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def pack(source: Path, name: str, output: IO[bytes]) -> None:
    """Write a tar stream of a file or folder, under `name`. Sockets and devices are left out."""
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        archive.add(source, arcname=name, filter=_ordinary)


def _ordinary(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Whole seconds need no extended header.
    member.mtime = int(member.mtime)
    return member if member.isfile() or member.isdir() or member.issym() or member.islnk() else None


def begins_with_folder(head: bytes) -> bool:
    """Whether a tar stream that begins with these bytes (64 KiB are enough) has a folder as its first member."""
    try:
        with tarfile.open(fileobj=io.BytesIO(head), mode="r|", tarinfo=_Member) as archive:
            first = archive.next()
    except tarfile.TarError:
        return False
    return first is not None and first.isdir()


@dataclass
class Unpacked:
    """What became of a stream: the bytes of its files, and the links that were left out because they lead out."""

    written: int = 0
    left_out: list[str] = field(default_factory=list)


def unpack(source: IO[bytes], target: Path) -> Unpacked:
    """Unpack a stream whose first member is the thing itself, as `target`.

    A folder goes into an existing folder `target` and leaves what else is there. Raises HostileTarError,
    PermanentError for a broken stream, OSError naming the file.
    """
    try:
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_Member) as archive:
            return _unpack(archive, target)
    except tarfile.TarError as error:
        raise PermanentError(f"The tar stream is broken ({error}).", remedy="Try again.") from error


def _unpack(archive: tarfile.TarFile, target: Path) -> Unpacked:
    done = Unpacked()
    root: PurePosixPath | None = None
    modes: list[tuple[Path, int]] = []
    for count, member in enumerate(archive, 1):
        if count > _MOST_MEMBERS:
            raise HostileTarError(member.name, "is beyond a million")
        name = _clean(member)
        root = root if root is not None else name
        place = _place(member, name, root, target)
        if member.issym() and _leads_out(member, place, target):
            done.left_out.append(str(name))
            continue
        done.written += _write(archive, member, place, target, root)
        if member.isdir():
            # Folders get their modes last: a read-only one must take its files first.
            modes.append((place, member.mode))
    for place, mode in reversed(modes):
        place.chmod(stat.S_IMODE(mode) & 0o755 | 0o700)
    return done


def _clean(member: tarfile.TarInfo) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise HostileTarError(member.name, "leads out of its folder")
    return path


def _place(member: tarfile.TarInfo, name: PurePosixPath, root: PurePosixPath, target: Path) -> Path:
    """Where a member goes; its folder must be a real one at or below the target."""
    if name == root:
        return target
    if not name.is_relative_to(root):
        raise HostileTarError(member.name, "lies beside what was asked for")
    place = target / name.relative_to(root)
    folder = target
    for part in place.parent.relative_to(target).parts:
        if folder.is_symlink():
            raise HostileTarError(member.name, "goes through a link")
        folder /= part
    if folder.is_symlink() or target.is_symlink():
        raise HostileTarError(member.name, "goes through a link")
    return place


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path, target: Path, root: PurePosixPath) -> int:
    if member.isdir():
        if place.is_symlink() or not place.is_dir():
            _clear(place)
            place.mkdir(mode=0o700, parents=place != target)
        return 0
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        _clear(place)
        place.symlink_to(member.linkname)
        return 0
    if member.islnk():
        return _copy_link(member, place, target, root)
    if not member.isreg() or member.issparse():
        raise HostileTarError(member.name, "is neither file nor folder nor link")
    content = archive.extractfile(member)
    assert content is not None
    _clear(place)
    with place.open("xb") as file:
        shutil.copyfileobj(content, file, 1024 * 1024)
        if file.tell() != member.size:
            raise PermanentError(f"The tar stream ended within {place.name!r}.", remedy="Try again.")
    place.chmod(stat.S_IMODE(member.mode) & 0o755 | 0o600)
    return member.size


def _leads_out(member: tarfile.TarInfo, place: Path, target: Path) -> bool:
    """Whether a link may lead out of the folder that is being unpacked.

    Its own folder is a real one, so leading `..` can be counted; behind a name they cannot, for the name may be a link.
    """
    if place == target:
        # Only a link was asked for: it is made as it is, and nothing is written through it.
        return False
    parts = PurePosixPath(member.linkname).parts
    climbs = len(list(itertools.takewhile(lambda part: part == "..", parts)))
    depth = len(place.parent.relative_to(target).parts)
    return member.linkname.startswith("/") or climbs > depth or ".." in parts[climbs:]


def _copy_link(member: tarfile.TarInfo, place: Path, target: Path, root: PurePosixPath) -> int:
    """A hard link becomes one to a file that this stream has already brought."""
    other = PurePosixPath(member.linkname)
    if other.is_absolute() or ".." in other.parts or not other.is_relative_to(root):
        raise HostileTarError(member.name, "is a link to what was not asked for")
    source = _place(member, other, root, target)
    if source.is_symlink() or not source.is_file():
        raise HostileTarError(member.name, "is a link to what is no file")
    _clear(place)
    os.link(source, place, follow_symlinks=False)
    return 0


def _clear(place: Path) -> None:
    """Replace a file or link; never a folder."""
    if place.is_symlink() or place.is_file():
        place.unlink()

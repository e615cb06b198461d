"""The files of a box. Contents cross as tar streams of one member; a folder is listed by `stat` in the box."""

from __future__ import annotations

import io
import posixpath
import stat
import tarfile
import time
from typing import TYPE_CHECKING, Literal

from primordia.client.box_results import FileInfo
from primordia.client.errors import BrokenAnswerError, MissingPathError
from primordia.kit.errors import InvalidError, PermanentError

if TYPE_CHECKING:
    from primordia.client.boxes import Box

_MISSING = 66  # EX_NOINPUT of sysexits(3)
# A name has no slash in it, so that one and a newline end each entry, whatever the name.
_LIST = (
    f'[ -e "$1" ] || exit {_MISSING}; cd -- "$1" && '
    'for each in .[!.]* ..?* *; do [ -e "$each" ] || [ -L "$each" ] && printf "%s\\0" "$each"; done | '
    'xargs -0 -r stat -c "%f %s %Y %n/" --'
)
_ENTRY_END = "/\n"


class Files:
    """Files by absolute path. Every method raises BoxGoneError, MissingPathError, and PermanentError for the others."""

    def __init__(self, box: Box) -> None:
        self._box = box

    async def write(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Write a whole file into a folder that exists."""
        folder, name = posixpath.split(_clean(path))
        if not name:
            raise InvalidError("path", f"{path!r} names no file.")
        content = data.encode() if isinstance(data, str) else data
        async with self._box.translated():
            await self._box.client.write_tar(self._box.name, folder, [_packed(name, content, mode)], **self._box.place)

    async def read(self, path: str) -> bytes:
        """A whole file."""
        async with self._box.translated():
            pieces = [piece async for piece in self._box.client.read_tar(self._box.name, _clean(path), **self._box.place)]
        return _unpacked(b"".join(pieces), path)

    async def read_text(self, path: str) -> str:
        """A whole file, as UTF-8."""
        return (await self.read(path)).decode()

    async def list(self, path: str) -> list[FileInfo]:
        """The entries of a folder, by name."""
        result = await self._box.run(["/bin/sh", "-c", _LIST, "sh", _clean(path)])
        if not result.ok:
            if result.exit_code == _MISSING:
                raise MissingPathError(f"There is no {path!r} in the box.")
            said = result.stderr.strip().splitlines()[-1:] or ["no answer"]
            raise PermanentError(f"{path!r} cannot be listed ({said[0]}).")
        return parse_listing(result.stdout)

    async def make_folder(self, path: str) -> None:
        """Make a folder, and those above it; one that is there is fine."""
        (await self._box.run(["mkdir", "-p", "--", _clean(path)])).check()

    async def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it; what is not there is fine."""
        (await self._box.run(["rm", "-rf", "--", _clean(path)])).check()


def parse_listing(text: str) -> list[FileInfo]:
    """What `stat` wrote about the entries of a folder. Raises BrokenAnswerError."""
    try:
        found = [_entry(each) for each in text.split(_ENTRY_END) if each]
    except ValueError as error:
        raise BrokenAnswerError(f"The box's `stat` answers in a way that is not understood ({error}).") from error
    return sorted(found, key=lambda each: each.name)


def _entry(line: str) -> FileInfo:
    mode, size, modified, name = line.split(" ", 3)
    bits = int(mode, 16)
    return FileInfo(name, _type(bits), int(size), float(modified), stat.S_IMODE(bits))


def _type(bits: int) -> Literal["file", "folder", "link", "other"]:
    if stat.S_ISREG(bits):
        return "file"
    if stat.S_ISDIR(bits):
        return "folder"
    return "link" if stat.S_ISLNK(bits) else "other"


def _clean(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidError("path", f"{path!r} is not absolute.", remedy="Begin it with a slash.")
    return "/" + posixpath.normpath(path).lstrip("/")


def _packed(name: str, content: bytes, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(content), mode, int(time.time())
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _unpacked(content: bytes, path: str) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            member = tar.next()
            stream = tar.extractfile(member) if member is not None and member.isreg() else None
            if stream is None:
                raise PermanentError(f"{path!r} is no file.", remedy="`list` tells what it is.")
            return stream.read()
    except tarfile.TarError as error:
        raise BrokenAnswerError(f"The box's answer for {path!r} is no tar stream ({error}).") from error

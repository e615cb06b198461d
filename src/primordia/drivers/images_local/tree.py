"""A root's tree of files before it becomes a disk: made ready for a guest, and named by its content.

The tree may be a stranger's, and its `etc` may be a symbolic link to the machine's own. So every step goes through a
descriptor of the folder before it and never follows a link.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from primordia.kit.errors import PermanentError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOUNT_POINTS = (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777))
# The agent writes these at each start, into the scratch layer. Links (to systemd's resolver) become plain files, and
# what the building machine left in them does not travel.
_GUEST_FILES = (("hosts", 0o644), ("hostname", 0o644), ("resolv.conf", 0o644), ("machine-id", 0o444))
_XATTRS_IN_DIGEST = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")


def furnish(tree: Path) -> None:
    """Give the tree what a guest needs: mount points and plain files in /etc. PermanentError when /etc is no folder."""
    root = os.open(tree, _FOLDER)
    try:
        for name, mode in _MOUNT_POINTS:
            _mount_point(root, name, mode)
        with contextlib.suppress(FileExistsError):
            os.mkdir("etc", 0o755, dir_fd=root)
        try:
            etc = os.open("etc", _FOLDER, dir_fd=root)
        except OSError as error:
            raise PermanentError("The image's /etc is not a folder, so no guest can be set up in it.") from error
        try:
            for name, mode in _GUEST_FILES:
                _plain_file(etc, name, mode)
        finally:
            os.close(etc)
    finally:
        os.close(root)


def _mount_point(root: int, name: str, mode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=root)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=root)
        os.chmod(name, mode, dir_fd=root)


def _plain_file(folder: int, name: str, mode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def clear(tree: Path, paths: Iterable[str]) -> None:
    """Remove files and whole folders, given relative to the tree; one that ends in `/` is emptied and stays.

    A path that leads through a symbolic link is left alone.
    """
    for path in paths:
        *parents, name = path.strip("/").split("/")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _inside(tree, parents) as parent:
            if path.endswith("/"):
                with _opened(name, parent) as folder:
                    for child in _names(folder):
                        _remove(child, folder)
            else:
                _remove(name, parent)


@contextlib.contextmanager
def _inside(tree: Path, parents: list[str]) -> Iterator[int]:
    """A descriptor of a folder below the tree, reached without following a link."""
    current = os.open(tree, _FOLDER)
    try:
        for name in parents:
            following = os.open(name, _FOLDER, dir_fd=current)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


@contextlib.contextmanager
def _opened(name: str, parent: int) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(folder: Path | int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _remove(name: str, folder: int) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def tree_digest(tree: Path, config: bytes) -> str:
    """`sha256:...` over the tree as a guest sees it and over what its source says to run.

    Names, kinds, modes, owners, capabilities, link targets and content count; times and inode numbers do not, so that
    a build repeated is the same image.
    """
    total = hashlib.sha256(config)
    for relative, path in _walk(tree, ""):
        status = path.lstat()
        total.update(_line(relative, status, path))
    return f"sha256:{total.hexdigest()}"


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for name in _names(folder):
        path, relative = folder / name, f"{prefix}{name}"
        yield relative, path
        if stat.S_ISDIR(path.lstat().st_mode):
            yield from _walk(path, f"{relative}/")


def _line(relative: str, status: os.stat_result, path: Path) -> bytes:
    """One entry. Fields end in NUL, which no name or target holds, so no two entries read alike."""
    content = ""
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = str(path.readlink())
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        content = str(status.st_rdev)
    fields = (relative, f"{status.st_mode:o}", str(status.st_uid), str(status.st_gid), content, _attributes(path))
    return b"".join(os.fsencode(field) + b"\0" for field in fields)


def _attributes(path: Path) -> str:
    try:
        names = [name for name in os.listxattr(path, follow_symlinks=False) if name in _XATTRS_IN_DIGEST]
        return ",".join(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}" for name in sorted(names))
    except OSError:
        return ""

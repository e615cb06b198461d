"""Deleting a folder in which a build was going on.

A killed mmdebstrap leaves /proc, /sys, /dev/pts mounted in its tree where it could not be enclosed (kit/enclosure), and nothing
may be deleted through a mount: it would be the machine's own. So what is mounted below is detached first, and while
anything still is, nothing is deleted.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from pathlib import Path

from primordia.kit.errors import FatalError

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """The mount points below a folder, the latest first, by the text of /proc/self/mountinfo (see proc(5)). Pure."""
    places = [_unescape(line.split(" ")[4]) for line in mountinfo.splitlines() if line]
    return [place for place in reversed(places) if f"{place}/".startswith(f"{folder}/")]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def remove_tree(folder: Path) -> None:
    """Detach what is mounted below a folder, then delete it. FatalError when a mount cannot be detached."""
    place = folder.resolve()
    for mount in _mounted(place):
        if _libc.umount2(os.fsencode(mount), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            problem = os.strerror(ctypes.get_errno())
            raise FatalError(f"{mount} is mounted inside a folder to be deleted ({problem}).", remedy=f"Run: umount {mount}")
    if left := _mounted(place):
        raise FatalError(f"{left[0]} was mounted inside a folder to be deleted.", remedy="Something still works there; end it.")
    shutil.rmtree(folder)


def _mounted(place: Path) -> list[str]:
    return mounts_below(place, Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))

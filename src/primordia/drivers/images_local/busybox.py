"""A root of nothing but busybox: one static program that answers to two hundred names."""

from __future__ import annotations

import os
from pathlib import Path

from primordia.kit.command import run
from primordia.kit.errors import PermanentError

_FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "root", "home", "var/log", "var/tmp")
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"
_PLACES = ("bin/busybox", "usr/bin/busybox")


async def furnish_busybox(tree: Path) -> None:
    """Link every applet beside the busybox that lies in the tree, and write the accounts that programs ask for.

    The tree is our own (an unpacked package of the distribution), so its program is asked for its applets here.
    """
    program = next((tree / place for place in _PLACES if (tree / place).is_file()), None)
    if program is None:
        raise PermanentError("The busybox package holds no busybox program.", remedy="Is the mirror of the distribution sound?")
    for folder in _FOLDERS:
        (tree / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
    (tree / "root").chmod(0o700)
    (tree / "var/tmp").chmod(0o1777)
    target = f"/{program.relative_to(tree)}"
    for applet in (await run([str(program), "--list-full"], timeout_s=10)).text().split():
        link = tree / applet
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    (tree / "etc/passwd").write_text(_PASSWD)
    (tree / "etc/group").write_text(_GROUP)

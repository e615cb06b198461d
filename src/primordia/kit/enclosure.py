"""Enclosing a program whose mounts and children must not outlive it, however it ends.

A builder that is killed in mid-work, or whose daemon is, leaves what it had mounted and started. In namespaces of its own the
kernel clears up after it: with the first process of a PID namespace all the others end, and with the last of them
the mount namespace goes (pid_namespaces(7), mount_namespaces(7)).

Standard library only: the supervisor uses it as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def root_is_mounted(mountinfo: str) -> bool:
    """Whether `/` is a mount point, by the text of /proc/self/mountinfo (proc(5))."""
    return any(fields[4] == "/" for line in mountinfo.splitlines() if len(fields := line.split()) > 4)


def mounts_can_be_own() -> bool:
    """Whether mounts can be hidden from this machine: not in a plain chroot, whose `/` is no mount point."""
    return root_is_mounted(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def enclosed_argv(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` with mounts and processes of its own, all of which end with it and with its caller.

    The caller's death reaches `unshare` as a signal, and from there the enclosure. It needs `mounts_can_be_own`.
    """
    unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", "--", *unshare, "--", *argv]

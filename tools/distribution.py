"""Distribution packages: what is missing, said and then installed by apt-get, with no service started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from environment import SetupError, cache_dir
from primordia.host.packages import Package, already, announcement

_POLICY = Path("/usr/sbin/policy-rc.d")
_APT = ("apt-get", "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0")


def announce(missing: Sequence[Package], *, venv: bool) -> str:
    """What the demo does to this machine."""
    unpacked, image = already(cache_dir())
    return announcement(missing, venv=venv, toolchain=not unpacked, image=not image, keep=os.environ.get("KEEP") == "1")


def install(missing: Sequence[Package]) -> None:
    """Install packages by apt-get. Raises SetupError with apt's last words."""
    if not missing:
        return
    names = [package.name for package in missing]
    print(f"Installing {' '.join(names)}", flush=True)
    with _no_services():
        if _apt(["install", *names]) is None:
            return
        # Fresh machines have no package lists, old ones stale ones.
        _apt(["update"])
        words = _apt(["install", *names])
    if words is not None:
        raise SetupError(f"apt-get could not install {' '.join(names)}: {words}")


def _apt(arguments: Sequence[str]) -> str | None:
    """None when it worked, else its last words."""
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run([*_APT, *arguments], env=settings, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise SetupError("apt-get is not installed. Use Debian 12 or newer, or Ubuntu 24.04 or newer.") from None
    if done.returncode == 0:
        return None
    return done.stderr.decode(errors="replace").strip()[-600:] or f"exit code {done.returncode}"


@contextmanager
def _no_services() -> Iterator[None]:
    """Let no package start a service, unless the machine has a policy of its own.

    The policy forbids only while this process lives, so a copy that outlives a kill -9 forbids nothing.
    """
    if _POLICY.exists() and "made by primordia" not in _POLICY.read_text(errors="replace"):
        yield
        return
    _POLICY.write_text(f"#!/bin/sh\n# made by primordia\n[ ! -d /proc/{os.getpid()} ] || exit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
        sys.stdout.flush()

"""The Python environment of a clone: outside it, named by what it holds, made once and then only used.

pip runs with the user's own configuration and environment, whatever they are; nothing is set here. A venv is finished
when its marker is there: a half-made one is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MARKER = ".complete"


class SetupError(Exception):
    """A sentence with its remedy, for people."""


def cache_dir() -> Path:
    """PRIMORDIA_CACHE, else /var/cache/primordia."""
    return Path(os.environ.get("PRIMORDIA_CACHE", "/var/cache/primordia"))


def lock(root: Path) -> tuple[str, ...]:
    """Every Python package with its version, from the lock in pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())
    return tuple(project["tool"]["primordia"]["lock"])


def venv_place(root: Path) -> Path:
    """Where this clone's environment is, or will be: named by the lock and the Python that makes it."""
    key = "\n".join((os.path.realpath(sys.executable), sys.version, *lock(root)))
    return cache_dir() / "venv" / hashlib.sha256(key.encode()).hexdigest()[:12]


def is_complete(place: Path) -> bool:
    """Whether the environment is finished."""
    return (place / _MARKER).is_file()


def ensure_venv(root: Path, place: Path) -> None:
    """Make the environment unless it is there. Raises SetupError with pip's last words."""
    if is_complete(place):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if is_complete(place):
            return
        print(f"Making a Python environment in {place}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        make_venv(place)
        pip(place, ["install", "--no-deps", *lock(root)], settings(root, place))
        (place / _MARKER).write_text("")


def compile_source(root: Path, place: Path) -> None:
    """Compile what has changed, once: six daemons that start at once would each do it, in 10 to 25 s. Raises SetupError."""
    command = [str(place / "bin/python"), "-m", "compileall", "-q", str(root / "src")]
    _call(command, "Primordia's source could not be compiled", settings(root, place))


def make_venv(place: Path) -> None:
    """An empty environment. Raises SetupError."""
    _call([sys.executable, "-m", "venv", str(place)], f"The Python environment {place} could not be made")


def pip(place: Path, arguments: list[str], env: Mapping[str, str] | None = None) -> None:
    """Run the environment's pip, which compiles to where `env` says. Raises SetupError with its last words."""
    command = [str(place / "bin/python"), "-m", "pip", "--quiet", *arguments]
    _call(command, "pip could not install Primordia's Python packages", env)


def _call(command: list[str], problem: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=env)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-1500:]
        raise SetupError(f"{problem}: {words}")


def settings(root: Path, place: Path) -> dict[str, str]:
    """The environment in which the clone's own programs run: every cache outside the clone."""
    tools = cache_dir() / "dev"
    return {
        **os.environ,
        "PATH": f"{place / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(root / "src"),
        "PYTHONPYCACHEPREFIX": str(tools / "pycache"),
        "MYPY_CACHE_DIR": str(tools / "mypy"),
        "RUFF_CACHE_DIR": str(tools / "ruff"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tools / "hypothesis"),
        "PRIMORDIA_TOOL_CACHES": str(tools),
    }

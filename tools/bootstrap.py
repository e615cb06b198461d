"""From a fresh clone to a running task, with nothing but the standard library.

Everything that a clone makes goes outside it (see environment.py), so that no root-owned file appears in somebody's
working tree. Announcing and asking happen before anything changes and before sudo asks for a password.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import distribution
import environment
import tasks
from environment import SetupError
from primordia.host import packages

# What a user's own settings may be made of; sudo drops the rest.
_KEPT = re.compile(
    r"(PIP_|PRIMORDIA_|APT_|HYPOTHESIS_).*|(https?|no|all|ftp)_proxy|SSL_CERT_(FILE|DIR)"
    r"|CI|YES|KEEP|CYCLES|SEED|MINUTES|NO_COLOR|TERM",
    re.I,
)


def main(arguments: list[str]) -> int:
    """Run one task of tasks.TASKS; the exit code is the task's."""
    announced = "--announced" in arguments
    names = [argument for argument in arguments if argument != "--announced"]
    if not names or names[0] not in tasks.TASKS:
        print(f"usage: bootstrap {{{','.join(tasks.TASKS)}}} [ARGUMENT...]", file=sys.stderr)
        return 2
    try:
        return _run(names[0], names[1:], announced)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(name: str, arguments: list[str], announced: bool) -> int:
    refusal = packages.refuse(packages.read_platform())
    if refusal is not None:
        raise SetupError(f"{refusal.message} {refusal.remedy}")
    task = tasks.TASKS[name]
    missing = packages.missing(task.purpose, packages.installed_packages())
    place = environment.venv_place(ROOT)
    if task.announces and not announced:
        print(distribution.announce(missing, venv=not environment.is_complete(place)))
        _ask()
    ready = environment.is_complete(place) and not missing
    if os.geteuid() != 0 and (task.needs_root or not ready):
        _become_root([name, "--announced", *arguments])
    distribution.install(missing)
    environment.ensure_venv(ROOT, place)
    if task.announces:
        environment.compile_source(ROOT, place)
    return task.run(ROOT, place, arguments)


def _ask() -> None:
    if os.environ.get("YES") == "1":
        return
    if not sys.stdin.isatty():
        raise SetupError("Nobody is there to be asked. Say YES=1 to agree beforehand, as in: make demo YES=1")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise SetupError("Nothing was changed.")


def _become_root(arguments: list[str]) -> None:
    """Run this program again by sudo, with the settings that the user gave to pip, apt and us. Does not return."""
    # sudo gives root's home, and so root's pip configuration; the user's own is named explicitly.
    configured = Path.home() / ".config/pip/pip.conf"
    if "PIP_CONFIG_FILE" not in os.environ and configured.is_file():
        os.environ["PIP_CONFIG_FILE"] = str(configured)
    kept = ",".join(name for name in os.environ if _KEPT.fullmatch(name))
    command = ["sudo", "-H", f"--preserve-env={kept}", "--", sys.executable, "-B", str(ROOT / "tools/bootstrap.py"), *arguments]
    sys.stdout.flush()
    try:
        os.execvp("sudo", command)
    except FileNotFoundError:
        raise SetupError("This needs root, and sudo is not installed. Run it as root.") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

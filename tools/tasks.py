"""What each Makefile target runs, once its environment is there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import installation
from environment import cache_dir, settings
from primordia.host.packages import Purpose

_MOST_WORKERS = 6  # each brings up soups of many microVMs

Run = Callable[[Path, Path, list[str]], int]


@dataclass(frozen=True)
class Task:
    """`run` gets the clone, the Python environment and further arguments, and returns the exit code."""

    run: Run
    purpose: Purpose = "run"
    announces: bool = False
    needs_root: bool = True


def _steps(root: Path, place: Path, steps: Sequence[tuple[str, Sequence[str]]]) -> int:
    """Run commands in order until one fails; each says its name and time."""
    for title, command in steps:
        print(f"== {title}", flush=True)
        started = time.monotonic()
        status = subprocess.run(command, cwd=root, env=settings(root, place), check=False).returncode
        if status != 0:
            print(f"error: {title} failed after {time.monotonic() - started:.0f} s.", file=sys.stderr)
            return status if status > 0 else 1
    return 0


def _lint_steps() -> list[tuple[str, Sequence[str]]]:
    layers = ("lint-imports", "--no-logo", "--cache-dir", str(cache_dir() / "dev/import-linter"))
    return [
        ("ruff check", ("ruff", "check", "--quiet", ".")),
        ("ruff format --check", ("ruff", "format", "--check", "--quiet", ".")),
        ("mypy --strict", ("mypy", "--no-error-summary")),
        ("import layers", layers),
    ]


def lint(root: Path, place: Path, arguments: list[str]) -> int:
    """Lint, types and layers."""
    return _steps(root, place, _lint_steps())


def fmt(root: Path, place: Path, arguments: list[str]) -> int:
    """Format the source, and mend what can be mended without thought."""
    mend = ("mend", ("ruff", "check", "--fix", "--quiet", *arguments, "."))
    return _steps(root, place, [("format", ("ruff", "format", *arguments, ".")), mend])


def _pytest(arguments: Sequence[str]) -> Sequence[str]:
    """Whole files side by side, in the order of `testpaths`: what a file shares among its tests is made once."""
    workers = min((os.cpu_count() or 1) + 1, _MOST_WORKERS)  # one more than cores: each waits a quarter of its time
    side_by_side = ("-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder")
    return ("python", "-m", "pytest", "-q", "-o", f"cache_dir={cache_dir() / 'dev/pytest'}", *side_by_side, *arguments)


def test(root: Path, place: Path, arguments: list[str]) -> int:
    """The whole gate: lint, then the agent's own tests, then one pytest run over everything."""
    with tempfile.TemporaryDirectory(prefix="primordia-guest-") as output:
        steps = _lint_steps()
        if (root / "guest/Makefile").is_file():
            steps.append(("guest agent", ("make", "-s", "-C", str(root / "guest"), f"BUILD={output}", "check")))
        steps.append(("pytest", _pytest(arguments)))
        return _steps(root, place, steps)


def primordia(root: Path, place: Path, arguments: Sequence[str]) -> int:
    """Become the clone's own `primordia`. Does not return."""
    sys.stdout.flush()
    python = str(place / "bin/python")
    own = {**settings(root, place), "PRIMORDIA_PROGRAM": str(root / "tools/primordia")}
    os.execve(python, [python, "-m", "primordia.cli.main", *arguments], own)


def demo(root: Path, place: Path, arguments: list[str]) -> int:
    """The demo; what it does was announced and agreed to."""
    keep = ["--keep"] if os.environ.get("KEEP") == "1" else []
    return primordia(root, place, ["demo", "--yes", "--announced", *keep, *arguments])


def bench(root: Path, place: Path, arguments: list[str]) -> int:
    """Every benchmark, or those named."""
    return primordia(root, place, ["bench", *(arguments or ["all"])])


def sim(root: Path, place: Path, arguments: list[str]) -> int:
    """Many simulated soups, half of them with machines that die; SEEDS says how many, SEED repeats one."""
    asked = [f"--{name.lower()}={os.environ[name]}" for name in ("SEEDS", "SEED") if os.environ.get(name)]
    return _module(root, place, "primordia.sim", [*asked, *arguments])


def probe(root: Path, place: Path, arguments: list[str]) -> int:
    """Real faults on a soup of six nodes."""
    return _module(root, place, "primordia.probe", arguments)


def soak(root: Path, place: Path, arguments: list[str]) -> int:
    """An engine that is hurt all the time."""
    return _module(root, place, "primordia.probe.soak", arguments)


def _module(root: Path, place: Path, name: str, arguments: Sequence[str]) -> int:
    """Become a module of the clone's. Does not return."""
    sys.stdout.flush()
    python = str(place / "bin/python")
    os.execve(python, [python, "-m", name, *arguments], settings(root, place))


TASKS: dict[str, Task] = {
    "demo": Task(demo, announces=True),
    "test": Task(test, purpose="test"),
    "lint": Task(lint),
    "fmt": Task(fmt),
    "bench": Task(bench),
    "sim": Task(sim, purpose="test", needs_root=False),
    "probe": Task(probe, purpose="test"),
    "soak": Task(soak, purpose="test"),
    "primordia": Task(primordia, needs_root=False),
    "install": Task(installation.install),
    "uninstall": Task(installation.uninstall),
}

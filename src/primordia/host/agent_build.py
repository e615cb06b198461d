"""Compile the guest agent, and what starts QEMU, with the machine's own C compiler, once for each state of their sources.

The agent is linked statically, for it runs as process 1 of guests that have no C library yet. The result's name carries
the hash of the sources and flags, so an upgrade never boots an old agent and nothing needs to be told apart by time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from primordia.drivers import vmm_qemu
from primordia.kit.command import CommandError, run
from primordia.kit.errors import PermanentError, UnsupportedError
from primordia.kit.ids import new_uid

# No -Werror here: a newer compiler's new warning must not stop a user.
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-pthread", "-s")
_COMPILE_TIMEOUT_S = 300.0
_LAUNCHER = Path(vmm_qemu.__file__).parent / "launch.c"


def find_sources() -> Path:
    """The folder with the agent's sources: in the installed package, else in the checkout. Raises PermanentError."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_guest", package.parent.parent / "guest"):
        if (folder / "agent.c").is_file():
            return folder
    raise PermanentError("The guest agent's sources are missing from the package.", remedy="Install primordia again.")


def find_interpreter() -> Path:
    """The Python file that the agent shows to programs of the guest. Raises PermanentError."""
    return find_sources() / "interpreter.py"


def source_hash(sources: Path) -> str:
    """Sixteen hex digits that change with any source file or flag."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for file in sorted(file for kind in ("*.c", "*.h", "*.py") for file in sources.glob(kind)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cached_agent(cache: Path) -> Path:
    """Where the agent of these sources lies, or would lie, in the cache folder."""
    return cache / f"agent-{source_hash(find_sources())}"


async def build_agent(output: Path) -> Path:
    """Compile the agent to `output` and return it. Raises UnsupportedError when no compiler or static C library is there."""
    return await _compile(sorted(find_sources().glob("*.c")), output)


async def ensure_launcher(cache: Path) -> Path:
    """What starts QEMU, of this source, in the cache folder, compiled if it is not there yet. Raises as `build_agent`."""
    launcher = cached_launcher(cache)
    return launcher if launcher.is_file() else await _compile([_LAUNCHER], launcher)


def cached_launcher(cache: Path) -> Path:
    """Where the launcher of this source lies, or would lie, in the cache folder."""
    content = " ".join(_FLAGS).encode() + _LAUNCHER.read_bytes()
    return cache / f"launch-{hashlib.sha256(content).hexdigest()[:16]}"


async def _compile(sources: Sequence[Path], output: Path) -> Path:
    if shutil.which("gcc") is None:
        raise UnsupportedError("The guest agent cannot be compiled: gcc is not installed.", remedy="Install gcc and libc6-dev.")
    files = [str(file) for file in sources]
    temporary = output.with_name(f".{output.name}.{new_uid()}.tmp")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        await run(["gcc", *_FLAGS, "-o", str(temporary), *files], timeout_s=_COMPILE_TIMEOUT_S)
        temporary.replace(output)
    except CommandError as error:
        raise _explained(error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return output


async def ensure_agent(cache: Path) -> Path:
    """The agent of these sources in the cache folder, compiled if it is not there yet."""
    agent = cached_agent(cache)
    return agent if agent.is_file() else await build_agent(agent)


def _explained(error: CommandError) -> PermanentError:
    no_static = "cannot find -lc" in error.stderr or "stdio.h" in error.stderr
    if no_static:
        return UnsupportedError(
            "The guest agent cannot be compiled: the C library's headers or its static half are not installed.",
            remedy="Install libc6-dev.",
        )
    return PermanentError(f"The guest agent cannot be compiled: {error.message}", remedy="Check that gcc works.")

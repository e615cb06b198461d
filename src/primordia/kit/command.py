"""The only place that starts short-lived programs.

Long-lived children (microVMs, the engine, the daemon) are started by their own drivers; everything else goes through
`run`, which bounds time and output, never uses a shell, and turns a failure into a sentence with the program's last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from primordia.kit.errors import PrimordiaError

_LAST_WORDS = 2000


class CommandError(PrimordiaError):
    """A program ended with a failure, ran out of time, or could not be started."""

    reason = "CommandFailed"

    def __init__(self, argv: Sequence[str], problem: str, stderr: str = "", *, status: int | None = None) -> None:
        words = stderr.strip()[-_LAST_WORDS:]
        super().__init__(f"{argv[0]} {problem}" + (f": {words}" if words else "."))
        self.argv = tuple(argv)
        self.stderr = stderr
        self.status = status

    def command_line(self) -> str:
        """The command as a shell would take it, for the log."""
        return shlex.join(self.argv)


@dataclass(frozen=True)
class Completed:
    """What a finished program left."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    def text(self) -> str:
        """Standard output as text, without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    netns: int | None = None,
    check: bool = True,
) -> Completed:
    """Run a program to its end and return what it left.

    `env` is added to this process's environment. `netns` is a descriptor of the network namespace to run in (by
    nsenter). The program gets a process group of its own, which is killed as a whole at the deadline or when the caller
    is cancelled. Raises CommandError when it cannot be started, runs out of time or, with `check`, fails.
    """
    full = list(argv)
    pass_fds: tuple[int, ...] = ()
    if netns is not None:
        full = ["nsenter", f"--net=/proc/self/fd/{netns}", "--", *full]
        pass_fds = (netns,)
    try:
        process = await asyncio.create_subprocess_exec(
            *full,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env} if env else None,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        raise CommandError(argv, "is not installed") from error
    except OSError as error:
        raise CommandError(argv, f"cannot be started ({error.strerror})") from error
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError as error:
        await _kill_group(process)
        raise CommandError(argv, f"did not finish within {timeout_s:g} s") from error
    except BaseException:
        await _kill_group(process)
        raise
    status = process.returncode if process.returncode is not None else -1
    if check and status != 0:
        raise CommandError(argv, _ending(status), stderr.decode(errors="replace"), status=status)
    return Completed(tuple(argv), status, stdout, stderr)


def _ending(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"failed with exit code {status}"


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()

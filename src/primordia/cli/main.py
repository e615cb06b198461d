"""The entry of `primordia` and `kbl`: arguments in, an exit code out, and never a traceback.

Exit codes: 0 done, 1 an error that is said in one line, 2 a wrong use, 130 interrupted; `exec` and `run` give the guest
command's own. The command modules are imported when their command is called, so that `--help` and completion are quick.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from primordia.cli.tree import parse
from primordia.kit.errors import PrimordiaError

Command = Callable[[Namespace], Coroutine[Any, Any, int]]


def entry() -> None:
    """What the installed programs call."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        options = parse(arguments)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    try:
        status = _perform(options)
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except BrokenPipeError:
        # The reader (as `head`) has seen enough. Python would complain once more at exit, so give it a quiet place.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PrimordiaError as error:
        _say(str(error))
        return 1
    except OSError as error:
        _say(_os_sentence(error))
        return 1
    except Exception as error:
        return _unexpected(error)


def command_of(options: Namespace) -> Command:
    """The action that the command line names."""
    module, _, name = options.command.partition(":")
    action: Command = getattr(importlib.import_module(f"primordia.cli.{module}"), name)
    return action


def _perform(options: Namespace) -> int:
    command = command_of(options)
    try:
        return asyncio.run(command(options))
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person should see: of several the first of ours, else the first."""
    leaves = list(_leaves(group))
    return next((error for error in leaves if isinstance(error, PrimordiaError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _os_sentence(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}."


def _say(sentence: str) -> None:
    if os.environ.get("PRIMORDIA_DEBUG") == "1":
        traceback.print_exc()
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)


def _unexpected(error: Exception) -> int:
    """A bug of ours: the trace goes to a file, one line to the screen."""
    if os.environ.get("PRIMORDIA_DEBUG") == "1":
        traceback.print_exc()
    words = " ".join(str(error).split()) or type(error).__name__
    try:
        descriptor, path = tempfile.mkstemp(prefix="primordia-bug-", suffix=".log")
        with os.fdopen(descriptor, "w") as file:
            traceback.print_exception(error, file=file)
        where = f"The trace is in {Path(path)}; please report it."
    except OSError:
        where = "Set PRIMORDIA_DEBUG=1 to see the trace."
    print(f"error: This is a bug in primordia ({type(error).__name__}: {words[:200]}). {where}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    entry()

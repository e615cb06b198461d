"""How the demo tells its story: chapters, commands as they would be typed, and figures for the table at the end.

Only what everybody can call is called: the command line, the client, and Redis's own client for Python.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primordia.cli.main import command_of
from primordia.cli.output import Progress, colourful, paint, printable
from primordia.cli.tree import parse
from primordia.kit.errors import PermanentError, TemporaryError

SOUP = "demo"
_ANSWER_WITHIN_S = 90.0


@dataclass
class Stage:
    """What has been told and measured. `begun`, of the monotonic clock, is when there was nothing but packages."""

    config: Path | None
    begun: float = field(default_factory=time.monotonic)
    measured: list[tuple[str, str]] = field(default_factory=list)
    chapters: int = 0

    def title(self, words: str) -> None:
        """A new chapter."""
        self.chapters += 1
        print(f"\n{paint(f'{self.chapters}. {words}', 'bold', on=colourful(sys.stdout))}", flush=True)

    def typed(self, line: str) -> None:
        """A command, as a person would type it."""
        print(paint(f"$ {line}", "dim", on=colourful(sys.stdout)), flush=True)

    def note(self, what: str, value: str) -> None:
        """A measurement for the table at the end."""
        self.measured.append((what, value))

    def since_begun(self) -> str:
        """How long it has been."""
        return f"{time.monotonic() - self.begun:.1f} s"

    async def primordia(self, *words: str) -> float:
        """Run one of our commands as it would be typed, and give its seconds. Raises PrimordiaError when it fails."""
        self.typed(f"primordia {' '.join(_quoted(word) for word in words)}")
        return await self.silently(*words)

    async def silently(self, *words: str) -> float:
        """The same without showing what would be typed."""
        options = parse(with_config(words, self.config))
        begun = time.monotonic()
        status = await command_of(options)(options)
        sys.stdout.flush()
        if status != 0:
            raise PermanentError(f"`primordia {' '.join(words)}` ended with exit code {status}.")
        return time.monotonic() - begun

    def figures(self) -> None:
        """The closing table: what was measured, and the values in line at their right."""
        print(f"\n{figures_text(self.measured)}")


def figures_text(measured: Sequence[tuple[str, str]]) -> str:
    """Two columns, the second one flush right."""
    left = max(len(what) for what, _ in measured)
    right = max(len(value) for _, value in measured)
    rows = [f"{what.ljust(left)}   {value.rjust(right)}" for what, value in measured]
    return "\n".join(["MEASURED HERE, NOW", *rows])


def with_config(words: Sequence[str], config: Path | None) -> list[str]:
    """The words with the client configuration named before what belongs to the guest."""
    split = words.index("--") if "--" in words else len(words)
    return [*words[:split], *(["--client-config", str(config)] if config else []), *words[split:]]


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


def say(text: str) -> None:
    """What a guest or a server said."""
    print(printable(text), flush=True)


def median(milliseconds: Sequence[float]) -> str:
    """The middle one, for the table."""
    return f"{sorted(milliseconds)[(len(milliseconds) - 1) // 2]:.1f} ms"


async def until(what: Callable[[], Awaitable[Any]], name: str) -> None:
    """Try until it works. Raises TemporaryError naming the thing."""
    deadline = time.monotonic() + _ANSWER_WITHIN_S
    with Progress() as progress:
        progress(f"wait for {name}")
        while True:
            try:
                await what()
            except Exception as error:  # whatever a Redis client or ours may say while nobody answers
                if time.monotonic() > deadline:
                    raise TemporaryError(f"{name} does not answer within {_ANSWER_WITHIN_S:.0f} s: {error}") from error
                await asyncio.sleep(0.05)
            else:
                return


def free_port(hosts: Sequence[str], wanted: int) -> int:
    """The port, or the next one that nobody has on any of these addresses. Raises PermanentError."""
    for port in range(wanted, wanted + 100):
        if all(_is_free(host, port) for host in hosts):
            return port
    raise PermanentError(f"All ports from {wanted} to {wanted + 99} are taken on {hosts[0]}.", remedy="Free one of them.")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False

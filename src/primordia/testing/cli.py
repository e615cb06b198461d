"""The command line as people call it: a process of its own, in a folder, with a client configuration."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import primordia


@dataclass(frozen=True)
class Done:
    """What one call came to."""

    code: int
    out: str
    err: str


class Cli:
    """Calls `primordia` in a folder, with a client configuration."""

    def __init__(self, folder: Path, config: Path, *, within_s: float = 60) -> None:
        self.folder = folder
        self._within_s = within_s
        source = str(Path(primordia.__file__).parents[1])
        self.env = {**os.environ, "PRIMORDIA_CONFIG": str(config), "TERM": "xterm", "PYTHONPATH": source}

    async def start(self, *arguments: str, stdin: int | None = None) -> asyncio.subprocess.Process:
        """Begin a call."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "primordia.cli.main", *arguments),
            cwd=self.folder,
            env=self.env,
            stdin=asyncio.subprocess.PIPE if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str, stdin: str = "") -> Done:
        """Call it to its end; a traceback is always wrong."""
        process = await self.start(*arguments)
        async with asyncio.timeout(self._within_s):
            out, err = await process.communicate(stdin.encode())
        assert b"Traceback" not in err, err.decode()
        return Done(process.returncode or 0, out.decode(), err.decode())

    async def good(self, *arguments: str, stdin: str = "") -> str:
        """What it prints, when all goes well."""
        done = await self(*arguments, stdin=stdin)
        assert done.code == 0, done
        return done.out

    async def bad(self, *arguments: str, stdin: str = "") -> str:
        """The one line of an error."""
        done = await self(*arguments, stdin=stdin)
        assert done.code == 1, done
        assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1, done
        return done.err

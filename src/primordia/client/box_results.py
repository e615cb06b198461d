"""What the work in a box gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from primordia.client.errors import CommandFailedError

Output = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Chunk:
    """A piece of a command's output, as it came."""

    stream: Output
    data: bytes

    @property
    def text(self) -> str:
        """As UTF-8; a character that is cut by the piece's end shows as U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote, as UTF-8."""

    stdout: str
    stderr: str
    exit_code: int

    @property
    def ok(self) -> bool:
        """Whether its exit code is 0."""
        return self.exit_code == 0

    def check(self) -> Result:
        """Itself. Raises CommandFailedError, with the last line it wrote, when its exit code is not 0."""
        if self.ok:
            return self
        last = next(iter((self.stderr.strip() or self.stdout.strip()).splitlines()[-1:]), "it wrote nothing")
        raise CommandFailedError(f"The command ended with exit code {self.exit_code}: {last}.")


@dataclass(frozen=True)
class CodeError:
    """The exception that ended a piece of code: its type's name, its message and its trace."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class CodeResult:
    """What came of a piece of code: `text` is the last expression as Python shows it, empty for None or a statement."""

    text: str = ""
    stdout: str = ""
    stderr: str = ""
    error: CodeError | None = None

    @property
    def ok(self) -> bool:
        """Whether no exception ended it."""
        return self.error is None


@dataclass(frozen=True)
class FileInfo:
    """One entry of a folder: size in bytes, seconds since 1970, the permission bits."""

    name: str
    type: Literal["file", "folder", "link", "other"]
    size: int
    modified: float
    mode: int

"""The contexts port: what the API asks of the node that runs a context. Bodies: the node itself, and (with several nodes)
a relay to another node's.

All methods raise NotFoundError when the node does not run that context and TemporaryError when its guest cannot be reached.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from primordia.ports.guest import ByteStream, ExecSession, Program


@dataclass(frozen=True)
class LogLine:
    """One line of a context's output, with the host's time of its arrival (RFC 3339, UTC)."""

    time: str
    text: bytes


class Contexts(Protocol):
    """Contexts by uid."""

    async def exec(self, uid: str, program: Program, *, stdin: bool) -> ExecSession:
        """Run a process in the context. What `program` leaves empty (env, folder, user) is as the main program has it."""

    def logs(self, uid: str, *, follow: bool, tail: int | None, previous: bool = False) -> AsyncIterator[LogLine]:
        """The main program's output, from its start or the last `tail` lines; `previous` is the run before."""

    def read_tar(self, uid: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a path in the context."""

    async def write_tar(self, uid: str, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into a folder of the context."""

    async def connect_tcp(self, uid: str, port: int) -> ByteStream:
        """A connection to a port inside the context (port-forward)."""

    async def connect_unix(self, uid: str, path: str) -> ByteStream:
        """A connection to the Unix socket at an absolute path inside the context."""

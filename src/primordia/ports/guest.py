"""The guest port: what the host asks of the agent inside a microVM. Bodies: the framed channel of guest/PROTOCOL.md, fake.

The guest is untrusted: every answer is bounded in size and time, and nothing it sends can hurt more than itself.
All methods raise GuestGoneError when the channel breaks and GuestError when the agent refuses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from primordia.kit.errors import PermanentError, TemporaryError


class GuestGoneError(TemporaryError):
    """The channel to the agent broke or the agent does not answer."""

    reason = "GuestUnreachable"


class GuestError(PermanentError):
    """The agent refused or failed; `reason` is its errno name or a word of the protocol (as `ENOENT`)."""

    reason = "GuestFailed"


@dataclass(frozen=True)
class Mount:
    """`device` is a drive's serial (the Drive.id)."""

    device: str
    path: str
    filesystem: str = "ext4"
    read_only: bool = False


@dataclass(frozen=True)
class SecretFile:
    """A file on a tmpfs, owned by root; mode in octal."""

    path: str
    content: bytes
    mode: int = 0o400


@dataclass(frozen=True)
class GuestNetwork:
    """A point-to-point address; the gateway's MAC is fixed, so nothing is resolved on the link.

    Without an address (and MAC) it is a template's: nobody yet, with the way out that its forks will have.
    """

    address: str
    mac: str
    gateway: str
    gateway_mac: str
    mtu: int = 1500


@dataclass(frozen=True)
class Program:
    """A process to run in the guest's root. `user` is `name`, `uid`, or either with `:group`; empty is root."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    user: str = ""
    tty: bool = False
    rows: int = 24
    columns: int = 80


CONFIRMED = ("clock", "entropy", "hostname", "machine-id", "boot-id", "network", "names", "secrets", "thawed", "hooks")
"""What `identify` confirms, in the order it is done; `mounts` (before `thawed`) where there were any to mount."""


@dataclass(frozen=True)
class GuestIdentity:
    """Who a guest is: nothing in it may be the same in two guests, or stay from the guest that this one was forked from.

    `entropy` is fresh from the host; `wall_ns` is the time of now, for the clock; `hosts` maps names to addresses for
    /etc/hosts. Without `network` the guest has none. `inherit_secrets` keeps the files of the identity before. `hooks` run
    one after the other once the user processes go on; each must end with code 0. A `rehearsal` ends before they would go on.
    """

    hostname: str
    machine_id: str
    wall_ns: int
    entropy: bytes
    network: GuestNetwork | None = None
    hosts: dict[str, str] = field(default_factory=dict)
    search: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[SecretFile, ...] = ()
    inherit_secrets: bool = False
    rehearsal: bool = False
    hooks: tuple[Program, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GuestConfig(GuestIdentity):
    """What a booted, still empty guest becomes: its drives (by id) and its identity."""

    root: str
    scratch: str


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended: its code, or 128 + signal with the signal's number; `error` when it could not start."""

    code: int
    signal: int = 0
    error: str = ""


@dataclass(frozen=True)
class MainState:
    """The context's main program: not started, running, or ended."""

    phase: Literal["none", "running", "ended"]
    pid: int = 0
    status: ExitStatus | None = None


@dataclass(frozen=True)
class LogChunk:
    """Output of the main program from byte `offset` of everything it ever wrote; `lost` bytes before it are gone."""

    offset: int
    data: bytes
    lost: int = 0


class ByteStream(Protocol):
    """A duplex stream with back-pressure."""

    async def read(self, limit: int = 65536) -> bytes:
        """The next bytes; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Send; returns when the other side has room."""

    async def end(self) -> None:
        """Half-close: no more will be written."""

    async def close(self) -> None:
        """Drop the stream."""


class ExecSession(Protocol):
    """A running exec."""

    def output(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        """What it writes, in the order it arrives, until both ends."""

    async def write(self, data: bytes) -> None:
        """Send to its standard input; returns when the guest has room."""

    async def end_input(self) -> None:
        """Close its standard input."""

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""

    async def wait(self) -> ExitStatus:
        """Wait for its end."""

    async def close(self) -> None:
        """Give up: kills its process group with SIGHUP, then SIGKILL."""


InboundHandler = Callable[[ByteStream], Awaitable[None]]


class Guest(Protocol):
    """A connection to one agent. Several calls may be under way at once; none slows the others."""

    @property
    def agent_boot_id(self) -> str:
        """Chosen by the agent at boot and anew by `identify`, after which it is also the guest's kernel's boot id (without
        the dashes): tells whether it is the guest we knew."""

    async def prepare(self, root: str, scratch: str) -> None:
        """Mount root and scratch, drives by id: the state of a plain template. May be repeated; EALREADY once identified."""

    async def identify(self, identity: GuestIdentity) -> tuple[str, ...]:
        """Give a prepared guest an identity, or a forked one another; thaw its user processes; run the hooks.

        Returns the items that were set and read back (of CONFIRMED). A step that fails raises GuestError naming it; before
        `thawed` nothing of the user has run then, and the call may be repeated. TCP connections from or to the address it
        had are gone, listening sockets stay. When the user processes go on the clock is late by at most 50 ms; on a machine
        that is too busy for that, the log says by how much.
        """

    async def rehearse(self) -> None:
        """Have a prepared guest run an exec of its agent's own, for the way to be warm; user processes stand if they stood.

        A warmed interpreter runs a little of its own code too, where it is the only user process and nothing else of it would
        run; it stands again then. Only for a guest that waits under an identity that it had confirmed as a `rehearsal`.
        """

    async def configure(self, config: GuestConfig) -> None:
        """A cold boot: prepare and identify. May be repeated until it has succeeded once (then: EALREADY)."""

    async def freeze(self) -> None:
        """Stop all user processes where they are; they do not notice. Returns when all stand. May be repeated.

        Only identify, thaw, what tells of the main program, and shutdown are served meanwhile (others: EAGAIN).
        """

    async def thaw(self) -> None:
        """Let the user processes go on. May be repeated."""

    async def start_main(self, program: Program) -> None:
        """Start the context's main program; raises GuestError (ENOENT, EACCES...) when it cannot be started."""

    async def main_state(self) -> MainState:
        """What the main program does now."""

    async def wait_main(self) -> ExitStatus:
        """Wait for the main program's end."""

    async def signal_main(self, number: int) -> None:
        """Send a signal to the main program's process group."""

    def logs(self, offset: int) -> AsyncIterator[LogChunk]:
        """Main program's output from `offset` on, following it, until cancelled or the program's last byte."""

    async def exec(self, program: Program, *, stdin: bool) -> ExecSession:
        """Run a process beside the main program."""

    def read_tar(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of the file or folder at `path`; GuestError ENOENT before the first byte if missing."""

    async def write_tar(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into the folder `path`, which must exist."""

    async def connect_tcp(self, port: int, host: str = "127.0.0.1") -> ByteStream:
        """A TCP connection made inside the guest."""

    async def connect_unix(self, path: str) -> ByteStream:
        """A connection to a stream socket at `path` in the guest's root."""

    async def set_hosts(self, hosts: dict[str, str]) -> None:
        """Replace the names in /etc/hosts."""

    async def sync(self) -> None:
        """syncfs on every writable file system."""

    async def grow_data(self) -> None:
        """Make every data file system as large as its drive is now, while it is in use."""

    async def freeze_data(self, deadline_s: float) -> None:
        """Still the data file systems: flushed, and whoever writes waits. Returns when they stand.

        At the deadline (60 s at most) the guest lets them go on by itself, whether anybody is there or not.
        """

    async def thaw_data(self) -> None:
        """Let the data file systems go on. May be repeated."""

    async def ping(self) -> float:
        """The seconds of a round trip."""

    async def shutdown(self, grace_s: float) -> None:
        """SIGTERM to the main program, SIGKILL after the grace, sync, unmount, power off. Returns when begun."""

    def on_stream(self, kind: str, handler: InboundHandler) -> None:
        """Serve streams that the guest opens: `api` (HTTP of the in-guest API), `dns` (DNS messages, each behind a
        two-byte length). An unserved kind is refused."""

    async def closed(self) -> None:
        """Wait until the connection is gone."""

    async def close(self) -> None:
        """Drop the connection; the guest goes on."""

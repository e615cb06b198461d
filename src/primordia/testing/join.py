"""Machines for tests of joining: network namespaces on one bridge that share no state folder, run folder or socket.

Commands are run in them as a person would on a machine: `primordia ...` as a process of its own, inside the namespace and
with that machine's own folders. Only the cache of downloads and images is the real machine's. Nothing here touches the
machine's own network.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from primordia.kit import command, netns

_SOURCE = str(Path(__file__).resolve().parents[2])
_numbers = itertools.count(1)
PATIENCE_S = 300.0
HUB_OUTSIDE = "203.0.113.1"
"""An address that the machines reach by their default route only: the world."""


@dataclass(frozen=True)
class Machine:
    """One namespace: `address` is its own on the bridge."""

    name: str
    address: str
    folder: Path
    soup: str

    @property
    def config(self) -> Path:
        """Its administrator's client config, if it founded a soup."""
        return self.folder / "config"

    @property
    def env(self) -> dict[str, str]:
        """The folders of this machine."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PRIMORDIA_", "SUDO_"))},
            "PRIMORDIA_STATE": str(self.folder / "state"),
            "PRIMORDIA_RUN": str(self.folder / "run"),
            "PRIMORDIA_CONFIG": str(self.config),
            "PYTHONPATH": _SOURCE,
        }

    async def primordia(self, *words: str, check: bool = True, env: dict[str, str] | None = None) -> command.Completed:
        """Run the command line on this machine."""
        argv = ["nsenter", f"--net=/run/netns/{self.name}", "--", sys.executable, "-m", "primordia.cli.main", *words]
        return await command.run(argv, env={**self.env, **(env or {})}, timeout_s=PATIENCE_S, check=check)

    async def python(self, program: str) -> command.Completed:
        """Run a piece of Python in its network; a failure is the caller's to see."""
        argv = ["nsenter", f"--net=/run/netns/{self.name}", "--", sys.executable, "-c", program]
        return await command.run(argv, timeout_s=30, check=False)

    async def traces(self) -> str:
        """What of a node is in its network: filter tables, and routes to contexts."""
        inside = ["nsenter", f"--net=/run/netns/{self.name}", "--"]
        tables = await command.run([*inside, "nft", "list", "tables"], timeout_s=20)
        routes = await command.run([*inside, "ip", "-4", "route", "show", "root", "10.128.0.0/9"], timeout_s=20)
        return (tables.text() + routes.text()).strip()

    @contextlib.asynccontextmanager
    async def hub_listens_at(self) -> AsyncIterator[int]:
        """A port outside, beyond the bridge, whose listener tells each caller the address that it sees."""
        hub = netns.open_named(f"{self.name.rpartition('-')[0]}-hub")
        try:
            listener = netns.call_in(hub, lambda: socket.create_server((HUB_OUTSIDE, 0)))
        finally:
            os.close(hub)

        async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(str(writer.get_extra_info("peername")[0]).encode() + b"\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(tell, sock=listener)
        async with server:
            yield int(listener.getsockname()[1])

    async def refused(self, *words: str) -> str:
        """Run it, see it fail, and give the one line it says."""
        done = await self.primordia(*words, check=False)
        text = done.stderr.decode()
        assert done.status == 1, (done.status, text)
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in text, text
        return errors[0].removeprefix("error: ")


@contextlib.asynccontextmanager
async def machines(folder: Path, soup: str, count: int) -> AsyncIterator[list[Machine]]:
    """That many machines, joined by a bridge and gone at the end with whatever soup is on them."""
    prefix = f"pjoin-{os.getpid()}-{next(_numbers)}"
    hub = f"{prefix}-hub"
    made = [Machine(f"{prefix}-m{index}", f"10.9.0.{index}", folder / f"m{index}", soup) for index in range(1, count + 1)]
    try:
        await _ip(f"netns add {hub}")
        for words in (
            "link add bridge0 type bridge",
            "address add 10.9.0.254/24 dev bridge0",
            f"address add {HUB_OUTSIDE}/32 dev bridge0",
            "link set bridge0 up",
        ):
            await _ip(f"-n {hub} {words}")
        for index, machine in enumerate(made, 1):
            machine.folder.mkdir(parents=True)
            await _ip(f"netns add {machine.name}")
            await _ip(f"-n {hub} link add port{index} type veth peer name eth0 netns {machine.name}")
            await _ip(f"-n {hub} link set port{index} master bridge0 up")
            for words in (
                "link set lo up",
                f"address add {machine.address}/24 dev eth0",
                "link set eth0 up",
                "route add default via 10.9.0.254",
            ):
                await _ip(f"-n {machine.name} {words}")
        yield made
    finally:
        # The founder, whose engine the others need, comes last.
        for machine in reversed(made):
            with contextlib.suppress(command.CommandError):
                await machine.primordia("down", "--soup", soup, "--destroy", "--yes", "-q")
        for name in (*(machine.name for machine in made), hub):
            with contextlib.suppress(command.CommandError):
                await _ip(f"netns delete {name}")


async def _ip(words: str) -> None:
    await command.run(["ip", *words.split()], timeout_s=20)


async def eventually(holds: Callable[[], Awaitable[bool]], *, within_s: float = 90.0) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 - another process makes it hold
            await asyncio.sleep(0.2)

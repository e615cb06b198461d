"""Waiting for nodes that were started: first until each answers, then until the soup knows that it lives.

A node that answers has its lease, and its object is Ready, a moment later; whoever looks at the soup before that sees less
nodes than there are, and places nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

from primordia.client.aio import connect
from primordia.client.answers import ready
from primordia.host.soup import API_PORT, SoupFile, SoupNode, reach
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.kit.identity import running_pid
from primordia.kit.paths import NodePaths, SoupPaths
from primordia.supervisor import control
from primordia.supervisor.main import PID_FILE, SOCKET_FILE
from primordia.wire.resources import Node

READY_WITHIN_S = 90.0
_KNOWN_WITHIN_S = 15.0
_DAEMON_CHANCES = 6


async def answers(soup: SoupFile, node: SoupNode, paths: SoupPaths) -> None:
    """Wait until the node's API says that it is ready."""
    here = paths.node(node.name)
    address = reach(soup, node)
    tls = ssl.create_default_context(cafile=str(here.pki / "ca.crt"))
    deadline = time.monotonic() + READY_WITHIN_S
    while not await _ready(address, tls):
        if time.monotonic() > deadline or _keeps_dying(here):
            raise TemporaryError(
                f"Node {node.name} does not answer at {address}:{API_PORT}. {last_words(here.logs / 'daemon.log')}",
                remedy=f"Look at the logs in {here.logs}, then run `primordia up` again.",
            )
        await asyncio.sleep(0.05)


async def all_known(config: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Wait until these nodes are Ready; those that are not after some seconds, which is for others to explain."""
    deadline, late = time.monotonic() + _KNOWN_WITHIN_S, tuple(names)
    async with connect(config) as client:
        while late and time.monotonic() < deadline:
            with contextlib.suppress(PrimordiaError):
                well = {node.metadata.name for node in (await client.list(Node)).items if ready(node)}
                late = tuple(name for name in names if name not in well)
            if late:
                await asyncio.sleep(0.05)
    return late


async def _ready(address: str, tls: ssl.SSLContext) -> bool:
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(address, API_PORT, ssl=tls, server_hostname=address)
            try:
                writer.write(f"GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


def _keeps_dying(here: NodePaths) -> bool:
    """Whether the supervisor has given the daemon several chances in vain, or is itself not there."""
    if not running_pid(here.run / PID_FILE):
        return True
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(control.ask(here.run / SOCKET_FILE, "status")["children"]["daemon"]["restarts"]) > _DAEMON_CHANCES
    return False


def last_words(log: Path) -> str:
    """The last line of a log, if it has one."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"It last said: {lines[-1][:300]}"
    return ""

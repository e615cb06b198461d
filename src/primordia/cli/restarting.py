"""`soup restart`: every daemon is restarted, one node after another, and no microVM notices.

A node is done when its next daemon is Ready and holds every microVM that the last one held. The first that is not stops it all:
whatever keeps one daemon from coming back may well keep the others. This is also how a new version is taken up: its files are
put in place on every machine first. Supervisors are not restarted; they have nothing to do with what a version brings.
"""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import Sequence

from primordia.cli.nodes import in_order
from primordia.cli.output import Progress
from primordia.cli.session import client
from primordia.client.aio import AsyncClient, connect
from primordia.client.answers import decode
from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError, TemporaryError
from primordia.wire.conditions import find
from primordia.wire.operations import RESTART, STATUS, DaemonStatus
from primordia.wire.resources import Node

_LOOK_S = 0.5
_ASK_S = 10.0


async def restart(options: Namespace) -> int:
    """Restart the daemons of all nodes, or of some."""
    async with client(options) as soup:
        nodes = chosen(in_order((await soup.list(Node)).items), options.node)
        with Progress(quiet=options.quiet, all_steps=True) as progress:
            for count, node in enumerate(nodes, 1):
                name = node.metadata.name
                progress(f"restart the daemon of {name} ({count}/{len(nodes)})")
                rest = [each.metadata.name for each in nodes[count:]]
                try:
                    async with connect(options.client_config, server=node.status.api_endpoint) as there:
                        said = await _restart_one(soup, there, name, options.timeout)
                except (PrimordiaError, OSError) as error:
                    raise _stopped(name, rest, error) from error
                progress.say(f"{name}: version {said.version}, {len(said.machines)} microVMs went on")
    if not options.quiet:
        print(f"{len(nodes)} {'daemons were' if len(nodes) != 1 else 'daemon was'} restarted, one after another")
    return 0


async def _restart_one(soup: AsyncClient, there: AsyncClient, name: str, timeout_s: float) -> DaemonStatus:
    before = decode(DaemonStatus, await there.transport.request("GET", STATUS))
    if before.node != name:
        raise TemporaryError(f"At {there.transport.server} answers node {before.node}.")
    await there.transport.request("POST", RESTART)
    deadline_s, why = time.monotonic() + timeout_s, "it has not answered"
    while True:
        try:
            async with asyncio.timeout(_ASK_S):
                after = decode(DaemonStatus, await there.transport.request("GET", STATUS))
                why = unfinished(before, after, await soup.get(Node, name))
                if not why:
                    return after
        except (PrimordiaError, OSError) as error:
            why = str(error) or "it does not answer"
        if time.monotonic() > deadline_s:
            raise TemporaryError(f"Its daemon is not back within {timeout_s:g} s: {why.rstrip('.')}.")
        await asyncio.sleep(_LOOK_S)


# ---------------------------------------------------------------- pure


def chosen(nodes: Sequence[Node], names: Sequence[str]) -> list[Node]:
    """Those with these names, in the nodes' order; all without any. Raises NotFoundError."""
    known = {node.metadata.name for node in nodes}
    for name in names:
        if name not in known:
            raise NotFoundError(f"There is no node {name}.", remedy="`primordia node ls` lists them.")
    return [node for node in nodes if not names or node.metadata.name in names]


def unfinished(before: DaemonStatus, after: DaemonStatus, node: Node) -> str:
    """What is missing yet of a node whose daemon is restarted, as a sentence; empty when nothing is.

    A microVM that was held before is to be held again; one that ended by itself meanwhile makes the record say so.
    """
    if after.daemon == before.daemon:
        return "the old daemon still answers"
    if not after.settled:
        return f"it has not adopted {', '.join(after.waits[:3])}" if after.waits else "it has not read its records yet"
    lost = sorted(name for name, pid in before.machines.items() if name in after.machines and after.machines[name] != pid)
    if lost:
        return f"the microVM of {lost[0]} is another one now: pid {after.machines[lost[0]]} after {before.machines[lost[0]]}"
    gone = sorted(set(before.machines) - set(after.machines))
    if gone:
        return f"the microVM of {gone[0]} is not held any more"
    ready = find(node.status.conditions, "Ready")
    if ready is None or ready.status != "True":
        return f"it is not Ready: {ready.message or ready.reason}" if ready is not None else "it is not Ready"
    return ""


def _stopped(name: str, rest: Sequence[str], error: BaseException) -> PermanentError:
    left = f" {', '.join(rest)} {'was' if len(rest) == 1 else 'were'} not touched." if rest else ""
    return PermanentError(
        f"Node {name} did not come back as it was, and the restart stops there: {error}{left}",
        remedy=f"See daemon.log of node {name}; then say the same again.",
    )

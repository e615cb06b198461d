"""`engine status|add|remove`: on which nodes the engine's servers run."""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace

import msgspec

from primordia.cli import printing
from primordia.cli.output import Progress, colourful, table
from primordia.cli.session import client
from primordia.client.aio import AsyncClient
from primordia.client.answers import decode
from primordia.kit.errors import TemporaryError
from primordia.wire.engine import MEMBERS, EngineStatus, SeatRequest, SeatStatus


async def status(options: Namespace) -> int:
    """List the servers and whether they answer."""
    async with client(options) as soup:
        found = (await _status(soup)).seats
    if options.output == "json":
        printing.print_plain(msgspec.to_builtins(found), "json")
        return 0
    rows = [[each.node, each.rack, each.address, _state(each), "yes" if each.answers else "no", each.trouble] for each in found]
    print(table(["NODE", "RACK", "ADDRESS", "STATE", "ANSWERS", "TROUBLE"], rows, colour=colourful(sys.stdout)))
    return 0


def _state(seat: SeatStatus) -> str:
    if seat.leader:
        return "leader"
    return "joining" if not seat.ready else "member" if seat.member else "lost"


async def add(options: Namespace) -> int:
    """Give a node a server, and wait until it answers."""
    with Progress(quiet=options.quiet, all_steps=True) as progress:
        async with client(options) as soup:
            progress("check the engine")
            await soup.transport.request("POST", MEMBERS, body=msgspec.json.encode(SeatRequest(node=options.node)))
            progress(f"start an engine server on node {options.node}")
            await until_member(soup, options.node, options.timeout)
    if not options.quiet:
        print(f"node {options.node} runs an engine server")
    return 0


async def until_member(soup: AsyncClient, node: str, timeout_s: float) -> None:
    """Wait until the node's server is a member and answers. Raises TemporaryError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            seat = next((each for each in (await _status(soup)).seats if each.node == node), None)
            if seat is not None and seat.ready and seat.member and seat.answers:
                return
            why = "it does not answer yet" if seat is not None else "it was removed meanwhile"
        except TemporaryError as error:  # between one server and two the engine has no majority for a moment
            why = str(error)
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"The engine server on node {node} is not there after {timeout_s:.0f} s: {why}",
                remedy=f"See engine.log there, or give it up with `primordia engine remove {node}`.",
            )
        await asyncio.sleep(0.3)


async def remove(options: Namespace) -> int:
    """Take a node's server out of the engine."""
    async with client(options) as soup:
        await soup.transport.request("DELETE", f"{MEMBERS}/{options.node}")
    if not options.quiet:
        print(f"node {options.node} runs no engine server any more")
    return 0


async def _status(soup: AsyncClient) -> EngineStatus:
    return decode(EngineStatus, await soup.transport.request("GET", MEMBERS))

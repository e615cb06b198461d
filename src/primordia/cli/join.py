"""`token`, `join` and `leave`: machines come and go."""

from __future__ import annotations

import sys
from argparse import Namespace

import msgspec

from primordia.cli import printing
from primordia.cli.image import confirm
from primordia.cli.output import Progress, colourful, table
from primordia.cli.session import client
from primordia.cli.soup import pool_wish
from primordia.client.answers import decode
from primordia.kit.errors import InvalidError, PermanentError
from primordia.wire import joining as wire


async def token_create(options: Namespace) -> int:
    """Print a new token; how to use it goes to standard error."""
    request = wire.TokenRequest(ttl_seconds=int(options.ttl), uses=options.uses)
    async with client(options) as soup:
        content = await soup.transport.request("POST", wire.TOKENS, body=msgspec.json.encode(request))
        server = soup.transport.server.removeprefix("https://")
    answer = decode(wire.TokenAnswer, content)
    print(answer.token)
    print(f"until {answer.info.expires_at}: primordia join {server} --token TOKEN --segment S --rack R", file=sys.stderr)
    return 0


async def token_list(options: Namespace) -> int:
    """List tokens."""
    async with client(options) as soup:
        found = decode(wire.TokenList, await soup.transport.request("GET", wire.TOKENS)).items
    if options.output == "json":
        printing.print_plain(msgspec.to_builtins(found), "json")
        return 0
    rows = [[each.id, _state(each), each.expires_at, each.created_by, ", ".join(each.used_by) or "-"] for each in found]
    print(table(["ID", "STATE", "EXPIRES", "BY", "USED BY"], rows, colour=colourful(sys.stdout)))
    return 0


def _state(info: wire.TokenInfo) -> str:
    if len(info.used_by) >= info.uses:
        return "used"
    return "expired" if info.expired else "usable"


async def token_remove(options: Namespace) -> int:
    """Remove tokens."""
    async with client(options) as soup:
        for id_ in options.ids:
            await soup.transport.request("DELETE", f"{wire.TOKENS}/{id_.partition('.')[0]}")
            print(f"token {id_.partition('.')[0]} removed")
    return 0


async def join(options: Namespace) -> int:
    """Become a node."""
    from primordia.host import join as host
    from primordia.host.soup import API_PORT

    name, colon, port = options.host.partition(":")
    if colon and not (port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidError("HOST:PORT", f"{options.host!r} has no port number behind the colon.")
    token = sys.stdin.readline() if options.token == "-" else options.token
    settings = host.JoinOptions(
        host=name,
        token=token,
        rack=options.rack,
        segment=options.segment,
        port=int(port) if colon else API_PORT,
        name=options.name,
        address=options.address,
        pool=pool_wish(options),
    )
    with Progress(quiet=options.quiet, all_steps=True) as progress:
        result = await host.join(settings, progress)
        if options.engine:
            progress("start an engine server here")
            await host.give_engine(result)
    if not options.quiet:
        print(f"node {result.name} of soup {result.soup} is Ready at {result.url}")
    return 0


async def leave(options: Namespace) -> int:
    """Stop being a node."""
    from primordia.host import leave as host

    if not options.yes and not confirm(f"Take this machine out of soup {options.soup} and delete its state?"):
        raise PermanentError("Nothing was changed.", remedy="Say --yes to agree beforehand.")
    with Progress(quiet=options.quiet, all_steps=True) as progress:
        name = await host.leave(options.soup, progress, force=options.force)
    if not options.quiet:
        print(f"node {name} has left soup {options.soup}")
    return 0

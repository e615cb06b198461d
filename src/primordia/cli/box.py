"""`run` in a box: one command in a microVM that is claimed for it, and (with --rm) killed after it, however it ends."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace

from primordia.cli import inside
from primordia.cli.ending import ended_in_order
from primordia.cli.output import Progress
from primordia.cli.pairs import pair
from primordia.cli.session import Inside, client
from primordia.client.aio import AsyncClient
from primordia.client.boxes import Box
from primordia.client.inside import Surroundings
from primordia.kit.errors import PermanentError
from primordia.wire.boxes import BoxRequest
from primordia.wire.resources import Resources

_LIFEFORMS_OWN = ("publish", "secret", "rack", "segment", "restart", "data")


def wants_box(options: Namespace) -> bool:
    """Whether a box will do for this `run`: a command of its own and nothing that only a lifeform can have.

    Raises PermanentError for a template together with what no box has.
    """
    of_lifeform = next((f"--{flag}" for flag in _LIFEFORMS_OWN if getattr(options, flag)), "")
    if options.template:
        if options.image:
            raise PermanentError("An image and --template exclude each other.", remedy="The template names its image.")
        if of_lifeform or options.dry_run:
            flag = of_lifeform or "--dry-run"
            raise PermanentError(f"A box has no {flag}.", remedy="Leave it out, or run an image as a lifeform.")
        return True
    if not options.image:
        raise PermanentError("What is to be run?", remedy="Name an image, or a --template.")
    return bool(options.rm and options.program and not of_lifeform and not options.dry_run and not options.detach)


async def run(options: Namespace) -> int:
    """Claim, run, and with --rm kill."""
    if options.detach and options.program:
        raise PermanentError("A box has no program of its own to leave it with.", remedy="Use `primordia exec` later.")
    if options.detach and options.rm:
        raise PermanentError("--detach and --rm exclude each other.", remedy="Say --ttl TIME to have it end by itself.")
    async with client(options) as soup:
        with ended_in_order():
            box = await _claim(soup, options)
            if options.detach:
                print(box.name if options.quiet else f"context/{box.name} is running")
                return 0
            async with box if options.rm else contextlib.nullcontext():
                status = await _attached(soup, box, options)
    if not options.rm and not options.quiet:
        print(f"context/{box.name} goes on; delete it with: primordia delete context {box.name}", file=sys.stderr)
    return status


async def _claim(soup: AsyncClient, options: Namespace) -> Box:
    with Progress(quiet=options.quiet) as progress:
        template = options.template
        if not template:
            progress(f"template of image {options.image}")
            resources = Resources(cpu=options.cpus, memory=options.memory)
            made = await soup.plain_template(options.image, resources, timeout_s=options.timeout)
            template = made.metadata.name
        progress(f"claim a box of {template}")
        wanted = BoxRequest(
            template=template,
            name=options.name,
            ttl_seconds=options.ttl,
            labels=dict(pair(text, "--label") for text in options.label),
            egress=options.egress,
        )
        return Box.claimed(soup, await soup.claim(wanted, namespace=options.namespace))


async def _attached(soup: AsyncClient, box: Box, options: Namespace) -> int:
    return await inside.attach(
        soup,
        Inside(box.name, alone=True),
        options.program or ["/bin/sh"],
        stdin=options.stdin,
        terminal=options.tty,
        namespace=box.namespace,
        surroundings=Surroundings(dict(pair(text, "--env") for text in options.env)),
    )

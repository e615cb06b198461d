"""`sync` and `scrub`: have a lifeform's data on other racks, and have every copy of it read back."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Sequence

import msgspec

from primordia.cli import printing
from primordia.cli.output import Progress, colourful, table
from primordia.cli.session import client
from primordia.cli.volume_names import volumes_named
from primordia.kit.units import human_bytes
from primordia.wire import data as wire

HEADER = ("VOLUME", "NODE", "SNAPSHOTS", "READ", "DAMAGED", "HEALED", "MESSAGE")


async def sync(options: Namespace) -> int:
    """Return when what was written is on other racks. Raises TemporaryError (SyncTimeout) when that takes too long."""
    async with client(options) as soup:
        names = await volumes_named(soup, options.name, options.namespace)
        done = await asyncio.gather(
            *(soup.sync(name, timeout_s=options.timeout, namespace=options.namespace) for name in names)
        )
    if options.output != "table":
        printing.print_plain(
            [{"volume": name} | msgspec.to_builtins(each) for name, each in zip(names, done, strict=True)], options.output
        )
        return 0
    for name, each in zip(names, done, strict=True):
        print(f"volume/{name} synced: snapshot {each.number} is on {', '.join(each.copies)}")
    return 0


async def scrub(options: Namespace) -> int:
    """Read every copy back. The exit code is 1 when something is damaged and not healed, or could not be read."""
    async with client(options) as soup:
        names = await volumes_named(soup, options.name, options.namespace)
        with Progress(quiet=options.quiet) as progress:
            progress(f"read back {', '.join(names) or 'nothing'}")
            found = await asyncio.gather(*(soup.scrub(name, namespace=options.namespace) for name in names))
    if options.output != "table":
        printing.print_plain(
            [{"volume": name} | msgspec.to_builtins(each) for name, each in zip(names, found, strict=True)], options.output
        )
    else:
        print(scrub_text(list(zip(names, found, strict=True))))
    return 1 if any(copy.message or set(copy.damaged) - set(copy.healed) for each in found for copy in each.copies) else 0


def scrub_text(found: Sequence[tuple[str, wire.ScrubResult]]) -> str:
    """What scrubs of volumes have found, as a table."""
    rows = [_row(name, copy) for name, each in found for copy in each.copies]
    return table(HEADER, rows, colour=colourful(sys.stdout))


def _row(name: str, copy: wire.ScrubbedCopy) -> list[str]:
    damaged, healed = (", ".join(map(str, each)) or "none" for each in (copy.damaged, copy.healed))
    return [name, copy.node, str(copy.snapshots), human_bytes(copy.read_bytes), damaged, healed, copy.message]

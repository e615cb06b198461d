"""`volume ls --orphans`: what nodes keep of volumes that went on elsewhere without it, asked of every node at once."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Iterable

import msgspec

from primordia.cli import printing
from primordia.cli.output import colourful, table
from primordia.cli.session import client
from primordia.client.aio import AsyncClient
from primordia.kit.errors import PrimordiaError
from primordia.kit.units import human_bytes
from primordia.wire.data import Orphan
from primordia.wire.resources import Node

HEADER = ("NAMESPACE", "VOLUME", "NODE", "NUMBER", "EPOCH", "CUT", "CHANGED", "SIZE")


async def list_(options: Namespace) -> int:
    """Every orphan of the namespace, and disks of volumes that are no more. 1 when a node did not answer."""
    async with client(options) as soup:
        nodes = [node.metadata.name for node in (await soup.list(Node)).items]
        answers = await asyncio.gather(*(_of(soup, name) for name in nodes))
        wanted = "" if options.all_namespaces else options.namespace or soup.namespace
    silent = [answer for answer in answers if isinstance(answer, PrimordiaError)]
    found = ordered(each for answer in answers if not isinstance(answer, PrimordiaError) for each in answer)
    found = [each for each in found if not wanted or not each.name or each.namespace == wanted]
    if options.output in ("json", "yaml"):
        printing.print_plain([msgspec.to_builtins(each) for each in found], options.output)
    elif options.output == "name":
        print("\n".join(f"{each.node}/{each.snapshot.number}" for each in found if each.snapshot is not None))
    elif found:
        print(table(HEADER, [row(each) for each in found], colour=colourful(sys.stdout)))
    else:
        print("There are no orphans.")
    for error in silent:
        print(f"Not all is known: {error}", file=sys.stderr)
    return 1 if silent else 0


async def _of(soup: AsyncClient, node: str) -> tuple[Orphan, ...] | PrimordiaError:
    try:
        return await soup.orphans(node)
    except PrimordiaError as error:
        return error if error.reason != "Unsupported" else ()


def ordered(orphans: Iterable[Orphan]) -> list[Orphan]:
    """Those with a name first, by volume, node, epoch and number. Pure."""

    def key(each: Orphan) -> tuple[object, ...]:
        epoch, number = (each.snapshot.epoch, each.snapshot.number) if each.snapshot is not None else (0, 0)
        return not each.name, each.namespace, each.name, each.uid, each.node, epoch, number

    return sorted(orphans, key=key)


def row(orphan: Orphan) -> list[str]:
    """One line of the table. Pure."""
    cut = orphan.snapshot
    said = [str(cut.number), str(cut.epoch), cut.at, human_bytes(cut.changed_bytes)] if cut is not None else ["-"] * 4
    name = orphan.name or f"{orphan.uid} (its volume is no more)"
    return [orphan.namespace or "-", name, orphan.node, *said, human_bytes(orphan.size_bytes)]

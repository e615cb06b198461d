"""`suspend` and `resume`: a lifeform without its microVMs for a while, and with them again. Its data stays where it is."""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from typing import Literal

from primordia.cli.objects import settled
from primordia.cli.output import Progress
from primordia.cli.session import client
from primordia.client.aio import AsyncClient
from primordia.domain.lifeforms import context_object_name
from primordia.wire.resources import Context, Lifeform

_TELLING = ("MemoryKept", "ResumedFromMemory")


async def suspend(options: Namespace) -> int:
    """Stop what runs. What is on volumes stays; what is in memory and scratch goes, or with `--memory` waits as well."""
    return await _set(options, "Suspended", keep_memory=options.memory)


async def resume(options: Namespace) -> int:
    """Start it again, with its data."""
    return await _set(options, "Running")


async def _set(options: Namespace, mode: Literal["Running", "Suspended"], *, keep_memory: bool = False) -> int:
    word = "suspended" if mode == "Suspended" else "resumed"
    end_s = time.monotonic() + options.timeout
    async with client(options) as soup:
        begun = [await _begin(soup, name, options.namespace, mode, keep_memory) for name in options.names]
        if options.wait:
            with Progress(quiet=options.quiet) as progress:
                progress(f"wait until {', '.join(options.names)} {'is' if len(begun) == 1 else 'are'} {word}")
                left_s = max(0.1, end_s - time.monotonic())
                await asyncio.gather(
                    *(
                        soup.wait(Lifeform, name, settled, namespace=options.namespace, timeout_s=left_s)
                        for name in options.names
                    )
                )
        said = {name: await _memory(soup, name, options.namespace) if options.wait else [] for name in options.names}
    for name, changed in zip(options.names, begun, strict=True):
        if not options.quiet:
            print(f"lifeform/{name} {word if changed else f'is {mode.lower()} already'}")
            for line in said[name]:
                print(line)
    return 0


async def _begin(soup: AsyncClient, name: str, namespace: str, mode: str, keep_memory: bool) -> bool:
    """Whether that was a change."""
    before = await soup.get(Lifeform, name, namespace=namespace)
    if before.spec.operating_mode == mode:
        return False
    wanted: dict[str, object] = {"operatingMode": mode}
    if mode == "Suspended":
        wanted["keepMemory"] = keep_memory
    await soup.patch(Lifeform, name, {"spec": wanted}, namespace=namespace)
    return True


async def _memory(soup: AsyncClient, name: str, namespace: str) -> list[str]:
    """What became of its contexts' memory, a line for each that says something of it."""
    lifeform = await soup.get(Lifeform, name, namespace=namespace)
    found = []
    for summary in lifeform.status.contexts:
        context = await soup.get(Context, context_object_name(name, summary.name), namespace=namespace)
        told = [each for each in context.status.conditions if each.type in _TELLING]
        found += [f"  context {summary.name}: {each.message}" for each in told]
    return found

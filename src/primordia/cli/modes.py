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
from primordia.wire.resources import Lifeform


async def suspend(options: Namespace) -> int:
    """Stop what runs, in order; what is on volumes stays, what is in memory and scratch goes."""
    return await _set(options, "Suspended")


async def resume(options: Namespace) -> int:
    """Start it again, with its data."""
    return await _set(options, "Running")


async def _set(options: Namespace, mode: Literal["Running", "Suspended"]) -> int:
    word = "suspended" if mode == "Suspended" else "resumed"
    end_s = time.monotonic() + options.timeout
    async with client(options) as soup:
        begun = [await _begin(soup, name, options.namespace, mode) for name in options.names]
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
    for name, changed in zip(options.names, begun, strict=True):
        if not options.quiet:
            print(f"lifeform/{name} {word if changed else f'is {mode.lower()} already'}")
    return 0


async def _begin(soup: AsyncClient, name: str, namespace: str, mode: str) -> bool:
    """Whether that was a change."""
    before = await soup.get(Lifeform, name, namespace=namespace)
    if before.spec.operating_mode == mode:
        return False
    await soup.patch(Lifeform, name, {"spec": {"operatingMode": mode}}, namespace=namespace)
    return True

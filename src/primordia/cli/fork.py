"""`fork`: children of a running context, with a table of what became of each."""

from __future__ import annotations

import sys
from argparse import Namespace

from primordia.cli import printing
from primordia.cli.output import Progress, colourful, table
from primordia.cli.session import client, found, inside
from primordia.client import answers
from primordia.kit.units import human_bytes
from primordia.wire.boxes import ForkReport, ForkRequest
from primordia.wire.resources import Lifeform


async def fork(options: Namespace) -> int:
    """Fork a context; 1 when some children could not be made."""
    target = inside(options.target, options.context)
    wanted = ForkRequest(
        count=options.count,
        ttl_seconds=options.ttl,
        lifetime="keep" if options.keep else "parent",
        inherit_secrets=options.inherit_secrets,
        command=tuple(options.program),
    )
    async with client(options) as soup:
        target = await found(soup, target, options.namespace)
        with Progress(quiet=options.quiet) as progress:
            progress(f"fork {options.target}")
            report = await soup.fork_report(target.name, wanted, **target.arguments(options.namespace))
    _tell(report, options)
    return 0 if all(each.name for each in report.children) else 1


async def promote(options: Namespace) -> int:
    """Make a fork a lifeform, and wait until that is ready."""
    name = options.target.removeprefix("context/")
    async with client(options) as soup:
        with Progress(quiet=options.quiet) as progress:
            progress(f"promote {name}")
            made = await soup.promote(name, options.name, namespace=options.namespace)
            if options.wait:
                progress(f"start {made.name}")
                await soup.wait(Lifeform, made.name, answers.ready, namespace=options.namespace, timeout_s=options.timeout)
    if not options.quiet:
        state = "is running" if options.wait else "is starting"
        print(f"lifeform/{made.name} {state} on {made.node}, with volume {made.volume} ({human_bytes(made.size_bytes)})")
    return 0


def _tell(report: ForkReport, options: Namespace) -> None:
    if options.output in ("json", "yaml"):
        printing.print_plain(printing.as_plain(report), options.output)
        return
    if options.quiet:
        print("\n".join(each.name for each in report.children if each.name))
        return
    print(report_text(report, colour=colourful(sys.stdout)))
    print(
        f"The parent stood still for {report.pause_ms:.1f} ms, {human_bytes(report.copied_bytes)} were copied meanwhile.",
        file=sys.stderr,
    )


def report_text(report: ForkReport, *, colour: bool = False) -> str:
    """The children as a table: when each was confirmed, or why it is not there."""
    rows = [
        [each.name or "<none>", f"{each.confirmed_ms:.1f} ms" if each.name else "-", each.message or each.reason or "Running"]
        for each in report.children
    ]
    return table(["CHILD", "CONFIRMED", "OUTCOME"], rows, colour=colour)

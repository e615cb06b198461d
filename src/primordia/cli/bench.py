"""`bench`: figures as a table, or as JSON for programs."""

from __future__ import annotations

import sys
from argparse import Namespace

from primordia.bench.figures import Figure
from primordia.bench.runner import run
from primordia.cli import printing
from primordia.cli.ending import ended_in_order
from primordia.cli.output import Progress, colourful, table
from primordia.host.shape import Shape

HEADER = ("FIGURE", "UNIT", "N", "MIN", "P50", "P99", "MAX", "BASELINE", "RATIO")


async def bench(options: Namespace) -> int:
    """Measure and tell."""
    shape = Shape(options.nodes, options.racks, options.segments)
    with ended_in_order(), Progress(quiet=options.quiet) as progress:
        done = await run(options.names, options.soup, shape, options.rounds, progress)
    if options.output == "json":
        found = [{"bench": name, "figures": [each.plain() for each in figures]} for name, figures in done]
        printing.print_plain(found[0] if len(found) == 1 else found, "json")
        return 0
    rows = [row(each) for _, figures in done for each in figures]
    print(table(HEADER, rows, colour=colourful(sys.stdout)))
    return 0


def row(each: Figure) -> list[str]:
    """A figure as a row; what there is no baseline for shows `-`."""
    numbers = (each.min, each.p50, each.p99, each.max)
    compared = ("-" if value is None else f"{value:g}" for value in (each.baseline, each.ratio))
    return [each.name, each.unit, str(each.n), *(f"{number:g}" for number in numbers), *compared]

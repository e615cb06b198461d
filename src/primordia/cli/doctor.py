"""`doctor`: what this machine can do, and what dead soups left on it."""

from __future__ import annotations

import sys
from argparse import Namespace

from primordia.cli import printing
from primordia.cli.output import Progress, colourful, paint, printable
from primordia.host.doctor import Report, examine

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


async def doctor(options: Namespace) -> int:
    """Examine, tell, and fail when something is wrong or left over."""
    with Progress() as progress:
        progress("examine this machine")
        report = await examine(machine=not options.leaks)
    if options.output == "json":
        printing.print_plain(facts(report), "json")
    else:
        print(text_of(report, colour=colourful(sys.stdout)))
    return 0 if report.healthy else 1


def facts(report: Report) -> dict[str, object]:
    """The report for programs."""
    return {
        "healthy": report.healthy,
        "checks": [
            {"name": each.name, "level": each.level, "reason": each.reason, "message": each.message, "remedy": each.remedy}
            for each in report.checks
        ],
        "leaks": [
            {"kind": each.kind, "name": each.name, "detail": each.detail, "remedy": each.remedy} for each in report.leaks
        ],
    }


def text_of(report: Report, *, colour: bool) -> str:
    """The report for people: one line for each check, its remedy below where it is not ok."""
    width = max((len(each.name) for each in report.checks), default=0)
    lines = []
    for each in report.checks:
        level = paint(f"{each.level:<4}", _COLOURS[each.level], on=colour)
        lines.append(f"{level}  {each.name:<{width}}  {printable(each.message)}")
        if each.level != "ok" and each.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {each.remedy}")
    if lines:
        lines.append("")
    lines += [f"leak  {each.kind} {each.name}: {printable(each.detail)}\n      -> {each.remedy}" for each in report.leaks]
    lines.append(f"{len(report.leaks)} leaks" if len(report.leaks) != 1 else "1 leak")
    return "\n".join(lines)

"""`soup rebuild`: first what there is to rebuild from, then, if that is wished, the deed."""

from __future__ import annotations

from argparse import Namespace

from primordia.cli.image import confirm
from primordia.cli.output import Progress, table
from primordia.host.rebuild import Findings, look, rebuild
from primordia.host.remaking import counts
from primordia.kit.errors import PermanentError
from primordia.wire.resources import Lifeform, Volume


async def run(options: Namespace) -> int:
    """List what the nodes kept; make the soup again from it."""
    found = look(options.soup)
    if not options.quiet or options.dry_run:
        print(findings_text(found))
    if options.dry_run:
        return 0
    if not options.yes and not confirm(f"Begin the engine of soup {options.soup} anew with this?"):
        raise PermanentError("Nothing was changed.", remedy="Say --yes to agree beforehand.")
    with Progress(quiet=options.quiet, all_steps=True) as progress:
        done = await rebuild(options.soup, progress)
    if not options.quiet:
        print(f"soup {options.soup} is rebuilt: incarnation {done.remade.incarnation}, {len(done.remade.objects)} objects")
    return 0


def findings_text(found: Findings) -> str:
    """What would be made again, and what is to be said of it."""
    plan = found.remade
    rows = [
        [each.KIND, f"{each.metadata.namespace}/{each.metadata.name}", each.status.node or "-", str(each.status.epoch)]
        for each in plan.objects
        if isinstance(each, Lifeform | Volume)
    ]
    sums = ", ".join(f"{count} {kind}" for kind, count in sorted(counts(plan).items()))
    lines = [f"Incarnation {plan.incarnation} of soup {found.soup.name} would have: {sums}."]
    if rows:
        lines += ["", table(["KIND", "NAME", "NODE", "EPOCH"], rows)]
    notes = [*found.problems, *plan.notes]
    if notes:
        lines += ["", *notes]
    return "\n".join(lines)

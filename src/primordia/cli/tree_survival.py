"""The commands for when nodes have died: `failover`."""

from __future__ import annotations

from primordia.cli import tree


def add(commands: tree.Commands) -> None:
    """Put them into the tree."""
    failover = tree.add(commands, "failover", "failover:failover", "show what waits after nodes have died, and let it go on")
    failover.add_argument("names", nargs="*", metavar="NAME", help="a lifeform")
    failover.add_argument(
        "--allow-loss", action="store_true", help="start it from what can be reached, though its last sync cannot, once"
    )
    failover.add_argument("--all", action="store_true", help="the nodes that are held really are off: fail all of them over")
    failover.add_argument("--yes", action="store_true", help="do not ask")
    failover.add_argument("-q", "--quiet", action="store_true", help="no progress")
    failover.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="the form of the answer")
    tree.waiting(failover, default=True, timeout=60)
    tree.client(failover)

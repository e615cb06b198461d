"""The commands of data and of lifeforms that have it: `volume`, `suspend`, `resume`."""

from __future__ import annotations

from primordia.cli import tree, tree_snapshots


def add(commands: tree.Commands) -> None:
    """Put them into the tree."""
    volume = commands.add_parser(
        "volume", help="list and describe volumes, cut and restore them, destroy one", description="Volumes."
    )
    verbs = volume.add_subparsers(title="commands", metavar="COMMAND", required=True)

    list_ = tree.add(verbs, "ls", "volumes:list_", "list volumes, where they are and how good their copies are")
    list_.add_argument("-A", "--all-namespaces", action="store_true", help="of every namespace")
    list_.add_argument(
        "--orphans", action="store_true", help="instead, what nodes keep that a volume's owner never had, for it had died"
    )
    tree.output(list_)
    tree.client(list_)

    describe = tree.add(verbs, "describe", "describe:volume", "tell about a volume: its copies, last sync and events")
    describe.add_argument("names", nargs="*", metavar="NAME")
    tree.client(describe)

    destroy = tree.add(verbs, "destroy", "volumes:destroy", "delete a volume with all its snapshots and copies, after asking")
    destroy.add_argument("name", metavar="NAME")
    destroy.add_argument("--yes", action="store_true", help="do not ask")
    destroy.add_argument("-q", "--quiet", action="store_true", help="no progress")
    tree.waiting(destroy, default=True, timeout=120)
    tree.client(destroy)
    tree_snapshots.add(verbs)
    sync = tree.add(commands, "sync", "copies:sync", "return when what was written is safe on other racks")
    sync.add_argument("name", metavar="NAME", help="a lifeform, or a volume")
    sync.add_argument("--timeout", type=tree.seconds, default=30, metavar="TIME", help="how long (default: 30s)")
    sync.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="the form of the answer")
    tree.client(sync)
    scrub = tree.add(commands, "scrub", "copies:scrub", "read every copy of data back, and heal what is damaged")
    scrub.add_argument("name", nargs="?", default="", metavar="NAME", help="a lifeform, or a volume (default: all)")
    scrub.add_argument("-q", "--quiet", action="store_true", help="no progress")
    scrub.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="the form of the answer")
    tree.client(scrub)
    for verb, summary in (
        ("suspend", "stop lifeforms for a while; their data stays where it is"),
        ("resume", "start suspended lifeforms again, with their data"),
    ):
        mode = tree.add(commands, verb, f"modes:{verb}", summary)
        mode.add_argument("names", nargs="+", metavar="NAME")
        mode.add_argument("-q", "--quiet", action="store_true", help="no progress, and nothing printed")
        if verb == "suspend":
            mode.add_argument(
                "--memory", action="store_true", help="keep what they have in memory too, and go on from there where possible"
            )
        tree.waiting(mode, default=True, timeout=120)
        tree.client(mode)

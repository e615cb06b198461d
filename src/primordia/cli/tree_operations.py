"""The commands that change a living soup: `migrate`, `node drain|evacuate|maintenance`, `rack drain`, `soup restart`."""

from __future__ import annotations

from primordia.cli import tree


def add(commands: tree.Commands) -> None:
    """Put those of their own into the tree."""
    migrate = tree.add(commands, "migrate", "moving:migrate", "move a lifeform to another node, with a short blackout")
    migrate.add_argument("name", metavar="NAME")
    to = migrate.add_mutually_exclusive_group(required=True)
    to.add_argument("--node", default="", help="to this node")
    to.add_argument("--rack", default="", help="to any node of this rack")
    to.add_argument("--segment", default="", help="to any node of this segment")
    _patience(migrate)
    migrate.add_argument("-q", "--quiet", action="store_true", help="say nothing")
    tree.client(migrate)

    rack = commands.add_parser("rack", help="empty a whole rack", description="Racks.")
    verbs = rack.add_subparsers(title="commands", metavar="COMMAND", required=True)
    drain = tree.add(verbs, "drain", "moving:drain_rack", "move every lifeform away from all nodes of a rack")
    drain.add_argument("name", metavar="RACK")
    drain.add_argument("--segment", default="", help="where several segments have a rack of that name")
    drain.add_argument("--copies", action="store_true", help="the copies that they hold as well")
    _drain(drain)

    soup = commands.add_parser("soup", help="restart all daemons of a soup, or make its state anew", description="The soup.")
    verbs = soup.add_subparsers(title="commands", metavar="COMMAND", required=True)
    restart = tree.add(verbs, "restart", "restarting:restart", "restart every daemon, one after another; microVMs go on")
    restart.add_argument("--node", action="append", default=[], metavar="NODE", help="only this one; may be repeated")
    restart.add_argument(
        "--timeout", type=tree.seconds, default=120.0, metavar="TIME", help="how long to wait for each node (default: 120s)"
    )
    restart.add_argument("-q", "--quiet", action="store_true", help="say nothing")
    tree.client(restart, namespace=False)

    rebuild = tree.add(
        verbs, "rebuild", "rebuilding:run", "make a soup's state again from its nodes, when all of its engine's data is gone"
    )
    tree.soup_name(rebuild)
    rebuild.add_argument("--dry-run", action="store_true", help="only list what would be made again")
    rebuild.add_argument("--yes", action="store_true", help="do not ask")
    rebuild.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_to_node(verbs: tree.Commands) -> None:
    """Put those of nodes below `node`."""
    drain = tree.add(verbs, "drain", "moving:drain", "cordon a node and move every lifeform away, one by one")
    drain.add_argument("name", metavar="NODE")
    drain.add_argument("--copies", action="store_true", help="the copies that it holds as well, as `evacuate` does")
    _drain(drain)
    evacuate = tree.add(verbs, "evacuate", "moving:evacuate", "drain a node, and have the copies that it holds lie elsewhere")
    evacuate.add_argument("name", metavar="NODE")
    _drain(evacuate)
    maintenance = tree.add(
        verbs, "maintenance", "nodes:maintenance", "say that somebody works on a node: its silence is then no death"
    )
    maintenance.add_argument("name", metavar="NODE")
    maintenance.add_argument("state", choices=("on", "off"))
    maintenance.add_argument(
        "--for", dest="length", type=tree.seconds, default=0.0, metavar="TIME", help="no longer than that, as 30m"
    )
    tree.client(maintenance, namespace=False)


def _drain(parser: tree.Parser) -> None:
    parser.add_argument("--force", action="store_true", help="end boxes and forks, which cannot move")
    _patience(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing")
    tree.client(parser, namespace=False)


def _patience(parser: tree.Parser) -> None:
    parser.add_argument(
        "--timeout", type=tree.seconds, default=600.0, metavar="TIME", help="what is not done by then is taken back (600s)"
    )

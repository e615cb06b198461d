"""The commands of machines that come and go: `token join leave engine`."""

from __future__ import annotations

from primordia.cli import tree


def add(commands: tree.Commands) -> None:
    """Put them into the tree."""
    token = commands.add_parser("token", help="make, list and remove the tokens that let machines in", description="Tokens.")
    verbs = token.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = tree.add(verbs, "create", "join:token_create", "make a token and print it, this one time")
    create.add_argument("--ttl", type=tree.seconds, default=3600.0, metavar="TIME", help="how long it lives (default: 1h)")
    create.add_argument("--uses", type=int, default=1, metavar="N", help="how many machines it lets in (default: 1)")
    tree.client(create, namespace=False)
    list_ = tree.add(verbs, "ls", "join:token_list", "list tokens, without their secrets")
    list_.add_argument("-o", "--output", choices=("table", "json"), default="table", help="the form of the answer")
    tree.client(list_, namespace=False)
    remove = tree.add(verbs, "rm", "join:token_remove", "make tokens worthless at once")
    remove.add_argument("ids", nargs="+", metavar="ID")
    tree.client(remove, namespace=False)

    join = tree.add(commands, "join", "join:join", "make this machine a node of a soup that runs elsewhere")
    join.add_argument("host", metavar="HOST[:PORT]", help="any machine of the soup")
    join.add_argument(
        "--token", required=True, help="what `primordia token create` printed there; - reads it from standard input"
    )
    join.add_argument("--segment", required=True, help="the segment this machine is in")
    join.add_argument("--rack", required=True, help="the rack this machine is in")
    join.add_argument("--name", default="", help="the node's name (default: the machine's)")
    join.add_argument("--address", default="", metavar="IP", help="this machine's address (default: the one towards HOST)")
    tree.pool_options(join)
    join.add_argument("--engine", action="store_true", help="give it an engine server as well")
    join.add_argument("-q", "--quiet", action="store_true", help="no progress")

    leave = tree.add(commands, "leave", "join:leave", "take this machine out of its soup")
    tree.soup_name(leave)
    leave.add_argument("--force", action="store_true", help="also when lifeforms are on it, or no other node answers")
    leave.add_argument("--yes", action="store_true", help="do not ask")
    leave.add_argument("-q", "--quiet", action="store_true", help="no progress")

    _engine(commands)


def _engine(commands: tree.Commands) -> None:
    engine = commands.add_parser("engine", help="where the engine's servers run, and changing that", description="The engine.")
    verbs = engine.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = tree.add(verbs, "status", "engine:status", "list the engine's servers")
    status.add_argument("-o", "--output", choices=("table", "json"), default="table", help="the form of the answer")
    tree.client(status, namespace=False)
    for name, what in (("add", "give a node an engine server"), ("remove", "take a node's server out of the engine")):
        verb = tree.add(verbs, name, f"engine:{name}", what)
        verb.add_argument("node", metavar="NODE")
        verb.add_argument(
            "--timeout", type=tree.seconds, default=120.0, metavar="TIME", help="how long to wait (default: 120s)"
        )
        verb.add_argument("-q", "--quiet", action="store_true", help="say nothing")
        tree.client(verb, namespace=False)

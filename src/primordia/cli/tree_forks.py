"""The commands of templates and forks: `fork template`."""

from __future__ import annotations

from primordia.cli import tree


def add(commands: tree.Commands) -> None:
    """Put them into the tree."""
    fork = tree.add(commands, "fork", "fork:fork", "make children of a running context, memory and all")
    fork.add_argument("target", metavar="NAME[/CONTEXT]", help="a lifeform's context, or a box or fork as context/NAME")
    fork.add_argument("-c", "--context", default="", help="the context, if there are several")
    fork.add_argument("--count", type=int, default=1, metavar="N", help="how many children (default: 1)")
    fork.add_argument("--ttl", type=tree.seconds, default=0.0, metavar="TIME", help="end them after so long, as 10m")
    fork.add_argument("--keep", action="store_true", help="let them outlive their parent")
    fork.add_argument("--inherit-secrets", action="store_true", help="leave them the parent's secrets, as files")
    fork.add_argument("-q", "--quiet", action="store_true", help="no progress, and only the children's names")
    fork.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="the form of the answer")
    tree.client(fork)

    promote = tree.add(commands, "promote", "fork:promote", "make a fork that has data a lifeform of its own, from its disk")
    promote.add_argument("target", metavar="CONTEXT", help="the fork, by the name of its context")
    promote.add_argument("name", metavar="NAME", help="what the lifeform is to be called")
    promote.add_argument("-q", "--quiet", action="store_true", help="no progress, and nothing printed")
    tree.waiting(promote, default=True, timeout=120)
    tree.client(promote)

    template = commands.add_parser("template", help="make, list and remove templates for boxes", description="Templates.")
    verbs = template.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = tree.add(verbs, "create", "template:create", "boot an image, warm it up and freeze it, for boxes to come from")
    create.add_argument("name")
    create.add_argument("--image", required=True, help="an image by name, or an OCI reference")
    create.add_argument(
        "--warm-up",
        default="",
        metavar="COMMAND",
        help="what runs first: it makes /run/primordia/ready and stays; as a shell would split it",
    )
    create.add_argument("--python", default="", metavar="CODE", help="Python code to run first, as imports; or @FILE")
    create.add_argument("--cpu", default="1", metavar="N", help="cores of each box (default: 1)")
    create.add_argument("--memory", default="128Mi", metavar="SIZE", help="memory of each box (default: 128Mi)")
    create.add_argument("--warm", default="0", metavar="MIN:MAX", help="how many wait, ready, on each node (default: 0)")
    create.add_argument("-e", "--env", action="append", default=[], metavar="KEY=VALUE", help="an environment variable")
    create.add_argument("--workdir", default="", metavar="PATH", help="the working folder")
    create.add_argument("--user", default="", help="the user, as NAME[:GROUP] or numbers")
    create.add_argument("-q", "--quiet", action="store_true", help="no progress")
    tree.waiting(create, default=True, timeout=600)
    tree.client(create, namespace=False)

    list_ = tree.add(verbs, "ls", "template:list_", "list templates, and how many forks of each wait")
    list_.add_argument("-a", "--all", action="store_true", help="also those that `run` made for boxes of an image")
    tree.output(list_)
    tree.client(list_, namespace=False)
    describe = tree.add(verbs, "describe", "describe:template", "tell about a template, with its events")
    describe.add_argument("names", nargs="*", metavar="NAME")
    tree.client(describe, namespace=False)
    remove = tree.add(verbs, "rm", "template:remove", "remove templates; boxes that came from them live on")
    remove.add_argument("names", nargs="+", metavar="NAME")
    tree.client(remove, namespace=False)

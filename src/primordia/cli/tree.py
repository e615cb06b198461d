"""The command line as a tree of argparse: names, flags and help of every command, and no action.

Each command names its action as `module:function` below primordia.cli; main.py imports that module when it is called.
Shell completion is written from this tree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primordia import __version__
from primordia.kit.units import parse_duration_s

OUTPUTS = ("table", "wide", "json", "yaml", "name")
_TAKES_COMMAND = frozenset({"exec", "run", "fork"})

Parser = argparse.ArgumentParser
Commands = Any  # argparse keeps the type of its subparsers private


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one command line. What follows `--` in `exec`, `run` and `fork` is the guest's, untouched.

    Raises SystemExit as argparse does, after saying why.
    """
    words = list(arguments)
    program: list[str] = []
    if words and words[0] in _TAKES_COMMAND and "--" in words:
        cut = words.index("--")
        words, program = words[:cut], words[cut + 1 :]
    options = build().parse_args(words)
    options.program = program
    return options


def seconds(text: str) -> float:
    """A timeout: `30`, `30s`, `2m`."""
    try:
        return float(text) if text.replace(".", "", 1).isdecimal() else parse_duration_s(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build() -> Parser:
    """The whole tree."""
    # they are made of what is here
    from primordia.cli import tree_forks, tree_machines, tree_operations, tree_survival, tree_volumes

    parser = Parser(prog="primordia", description="Long-lived, stateful microVMs beside their own data.")
    parser.add_argument("--version", action="version", version=f"primordia {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _soup(commands)
    _run(commands)
    _objects(commands)
    _inside(commands)
    tree_forks.add(commands)
    tree_volumes.add(commands)
    tree_survival.add(commands)
    _image(commands)
    _node(commands)
    tree_machines.add(commands)
    tree_operations.add(commands)
    _other(commands)
    return parser


def _add(commands: Commands, name: str, action: str, summary: str, **more: Any) -> Parser:
    parser: Parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", **more)
    parser.set_defaults(command=action)
    return parser


def _completes(action: argparse.Action, what: str) -> None:
    """Mark what an argument is, for completion.py; the library that writes completion is slow to import."""
    action.completes = what  # type: ignore[attr-defined]


def _client(parser: Parser, *, namespace: bool = True) -> None:
    if namespace:
        parser.add_argument("-n", "--namespace", default="", help="the namespace (default: the client configuration's)")
    config = parser.add_argument(
        "--client-config",
        type=Path,
        metavar="FILE",
        help="the client configuration (PRIMORDIA_CONFIG, ~/.config/primordia/config)",
    )
    _completes(config, "file")


def _output(parser: Parser) -> None:
    parser.add_argument("-o", "--output", choices=OUTPUTS, default="table", help="the form of the answer")


def _waiting(parser: Parser, *, default: bool, timeout: float) -> None:
    parser.add_argument("--wait", action=argparse.BooleanOptionalAction, default=default, help="wait for the end")
    parser.add_argument("--timeout", type=seconds, default=timeout, metavar="TIME", help=f"how long (default: {timeout:g}s)")


def _files(parser: Parser, *, required: bool = False) -> None:
    files = parser.add_argument(
        "-f", "--filename", action="append", default=[], required=required, metavar="FILE", help="a manifest, a folder, or -"
    )
    _completes(files, "file")


def _soup_name(parser: Parser) -> None:
    parser.add_argument("--soup", default="default", metavar="NAME", help="the soup (default: default)")


def pool_options(parser: Parser) -> None:
    """Where a node's volumes lie."""
    parser.add_argument("--pool-size", default="", metavar="SIZE", help="the room of each node for data (default: 2Gi or less)")
    device = parser.add_argument("--pool-device", default="", metavar="DEV", help="keep data on this disk or partition instead")
    _completes(device, "file")
    parser.add_argument("--pool-format", action="store_true", help="with --pool-device: delete what is on it")


def _soup(commands: Commands) -> None:
    up = _add(commands, "up", "soup:up", "start a soup on this machine")
    up.add_argument(
        "--address", default="", metavar="IP", help="found a soup that other machines can join; this one is its first node"
    )
    up.add_argument("--name", default="", help="with --address: the node's name (default: the machine's)")
    up.add_argument("--rack", default="r1", help="with --address: the rack this machine is in (default: r1)")
    up.add_argument("--segment", default="s1", help="with --address: the segment this machine is in (default: s1)")
    _soup_name(up)
    config = up.add_argument("--config", type=Path, metavar="DIR", help="a folder with soup.yaml and lifeforms/*.yaml")
    _completes(config, "directory")
    up.add_argument("--nodes", type=int, default=None, metavar="N", help="how many nodes (default: 1)")
    up.add_argument("--racks", type=int, default=None, metavar="N", help="on how many racks (default: up to 3)")
    up.add_argument("--segments", type=int, default=None, metavar="N", help="in how many segments (default: 1)")
    pool_options(up)
    _client(up, namespace=False)
    _waiting(up, default=True, timeout=300)
    up.add_argument("-q", "--quiet", action="store_true", help="no progress")

    down = _add(commands, "down", "soup:down", "stop a soup on this machine; its state stays")
    _soup_name(down)
    _client(down, namespace=False)
    down.add_argument("--destroy", action="store_true", help="delete its state as well: asks first")
    down.add_argument("--yes", action="store_true", help="do not ask")
    down.add_argument("-q", "--quiet", action="store_true", help="no progress")

    status = _add(commands, "status", "soup:status", "show the soup on one screen")
    _client(status, namespace=False)
    status.add_argument("-o", "--output", choices=("table", "json"), default="table", help="the form of the answer")

    doctor = _add(commands, "doctor", "doctor:doctor", "check this machine, and look for what dead soups left")
    doctor.add_argument("-o", "--output", choices=("table", "json"), default="table", help="the form of the answer")
    doctor.add_argument("--leaks", action="store_true", help="look for leftovers only")


# What other parts of the tree are made of.
add, client, completes, soup_name, output, waiting = _add, _client, _completes, _soup_name, _output, _waiting


def _run(commands: Commands) -> None:
    run = _add(commands, "run", "run:run", "start a lifeform of one context and attach to it; or one command in a box")
    run.add_argument("image", nargs="?", default="", help="an image by name, or an OCI reference")
    run.add_argument("--template", default="", metavar="NAME", help="claim a box from this template, instead of an image")
    run.add_argument("--ttl", type=seconds, default=0.0, metavar="TIME", help="end the box after so long, as 10m")
    run.add_argument("--name", default="", help="its name (default: made from the image's or template's)")
    run.add_argument("-d", "--detach", action="store_true", help="do not attach")
    run.add_argument("-i", "--stdin", action="store_true", help="pass standard input on to the command")
    run.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    run.add_argument("--rm", action="store_true", help="delete it after the command; with IMAGE -- COMMAND it is a box")
    run.add_argument(
        "-p", "--publish", action="append", default=[], metavar="PORT:PORT", help="publish a port: the node's, the context's"
    )
    run.add_argument("-e", "--env", action="append", default=[], metavar="KEY=VALUE", help="an environment variable")
    run.add_argument("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="a label")
    run.add_argument("--cpus", default="1", metavar="N", help="cores, as 0.5 or 500m (default: 1)")
    run.add_argument("--memory", default="128Mi", metavar="SIZE", help="memory (default: 128Mi)")
    run.add_argument("--secret", action="append", default=[], metavar="NAME:PATH", help="a Secret, as files in a folder")
    run.add_argument(
        "--data", default="", metavar="SIZE[:PATH]", help="a volume of its own, mounted at PATH (default: /data); it stays"
    )
    run.add_argument("--mirror", type=int, default=None, metavar="N", help="with --data: copies on other racks (default: 1)")
    run.add_argument("--egress", action="store_true", help="let it reach the outside")
    run.add_argument(
        "--restart",
        choices=("Always", "OnFailure", "Never"),
        default="",
        help="when it ends (default: Always with -d, else Never)",
    )
    run.add_argument("--rack", default="", help="only on this rack")
    run.add_argument("--segment", default="", help="only in this segment")
    run.add_argument("--dry-run", action="store_true", help="print the manifest and do nothing")
    run.add_argument("--timeout", type=seconds, default=600, metavar="TIME", help="how long to wait for it (default: 600s)")
    run.add_argument("-q", "--quiet", action="store_true", help="no progress; with -d only the name")
    _client(run)


def _objects(commands: Commands) -> None:
    apply = _add(commands, "apply", "objects:apply", "make the soup be what manifests say")
    _files(apply, required=True)
    apply.add_argument("--dry-run", action="store_true", help="let the server check it and change nothing")
    _waiting(apply, default=False, timeout=120)
    _output(apply)
    _client(apply)

    get = _add(commands, "get", "objects:get", "list objects, or show some")
    get.add_argument(
        "kind",
        help="a kind or several with commas: lifeforms (lf), contexts (ctx), nodes, images, templates, volumes (vol), "
        "secrets, events; "
        "or KIND/NAME",
    )
    get.add_argument("names", nargs="*", metavar="NAME")
    _selection(get)
    get.add_argument("-w", "--watch", action="store_true", help="go on and show changes")
    get.add_argument("--no-headers", action="store_true", help="leave out the table's first line")
    _output(get)
    _client(get)

    describe = _add(commands, "describe", "describe:describe", "tell about an object, with its events")
    describe.add_argument("kind", help="a kind, or KIND/NAME")
    describe.add_argument("names", nargs="*", metavar="NAME")
    _client(describe)

    delete = _add(commands, "delete", "objects:delete", "delete objects and wait until they are gone")
    delete.add_argument("kind", nargs="?", default="", help="a kind, or KIND/NAME")
    delete.add_argument("names", nargs="*", metavar="NAME")
    _files(delete)
    _selection(delete)
    delete.add_argument("--all", action="store_true", help="all of that kind in the namespace")
    delete.add_argument("--ignore-not-found", action="store_true", help="a missing one is no error")
    delete.add_argument("-q", "--quiet", action="store_true", help="say nothing")
    _waiting(delete, default=True, timeout=60)
    _client(delete)

    wait = _add(commands, "wait", "objects:wait", "wait until objects are as wanted")
    wait.add_argument("kind", help="a kind, or KIND/NAME")
    wait.add_argument("names", nargs="*", metavar="NAME")
    wait.add_argument(
        "--for",
        dest="condition",
        required=True,
        metavar="WHAT",
        help="condition=Ready, condition=Ready=False, phase=Running, delete",
    )
    _selection(wait)
    wait.add_argument("--timeout", type=seconds, default=30, metavar="TIME", help="how long (default: 30s)")
    _client(wait)

    events = _add(commands, "events", "objects:events", "show what happened")
    events.add_argument("about", nargs="?", default="", metavar="KIND/NAME", help="only about this object")
    events.add_argument("-A", "--all-namespaces", action="store_true", help="of every namespace")
    events.add_argument("-w", "--watch", action="store_true", help="go on and show new ones")
    _output(events)
    _client(events)


def _selection(parser: Parser) -> None:
    parser.add_argument("-l", "--selector", default="", metavar="LABELS", help="by labels, as app=shop,tier!=web")
    parser.add_argument("--field-selector", default="", metavar="FIELDS", help="by fields, as status.phase=Running")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of every namespace")


def _inside(commands: Commands) -> None:
    run = _add(commands, "exec", "inside:exec_", "run a command in a context; its exit code is ours")
    run.add_argument("target", metavar="NAME[/CONTEXT]", help="a lifeform's context, or a box or fork by its name")
    run.add_argument("words", nargs="*", metavar="COMMAND", help="better after --")
    run.add_argument("-i", "--stdin", action="store_true", help="pass standard input on")
    run.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    run.add_argument("-c", "--context", default="", help="the context, if there are several")
    _client(run)

    logs = _add(commands, "logs", "inside:logs", "show what a context's program wrote")
    logs.add_argument("target", metavar="NAME[/CONTEXT]", help="a lifeform's context, or a box or fork by its name")
    logs.add_argument("-f", "--follow", action="store_true", help="go on")
    logs.add_argument("--tail", type=int, default=None, metavar="N", help="the last N lines only")
    logs.add_argument("--previous", action="store_true", help="of the run before")
    logs.add_argument("--timestamps", action="store_true", help="with the time of each line")
    logs.add_argument("-c", "--context", default="", help="the context, if there are several")
    _client(logs)

    copy = _add(commands, "cp", "inside:copy", "copy files into or out of a context")
    copy.add_argument("source", metavar="SOURCE", help="a path, or NAME[/CONTEXT]:PATH")
    copy.add_argument("target", metavar="TARGET", help="a path, or NAME[/CONTEXT]:PATH")
    copy.add_argument("-q", "--quiet", action="store_true", help="no progress")
    _client(copy)


def _image(commands: Commands) -> None:
    image = commands.add_parser("image", help="build, pull, list and remove images", description="Images.")
    verbs = image.add_subparsers(title="commands", metavar="COMMAND", required=True)

    build_ = _add(verbs, "build", "image:build", "build an image from Debian packages")
    build_.add_argument("name", help="the image's name; redis, python and busybox are known by themselves")
    build_.add_argument("--packages", default="", metavar="A,B", help="the packages")
    build_.add_argument(
        "--cmd", default="", metavar="COMMAND", help="what runs when the lifeform does not say, as a shell would split it"
    )
    build_.add_argument("--entrypoint", default="", metavar="COMMAND", help="what --cmd is given to")
    _image_config(build_)

    pull = _add(verbs, "pull", "image:pull", "pull an OCI image")
    pull.add_argument("reference", help="HOST/NAME:TAG, NAME@sha256:..., or oci:FOLDER[:TAG]")
    pull.add_argument("--name", default="", help="the image's name here (default: made from the reference)")
    pull.add_argument("--insecure", action="store_true", help="allow a registry without checked TLS")
    _image_config(pull)

    list_ = _add(verbs, "ls", "image:list_", "list images with their sizes")
    _output(list_)
    _client(list_, namespace=False)

    inspect = _add(verbs, "inspect", "image:inspect", "show an image as it is")
    inspect.add_argument("names", nargs="+", metavar="NAME")
    inspect.add_argument("-o", "--output", choices=("json", "yaml"), default="yaml", help="the form of the answer")
    _client(inspect, namespace=False)

    remove = _add(verbs, "rm", "image:remove", "remove images; refused while contexts use them")
    remove.add_argument("names", nargs="+", metavar="NAME")
    _client(remove, namespace=False)

    prune = _add(verbs, "prune", "image:prune", "remove every image that nothing uses")
    prune.add_argument("--yes", action="store_true", help="do not ask")
    _client(prune, namespace=False)


def _image_config(parser: Parser) -> None:
    parser.add_argument("-e", "--env", action="append", default=[], metavar="KEY=VALUE", help="an environment variable")
    parser.add_argument("--workdir", default="", metavar="PATH", help="the working folder")
    parser.add_argument("--user", default="", help="the user, as NAME[:GROUP] or numbers")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    _waiting(parser, default=True, timeout=900)
    _client(parser, namespace=False)


def _node(commands: Commands) -> None:
    from primordia.cli import tree_operations

    node = commands.add_parser("node", help="list nodes, tell about one, keep lifeforms off it", description="Nodes.")
    verbs = node.add_subparsers(title="commands", metavar="COMMAND", required=True)
    list_ = _add(verbs, "ls", "nodes:list_", "list nodes by segment and rack, with what they have left")
    _output(list_)
    _client(list_, namespace=False)
    describe = _add(verbs, "describe", "describe:node", "tell about a node, with its events")
    describe.add_argument("names", nargs="*", metavar="NAME")
    _client(describe, namespace=False)
    for verb, summary in (
        ("cordon", "let nodes take no more lifeforms; those they have stay"),
        ("uncordon", "let nodes take lifeforms again"),
    ):
        mark = _add(verbs, verb, f"nodes:{verb}", summary)
        mark.add_argument("names", nargs="+", metavar="NAME")
        _client(mark, namespace=False)
    tree_operations.add_to_node(verbs)

    racks = _add(commands, "racks", "nodes:racks", "list racks by segment, with their nodes and what they have left")
    racks.add_argument(
        "-o", "--output", choices=("table", "wide", "json", "yaml"), default="table", help="the form of the answer"
    )
    _client(racks, namespace=False)


def _other(commands: Commands) -> None:
    version = _add(commands, "version", "soup:version", "show our version and the soup's")
    version.add_argument("-o", "--output", choices=("table", "json"), default="table", help="the form of the answer")
    _client(version, namespace=False)

    bench = _add(commands, "bench", "bench:bench", "measure, on a soup of its own")
    benches = ("boot", "exec", "api", "idle", "ready", "fork", "density", "data", "locality", "failover", "scale", "all")
    bench.add_argument("names", nargs="+", choices=benches, metavar="|".join(benches))
    bench.add_argument("-o", "--output", choices=("table", "json"), default="table", help="the form of the answer")
    bench.add_argument("--rounds", type=int, default=0, metavar="N", help="how often (default: by the benchmark)")
    bench.add_argument("--soup", default="", metavar="NAME", help="a running soup to use (default: one of its own)")
    bench.add_argument("--nodes", type=int, default=None, metavar="N", help="nodes of its own soup (default: by benchmark)")
    bench.add_argument("--racks", type=int, default=None, metavar="N", help="on how many racks (default: up to 3)")
    bench.add_argument("--segments", type=int, default=None, metavar="N", help="in how many segments (default: 1; ready: 2)")
    bench.add_argument("-q", "--quiet", action="store_true", help="no progress")

    demo = _add(commands, "demo", "demo:demo", "show what Primordia does, on this machine")
    demo.add_argument("--yes", action="store_true", help="do not ask")
    demo.add_argument("--keep", action="store_true", help="leave the soup up")
    demo.add_argument("--announced", action="store_true", help=argparse.SUPPRESS)

    completion = _add(commands, "completion", "completion:completion", "print shell completion")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))

"""`completion`: shell completion, written from the argparse tree by shtab."""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace

import shtab

from primordia.cli.tree import build


async def completion(options: Namespace) -> int:
    """Print the completion for one shell; it serves `primordia` and `kbl`."""
    text = shtab.complete(_marked(build()), shell=options.shell)
    if options.shell == "zsh":
        text = text.replace("#compdef primordia", "#compdef primordia kbl", 1)
    sys.stdout.write(text + _ALIASES.get(options.shell, ""))
    return 0


def _marked(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The tree with shtab's own marks where ours are."""
    kinds = {"file": shtab.FILE, "directory": shtab.DIRECTORY}
    for action in parser._actions:
        if hasattr(action, "completes"):
            action.complete = kinds[action.completes]  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _marked(child)
    return parser


_ALIASES = {
    "bash": "\ncomplete -o bashdefault -F _shtab_primordia kbl\n",
    "fish": "\ncomplete -c kbl -w primordia\n",
}

"""How the fences of this machine's nodes stand, by their supervisors' own word: a node that is cut off can tell nobody else."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from primordia.host.soup import read_soup, soups_here
from primordia.kit.errors import PrimordiaError
from primordia.kit.paths import SoupPaths
from primordia.supervisor import control
from primordia.supervisor.main import SOCKET_FILE

_PATIENCE_S = 2.0


@dataclass(frozen=True)
class FenceWord:
    """A node of this machine: whether what it runs stands, for how long, and why."""

    soup: str
    node: str
    frozen: bool
    why: str
    seconds: float

    def sentence(self) -> str:
        """For people."""
        return f"What node {self.node} runs has been frozen for {self.seconds:.0f} s: {self.why}."


def look(soup: str) -> tuple[FenceWord, ...]:
    """The nodes of a soup that run here and answer; none for who may not ask (the sockets are root's)."""
    paths = SoupPaths.of(soup)
    try:
        known = read_soup(paths)
    except PrimordiaError:
        return ()
    found = []
    for node in known.nodes if known is not None else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            reply = control.ask(paths.node(node.name).run / SOCKET_FILE, "status", timeout_s=_PATIENCE_S)
            fence = reply["fence"]
            found.append(FenceWord(soup, node.name, bool(fence["frozen"]), str(fence["why"]), float(fence["frozenSeconds"])))
    return tuple(found)


def all_frozen() -> tuple[FenceWord, ...]:
    """The nodes of all of this machine's soups whose microVMs stand."""
    return tuple(word for soup in soups_here() for word in look(soup) if word.frozen)

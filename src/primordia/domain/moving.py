"""How a lifeform goes to another node by request, and why it waits or stays: a pure state machine.

Its data is brought to the target while it runs; its contexts are stopped; what it wrote at last follows; one transaction makes
the target its place; it starts there. Invariant: before that transaction nothing has changed but that it stands still, so the
move may be given up at any moment and the lifeform goes on where it is; after it there is no way back. What is decided
rests on what the objects say alone, so whoever comes after one that died goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["Seeding", "Stopping", "HandingOver", "Starting"]
Kind = Literal["node", "rack", "segment", "elsewhere"]
_KINDS: tuple[Kind, ...] = ("node", "rack", "segment", "elsewhere")


@dataclass(frozen=True)
class Destination:
    """Where it is to go: the node, rack or segment `name`, or `elsewhere`, to any node but its own."""

    kind: Kind
    name: str = ""

    def words(self) -> str:
        """As in a sentence."""
        return "another node" if self.kind == "elsewhere" else f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Move:
    """A move that has begun: from `source`, where the lifeform was in `epoch`, to `to`. Once it starts there, `epoch` is the
    new one."""

    phase: Phase
    source: str
    to: str
    epoch: int


@dataclass(frozen=True)
class View:
    """What is known of the lifeform now. The sentences (without full stops) say what is missing; empty: nothing is.

    `wish` is where somebody wants it to go, `lacks` why the target will not do, `unseeded` what of its data is not there yet,
    `running` which contexts have not stopped, `unhanded` whose last data is not there, `starting` which do not run there yet.
    `overdue` says that it has stood still for too long, `rooted` why it is better not moved at all.
    """

    node: str
    epoch: int
    wish: bool = True
    deleting: bool = False
    rooted: str = ""
    lacks: str = ""
    unseeded: str = ""
    running: str = ""
    unhanded: str = ""
    starting: str = ""
    overdue: str = ""


@dataclass(frozen=True)
class Nothing:
    """There is nothing to do."""


@dataclass(frozen=True)
class Choose:
    """Find a target and begin."""


@dataclass(frozen=True)
class Wait:
    """Say what is waited for."""

    message: str


@dataclass(frozen=True)
class Enter:
    """Go on with the next phase."""

    phase: Phase


@dataclass(frozen=True)
class HandOver:
    """Make the target its place, in the next epoch, all in one transaction."""


@dataclass(frozen=True)
class GiveUp:
    """It stays where it is."""

    message: str


@dataclass(frozen=True)
class Done:
    """It runs there; or what became of it there is no longer this move's affair (`void`)."""

    void: bool = False


Step = Nothing | Choose | Wait | Enter | HandOver | GiveUp | Done


def read_destination(text: str) -> Destination | None:
    """What a wish says: `node/n2`, `rack/r1`, `segment/east` or `elsewhere`; None when it says nothing of the kind."""
    kind, slash, name = text.partition("/")
    found = next((each for each in _KINDS if each == kind), None)
    if found is None or (found == "elsewhere") == bool(slash) or bool(slash) != bool(name):
        return None
    return Destination(found, name)


def decide(view: View, move: Move | None) -> Step:
    """The next step. `move` is None before the first."""
    if view.deleting:
        return Nothing()
    if move is None:
        return _begin(view)
    if move.phase == "Starting":
        if (view.node, view.epoch) != (move.to, move.epoch):
            return Done(void=True)
        return Wait(view.starting) if view.starting else Done()
    if (view.node, view.epoch) != (move.source, move.epoch):
        return GiveUp(f"it is on {view.node or 'no node'} in epoch {view.epoch} by now, for another reason")
    if not view.wish:
        return GiveUp("the move was taken back")
    if view.lacks:
        return GiveUp(view.lacks)
    return _go_on(view, move.phase)


def _begin(view: View) -> Step:
    if not view.wish:
        return Nothing()
    if not view.node:
        return GiveUp("it has no node yet")
    if view.rooted:
        return GiveUp(view.rooted)
    return Choose()


def _go_on(view: View, phase: Phase) -> Step:
    if phase == "Seeding":
        return Wait(view.unseeded) if view.unseeded else Enter("Stopping")
    if view.overdue:
        return GiveUp(f"{view.overdue}: {view.running or view.unhanded}")
    if view.running:
        return Wait(view.running)
    if phase == "Stopping":
        return Enter("HandingOver")
    return Wait(view.unhanded) if view.unhanded else HandOver()

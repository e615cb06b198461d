"""What the controller does next about one lifeform, and what its status says: pure decisions.

The plan compares the contexts that should be with those that are, name by name. It may be made again after every step,
from whatever state the last one was cut off in, and leads to the same end. `S` is a context's whole wanted spec: the
plan only asks whether two are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from primordia.domain.conditions import Verdict

S = TypeVar("S")


def context_object_name(lifeform: str, context: str) -> str:
    """The name of a lifeform's context as an object. A dot parts them: neither name may contain one."""
    return f"{lifeform}.{context}"


@dataclass(frozen=True)
class Wanted(Generic[S]):
    """The lifeform. `node` is empty until it is placed; `specs` are its contexts, complete for that node.

    `bound` says that its volumes are its own there, in its epoch; without any they are.
    """

    deleting: bool
    claimed: bool
    node: str
    specs: Mapping[str, S]
    bound: bool = True


@dataclass(frozen=True)
class Present(Generic[S]):
    """A context that exists. `foreign`: it belongs to an earlier lifeform of the same name."""

    spec: S
    deleting: bool = False
    foreign: bool = False


@dataclass(frozen=True)
class Claim:
    """Put our finalizer on the lifeform, so that it does not go before its contexts."""

    reason: str = "it is new"


@dataclass(frozen=True)
class Place:
    """Choose a node and give the next epoch; with it goes our finalizer, if it is not there."""

    reason: str = "it has no node"


@dataclass(frozen=True)
class Bind:
    """Make its volumes its own, in its epoch or, with the lifeform, in the next."""

    reason: str = "its volumes are not its own yet"


@dataclass(frozen=True)
class Create:
    """Create these contexts, all or none."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Change:
    """Give these contexts their new spec."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Drop:
    """Delete these contexts."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Release:
    """Take our finalizer away."""

    reason: str = "all its contexts are gone"


Step = Claim | Place | Bind | Create | Change | Drop | Release


def plan(wanted: Wanted[S], present: Mapping[str, Present[S]]) -> tuple[Step, ...]:
    """The steps that may be taken now, in order. Nothing to do is an empty plan."""
    if wanted.deleting:
        return _plan_end(wanted, present)
    if not wanted.node:
        return (*_drop_foreign(present), Place())
    if not wanted.claimed:
        return (Claim(),)
    return _plan_life(wanted, present)


def _plan_end(wanted: Wanted[S], present: Mapping[str, Present[S]]) -> tuple[Step, ...]:
    mine = {name: item for name, item in present.items() if not item.foreign}
    doomed = tuple(sorted(name for name, item in mine.items() if not item.deleting))
    if doomed:
        return (Drop(doomed, "the lifeform is deleted"),)
    if mine or not wanted.claimed:
        return ()
    return (Release(),)


def _drop_foreign(present: Mapping[str, Present[S]]) -> tuple[Step, ...]:
    foreign = tuple(sorted(name for name, item in present.items() if item.foreign and not item.deleting))
    return (Drop(foreign, "an earlier lifeform of this name left them"),) if foreign else ()


def _plan_life(wanted: Wanted[S], present: Mapping[str, Present[S]]) -> tuple[Step, ...]:
    surplus = tuple(
        sorted(name for name, item in present.items() if name not in wanted.specs and not item.deleting and not item.foreign)
    )
    missing = tuple(name for name in wanted.specs if name not in present)
    changed = tuple(
        name
        for name, spec in wanted.specs.items()
        if (item := present.get(name)) is not None and not item.deleting and not item.foreign and item.spec != spec
    )
    waiting = any(item.foreign or item.deleting for name, item in present.items() if name in wanted.specs)
    steps: list[Step] = [*_drop_foreign(present)]
    if surplus:
        steps.append(Drop(surplus, "the lifeform no longer has them"))
    if not wanted.bound:
        return (*steps, Bind())
    if changed:
        steps.append(Change(changed, "the lifeform's spec changed"))
    # All or none: while an old one of the same name is going, its new self cannot be made, so none is.
    if missing and not waiting:
        steps.append(Create(missing, "the lifeform wants them"))
    return tuple(steps)


@dataclass(frozen=True)
class Member:
    """A context's part in the lifeform's status."""

    name: str
    phase: str
    ready: bool
    reason: str = ""
    message: str = ""


def phase_of(  # noqa: PLR0911 (a ladder: the first that holds is it)
    *,
    deleting: bool,
    suspended: bool,
    placed: bool,
    members: Sequence[Member],
    complete: bool,
    silent: bool = False,
    dead: bool = False,
) -> str:
    """The lifeform's phase. `complete` says that every context it wants exists, `silent` that its node's lease has ended,
    `dead` that its node is: it runs nowhere, and has not been started elsewhere yet."""
    phases = [member.phase for member in members]
    if deleting:
        return "Terminating"
    if suspended and all(phase == "Stopped" for phase in phases):
        return "Suspended"
    if not placed:
        return "Pending"
    if dead:
        return "Parked"
    if silent:
        return "Unknown"
    if "Failed" in phases:
        return "Failed"
    if not phases or not complete:
        return "Starting"
    if all(phase == "Succeeded" for phase in phases):
        return "Succeeded"
    return "Running" if all(phase in ("Running", "Stopping", "Succeeded") for phase in phases) else "Starting"


def readiness(phase: str, members: Sequence[Member]) -> Verdict:
    """The Ready condition: true when every context is ready, else why the first one is not."""
    if phase == "Unknown":
        message = "Its node's lease has ended: it may run there, or not. It is not started elsewhere before that is known."
        return Verdict("Ready", "Unknown", "NodeUnknown", message)
    if phase == "Parked":
        return Verdict("Ready", "False", "NodeDead", "Its node is dead, and it has not been started elsewhere yet.")
    if members and phase == "Running" and all(member.ready for member in members):
        return Verdict("Ready", "True", "AllContextsReady")
    if phase in ("Suspended", "Succeeded", "Terminating"):
        return Verdict("Ready", "False", phase)
    for member in members:
        if not member.ready:
            said = member.message or f"The context is {member.phase}."
            return Verdict("Ready", "False", member.reason or member.phase, f"{member.name}: {said}")
    return Verdict("Ready", "False", phase or "Pending")

"""What a node does next about one context: a pure decision from what is wished, what is known, and the time.

The decision is made again after every step and every event, from the state alone. So a node that is killed between any
two steps, and the next one that adopts what it left, walk to the same end. An action carries its reason; nothing here
waits or touches anything.

A fork (a box, or the child of a running context) is never started here: it came into being by its claim, with memory that
cannot be had again. What ends it, ends it.

A run is one start of the microVM. A run that was cut off while it started is thrown away and started afresh: a boot costs
seconds, and a half-configured guest is nothing to build on. A run that got as far as its main program is never repeated
without need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from primordia.domain import restart

Because = Literal["Created", "Restarted", "SpecChanged", "Resumed", "NodeRestarted", "Claimed", "Forked", "Failover"]
MainPhase = Literal["none", "running", "ended"]


@dataclass(frozen=True)
class Wish:
    """What the registry says. `known` is false until it has been read: then nothing is started and nothing removed.

    `fingerprint` stands for everything a running microVM cannot change: template and epoch. `keep_memory`: one that stops
    is to go on later from where it was. `taken_over` says that this epoch began because another node had died, and that
    nothing has been started in it yet.
    """

    known: bool = True
    exists: bool = True
    deleted: bool = False
    running: bool = True
    fingerprint: str = ""
    restart_policy: str = "Always"
    fork: bool = False
    keep_memory: bool = False
    taken_over: bool = False

    @property
    def removed(self) -> bool:
        return self.known and (self.deleted or not self.exists)


@dataclass(frozen=True)
class Run:
    """The last start, as the durable record tells it. Times are boot-time seconds and hold only for `same_boot`.

    `next_because` is why the next start will be made, where that is known already. `has_main` is false for a box, which
    goes on whatever becomes of what was warmed up in it.
    """

    fingerprint: str
    phase: Literal["starting", "running", "ended", "stopped"]
    because: Because = "Created"
    next_because: Because | None = None
    exit_code: int | None = None
    ends: int = 0
    ended_s: float = 0.0
    same_boot: bool = True
    has_main: bool = True


@dataclass(frozen=True)
class Failure:
    """Starts in a row that did not succeed, for this fingerprint; not durable."""

    fingerprint: str
    count: int
    next_s: float
    reason: str
    message: str


@dataclass(frozen=True)
class Seen:
    """What the node knows about the context. `main` is None until the guest has been asked."""

    run: Run | None = None
    machine: bool = False
    guest: bool = False
    main: MainPhase | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Start:
    """Prepare everything and start the microVM up to its main program."""

    because: Because
    reason: str


@dataclass(frozen=True)
class Attach:
    """Connect to the agent of a running microVM and ask what its main program does."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """Record the end of the run, and end what is left of its microVM."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """Shut the guest down in order; the next start is made because of `next_because`, from its memory if that is kept."""

    next_because: Because | None
    reason: str
    keep_memory: bool = False


@dataclass(frozen=True)
class Discard:
    """Kill the microVM of a start that was cut off; the start is made again."""

    reason: str


@dataclass(frozen=True)
class Close:
    """Record that the run is over by wish, with no microVM left."""

    reason: str


@dataclass(frozen=True)
class Remove:
    """Delete every trace of the context on this node, then let go of the object."""

    reason: str


@dataclass(frozen=True)
class Rest:
    """Nothing to do until something happens, at the latest at `until` (boot-time seconds)."""

    phase: str
    reason: str = ""
    message: str = ""
    until: float | None = None


Action = Start | Attach | Finish | Stop | Discard | Close | Remove | Rest


def decide(wish: Wish, seen: Seen, now: float) -> Action:
    """The next action. `now` is boot-time seconds."""
    if wish.removed:
        if seen.machine:
            return Stop(None, "the context is deleted")
        return Remove("the context is deleted")
    if wish.known and not wish.running:
        return _towards_stopped(wish, seen)
    return _with_machine(wish, seen) if seen.machine else _without_machine(wish, seen, now)


def still_wanted(action: Action, wish: Wish, fingerprint: str) -> bool:
    """Whether an action under way should go on, now that the wish is this; else it is broken off.

    `fingerprint` is the wish's when the action began. What ends a run is never broken off: it is bounded by its grace.
    """
    if isinstance(action, Start | Attach):
        return not wish.removed and wish.running and wish.fingerprint == fingerprint
    return True


def _towards_stopped(wish: Wish, seen: Seen) -> Action:
    if seen.machine:
        return Stop("Resumed", "it is suspended", keep_memory=wish.keep_memory and not wish.fork)
    if seen.run is not None and seen.run.phase != "stopped":
        return Close("it is suspended")
    return Rest("Stopped")


def _with_machine(wish: Wish, seen: Seen) -> Action:
    run = seen.run
    if run is None or run.phase == "starting":
        return Discard("its start was cut off")
    if run.phase in ("ended", "stopped"):
        return Finish("its run is over")
    if run.fingerprint != wish.fingerprint:
        return Stop("SpecChanged", "its spec changed")
    if not seen.guest or seen.main is None:
        return Attach("its agent is not connected")
    if seen.main == "ended" and run.has_main:
        return Finish("its main program ended")
    if seen.main == "none" and not wish.fork:
        return Discard("its main program was never started")
    return Rest("Running")


def _without_machine(wish: Wish, seen: Seen, now: float) -> Action:
    run, failure = seen.run, seen.failure
    if run is not None and run.phase == "running" and run.same_boot:
        return Finish("its microVM is gone")
    if not wish.known:
        return Rest("Pending", "StoreUnavailable", "The registry has not been read yet.")
    if wish.fork:
        return _over(run)
    if failure is not None and failure.fingerprint == wish.fingerprint and now < failure.next_s:
        return Rest("BackOff", failure.reason, failure.message, failure.next_s)
    if wish.taken_over:
        return Start("Failover", "its node had died")
    if run is None:
        return Start("Created", "it is new")
    if run.fingerprint != wish.fingerprint:
        because = run.next_because if run.next_because == "Resumed" else "SpecChanged"
        return Start(because or "SpecChanged", "its spec changed")
    return _next_run(wish, run, now)


def _over(run: Run | None) -> Action:
    """A fork without a microVM."""
    if run is None or run.phase == "starting":
        return Rest("Failed", "ForkCutOff", "It was cut off before it was anybody.")
    if run.phase == "running":
        return Finish("the node restarted")
    return Rest("Succeeded" if run.exit_code == 0 else "Failed")


def _next_run(wish: Wish, run: Run, now: float) -> Action:
    if run.phase == "stopped":
        return Start(run.next_because or "Resumed", "it is wanted again")
    if run.phase == "starting":
        if run.same_boot:
            return Start(run.because, "its start was cut off")
        return Start("NodeRestarted", "the node restarted")
    if run.phase == "running":
        if restart.wants_restart(wish.restart_policy, None):
            return Start("NodeRestarted", "the node restarted")
        return Finish("the node restarted")
    if not restart.wants_restart(wish.restart_policy, run.exit_code):
        return Rest("Succeeded" if run.exit_code == 0 else "Failed")
    at = run.ended_s + restart.delay_s(run.ends) if run.same_boot else now
    if now < at:
        return Rest("BackOff", "RestartBackOff", "", at)
    return Start("Restarted", "its program ended")

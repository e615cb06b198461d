"""When a node must make its microVMs stand, may let them go on, and must end them. Pure: `now` and all that is known are
arguments, and what comes out says what to do and why.

Nobody can tell a node that is cut off to stop, so it stops itself. Whatever it runs *stands* from `until` on: a deadline
after the moment before the last renewal was sent that the engine acknowledged. Somebody else may start what it ran only
after that moment (`domain/takeover.py`). Without an engine there is nobody who could start anything anywhere, which only
the other nodes together can say: as long as all of them say so, `until` moves as if the engine had.

A node's microVMs run under one of its lives. One that has been declared dead never runs again: it is neither thawed nor
gone on with under another life, it is killed (`ended_by`).

Seconds on CLOCK_BOOTTIME throughout, which counts suspend.

Invariants: nothing runs at or after `until`, but for the time that a freeze takes (`drift_s` allows for it); nothing is
thawed without a renewal and a read of its own life that both were sent after the freeze; a soup of one node never freezes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from primordia.domain.timings import Timings

# ---------------------------------------------------------------- what is known


@dataclass(frozen=True)
class LeaseView:
    """What the keeper of the lease knows.

    `life` is the one under which what runs here runs, 0 while there is none: the lease is lost, or a new one is not
    settled yet. `sent_s` is when the last acknowledged renewal was sent, `looked_s` when the last read that showed this
    life was. `trouble` is a sentence while the engine gives no answer. `ended` is a sentence once what runs here must end.
    """

    life: int = 0
    sent_s: float | None = None
    looked_s: float | None = None
    trouble: str = ""
    ended: str = ""


@dataclass(frozen=True)
class DaemonView:
    """`pid` is 0 while it does not run, which is no silence: it is started anew at once. `beat` is any value that changes
    with each sign of life, None before the first. `announced` says that its silence was announced, by a restart."""

    pid: int = 0
    beat: float | None = None
    announced: bool = False


@dataclass(frozen=True)
class View:
    """Everything of one moment. `others` are the other nodes of the soup, None while they are not known. `round_s` is when
    the last round of questions began in which every one of them said that it has no engine."""

    now: float
    lease: LeaseView = LeaseView()
    others: frozenset[str] | None = None
    round_s: float | None = None
    daemon: DaemonView = DaemonView()


# ---------------------------------------------------------------- what to do


@dataclass(frozen=True)
class Freeze:
    """Make everything stand."""

    why: str


@dataclass(frozen=True)
class Thaw:
    """Let everything go on."""

    why: str


@dataclass(frozen=True)
class Kill:
    """End the daemon, then everything that runs; with `prove`, declare this life over; then start the daemon anew."""

    why: str
    prove: bool


@dataclass(frozen=True)
class AskPeers:
    """Begin a round: ask every other node whether it has an engine."""


@dataclass(frozen=True)
class Rest:
    """Nothing to do before `until`, if nothing is heard."""

    until: float


Action = Freeze | Thaw | Kill | AskPeers | Rest


# ---------------------------------------------------------------- the machine


@dataclass(frozen=True)
class FenceState:
    """`until`: what runs stands from then on; None before the first life, when nothing runs. `frozen_s`: since when it
    stands, None while it runs; `why` it does.

    `silence_s` is how long the daemon `daemon_pid` has shown nothing while this was looked at: time in which nobody looked,
    as in a suspend, is not the daemon's fault.
    """

    until: float | None = None
    frozen_s: float | None = None
    why: str = ""
    asked_s: float | None = None
    seen_s: float | None = None
    daemon_pid: int = 0
    beat: float | None = None
    silence_s: float = 0.0


def observe(state: FenceState, timings: Timings, view: View) -> FenceState:
    """The state that takes in what is known now."""
    until, lease = state.until, view.lease
    if lease.life:
        if lease.sent_s is not None:
            until = max(until or 0.0, lease.sent_s + timings.deadline_s)
        # A round counts only where it takes up before the last one, or the engine's last word, has run out.
        if state.frozen_s is None and view.round_s is not None and until is not None and view.round_s < until:
            until = max(until, view.round_s + timings.deadline_s)
    daemon, since = view.daemon, state.seen_s
    quiet = daemon.pid != 0 and (daemon.pid, daemon.beat) == (state.daemon_pid, state.beat)
    looked = 0.0 if since is None else min(view.now - since, 2 * timings.beat_every_s)
    return replace(
        state,
        until=until,
        seen_s=view.now,
        daemon_pid=daemon.pid,
        beat=daemon.beat,
        silence_s=state.silence_s + looked if quiet else 0.0,
    )


def decide(state: FenceState, timings: Timings, view: View) -> Action:
    """The next action, from a state that has taken `view` in."""
    lease, now = view.lease, view.now
    if lease.ended:
        return Kill(lease.ended, prove=False)
    if view.daemon.pid and state.silence_s >= (allowed := _silence_allowed(timings, view.daemon)):
        return Kill(f"the daemon has shown no sign of life for {allowed:g} s, so nobody looks after what runs here", prove=True)
    if state.frozen_s is not None:
        why = _may_thaw(state, timings, view)
        return Thaw(why) if why else Rest(now + timings.beat_every_s)
    if state.until is None or view.others == frozenset():
        return Rest(now + timings.beat_every_s)
    if now >= state.until:
        return Freeze(_why_frozen(timings, view))
    if lease.trouble and lease.life and view.others:
        due = now if state.asked_s is None else state.asked_s + timings.failsafe_round_s
        if now >= due:
            return AskPeers()
        return Rest(min(due, state.until))
    return Rest(min(now + timings.beat_every_s, state.until))


def after(state: FenceState, action: Action, began: float, ended: float) -> FenceState:
    """The state after an action was carried out between those moments. A kill that failed is not carried out."""
    if isinstance(action, Freeze):
        # What was heard before it stood proves nothing.
        return replace(state, frozen_s=ended, why=action.why)
    if isinstance(action, Thaw):
        return replace(state, frozen_s=None, why="", asked_s=None)
    if isinstance(action, Kill):
        return FenceState()
    if isinstance(action, AskPeers):
        return replace(state, asked_s=began)
    return state


def stands_from(state: FenceState, view: View) -> float | None:
    """From when on everything must stand if nothing more is heard; None is never. For whoever watches over the fence."""
    return None if view.others == frozenset() else state.until


def ended_by(ran: int | None, life: int, previous: int | None, death: int) -> str:
    """Why what runs here must end before the node's new `life` is used; empty when it may go on.

    `ran` is the life that it ran under, None where nothing ran. `previous` is the life that the soup knew when the new one
    began, 0 where it knew none, None where that was not heard. `death` is the life that the node's last death names, 0 for
    none. Once the new life has begun no death of an earlier one can be declared, so the answer holds.
    """
    if ran is None or ran == life:
        return ""
    if death and death >= ran:
        return f"life {ran} of this node has been declared dead, and what ran under it may run elsewhere"
    if previous != ran:
        known = "it was not heard which" if previous is None else f"it knew life {previous}" if previous else "it knew none"
        return f"the soup no longer knew life {ran} of this node ({known}): what ran under it may run elsewhere"
    return ""


def _silence_allowed(timings: Timings, daemon: DaemonView) -> float:
    starting = daemon.beat is None or daemon.announced
    return timings.restart_silence_s if starting else timings.daemon_silence_s


def _may_thaw(state: FenceState, timings: Timings, view: View) -> str:
    if view.others == frozenset():
        return "this soup has no other node"
    lease, frozen_s = view.lease, state.frozen_s
    if not lease.life or lease.sent_s is None or lease.looked_s is None or frozen_s is None:
        return ""
    if min(lease.sent_s, lease.looked_s) <= frozen_s or view.now >= lease.sent_s + timings.deadline_s:
        return ""
    return f"the engine has renewed life {lease.life}"


def _why_frozen(timings: Timings, view: View) -> str:
    lease = view.lease
    if not lease.life:
        return "the node has lost its lease, and has not got another in time"
    cause = lease.trouble or "the renewal was not acknowledged in time"
    without = "" if view.round_s is None else ", and not every other node says that it has no engine either"
    return f"the lease could not be renewed for {timings.deadline_s:g} s{without} ({cause.rstrip('.')})"

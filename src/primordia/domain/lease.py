"""Holding one key of the engine under a lease, as a pure state machine: it takes `now` and says what to do next.

Two parts hold keys so: the supervisor its node's, the controllers' leader its office. The key's create revision names one
life of the holder, so a transaction that compares it is refused once that life is over, whatever the holder believes.

All times are seconds on CLOCK_BOOTTIME, which counts suspend; no wall clock decides anything. The lease counts from the
moment *before* the last acknowledged request was sent, because the engine's own count begins later than that. Nothing
else extends it.

Invariant: whoever acts as the holder only while `holds` is true stops before the engine can give the key to another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from primordia.domain.timings import Timings

LEASES = "/primordia/leases/"
LIVES = "/primordia/lives/"
DEATHS = "/primordia/deaths/"


def lease_key(node: str) -> str:
    """The key that a node holds while it lives."""
    return LEASES + node


def life_key(node: str) -> str:
    """Outlives the lease: its mod revision is the create revision of the last lease key, the node's life."""
    return LIVES + node


def death_key(node: str) -> str:
    """The record that a life of the node is over for good."""
    return DEATHS + node


# ---------------------------------------------------------------- what to do


@dataclass(frozen=True)
class Look:
    """Read the key."""


@dataclass(frozen=True)
class Grant:
    """Ask for a new lease of `ttl_s` seconds."""

    ttl_s: int


@dataclass(frozen=True)
class Claim:
    """Put the key under the lease if nobody has it, else read it; one transaction."""

    lease: int


@dataclass(frozen=True)
class Renew:
    """Keep the lease alive."""

    lease: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until`."""

    until: float


Action = Look | Grant | Claim | Renew | Wait


# ---------------------------------------------------------------- what came of it


@dataclass(frozen=True)
class Free:
    """The key is not there."""


@dataclass(frozen=True)
class Mine:
    """The key is there and ours, under `lease`: just claimed, or found."""

    lease: int
    create_revision: int


@dataclass(frozen=True)
class Taken:
    """The key is there and another's; `holder` names it for people."""

    holder: str


@dataclass(frozen=True)
class Granted:
    lease: int


@dataclass(frozen=True)
class Renewed:
    """The lease was kept alive."""


@dataclass(frozen=True)
class Gone:
    """The engine does not know the lease."""


@dataclass(frozen=True)
class Failed:
    """No answer, or none that can be used: it may have been done or not. `why` is a sentence."""

    why: str


Outcome = Free | Mine | Taken | Granted | Renewed | Gone | Failed


# ---------------------------------------------------------------- the machine

_FIRST_RETRY_S = 0.05


@dataclass(frozen=True)
class LeaseState:
    """What the holder knows. `create_revision` 0 is no key; `acked_s` is None before the first acknowledgement."""

    lease: int = 0
    create_revision: int = 0
    acked_s: float | None = None
    looked_s: float | None = None
    next_s: float = 0.0
    free: bool = False
    failures: int = 0
    taken_by: str = ""
    trouble: str = ""


def decide(state: LeaseState, timings: Timings, now: float) -> Action:
    """The next action."""
    if now < state.next_s:
        return Wait(state.next_s)
    if state.create_revision:
        due = state.looked_s is None or now - state.looked_s >= timings.check_every_s
        return Look() if due else Renew(state.lease)
    if state.lease:
        return Claim(state.lease)
    return Grant(timings.ttl_s) if state.free else Look()


def after(state: LeaseState, timings: Timings, outcome: Outcome, sent: float, now: float) -> LeaseState:
    """The state after an action that was begun at `sent` and ended with `outcome` at `now`."""
    if isinstance(outcome, Failed):
        pause = min(timings.request_timeout_s, _FIRST_RETRY_S * 2.0 ** min(state.failures, 10))
        return replace(state, next_s=max(now, sent + pause), failures=state.failures + 1, trouble=outcome.why)
    if isinstance(outcome, Taken):
        return LeaseState(next_s=now + timings.refused_every_s, taken_by=outcome.holder)
    if isinstance(outcome, Free):
        return LeaseState(free=True)
    if isinstance(outcome, Gone):
        return LeaseState()
    calm = replace(state, failures=0, trouble="", taken_by="", free=False)
    if isinstance(outcome, Granted):
        return replace(calm, lease=outcome.lease, acked_s=sent)
    if isinstance(outcome, Renewed):
        return replace(calm, acked_s=sent, next_s=sent + timings.renew_every_s)
    # Ours. Under another lease than we thought, nothing is known of when it was renewed last.
    acked_s = state.acked_s if outcome.lease == state.lease else None
    return replace(calm, lease=outcome.lease, create_revision=outcome.create_revision, acked_s=acked_s, looked_s=sent)


def deadline(state: LeaseState, timings: Timings) -> float | None:
    """When the lease becomes doubtful, if nothing renews it; None while there is no key or no acknowledgement."""
    if not state.create_revision or state.acked_s is None:
        return None
    return state.acked_s + timings.deadline_s


def holds(state: LeaseState, timings: Timings, now: float) -> bool:
    """Whether the key is certainly held."""
    end = deadline(state, timings)
    return end is not None and now < end

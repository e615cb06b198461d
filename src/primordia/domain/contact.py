"""How long a node has had the engine without a break: what its word to other nodes, and its word about them, rest on.

A node that cannot renew its lease goes on while every other node says that it has no engine (`domain/fence.py`). An engine
that is slow rather than gone could give everybody cause to say so, and yet let somebody declare that very node dead. So the
two are tied together: a node *has* the engine for `contact_s` after the moment before its last acknowledged request was
sent, and the leader declares nobody dead unless its own node has had it, without a break, for a deadline and the drift of
clocks. Whoever asked that node meanwhile was told so, and has stood for a moment by then.

Seconds on CLOCK_BOOTTIME. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from primordia.domain.timings import Timings


@dataclass(frozen=True, slots=True)
class Contact:
    """The node has the engine until `until_s`, and has had it without a break since `since_s`."""

    since_s: float
    until_s: float


def heard(contact: Contact | None, timings: Timings, sent_s: float, now: float) -> Contact:
    """After an answer, heard `now`, to what was sent at `sent_s`."""
    since_s = contact.since_s if contact is not None and now < contact.until_s else now
    return Contact(since_s, sent_s + timings.contact_s)


def has_engine(contact: Contact | None, now: float) -> bool:
    """What the node says to others who have none."""
    return contact is not None and now < contact.until_s


def why_unsure(contact: Contact | None, timings: Timings, now: float) -> str:
    """Why nobody may be declared dead from this node now, as a clause; empty when that may be done."""
    if contact is None or not has_engine(contact, now):
        return "this node has not heard from the engine just now"
    missing_s = contact.since_s + timings.deadline_s + timings.drift_s - now
    return f"this node has had the engine for a moment only, and waits {missing_s:.1f} s more" if missing_s > 0 else ""


def fit_to_lead(contact: Contact | None, timings: Timings, now: float) -> bool:
    """Whether a node may hold the leadership: not one that could declare nobody dead, for its supervisor hangs. One whose
    supervisor has not said anything yet may."""
    return contact is None or now < contact.until_s + timings.ttl_s

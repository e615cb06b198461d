"""Whether a node that is not seen is dead: a pure decision from what one controller saw of the nodes' leases.

A node that lost its lease stops writing by its own clock. It may be declared dead only once that moment has certainly passed,
and that is known in three ways: the node itself has proved it; its lease was watched running out, which takes longer than
the node waits; or so much time has passed here since the key was seen to go. A lease that was ended early, by an
operator's hand, looks like the last of these: nothing is taken for run out that was not seen close to its end.

Invariant: whoever is called Dead here has passed its deadline, whatever its link, its daemon or its engine do.

Where much goes at once, on several racks, it is more likely that we cannot see than that all of them are dead: then nothing is
declared, and a person is told. All times are seconds on the CLOCK_BOOTTIME of who looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from primordia.domain.timings import Timings

_EARLY_S = 1.0
_SLACK_S = 0.25
"""So much earlier than a reading promised a lease may be seen to go, and have run out: clocks are read one after another."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen of one node. `life` is its last, 0 where none is known.

    `since_s` is when the key was first seen as it is: there (`present`) or not; `from_start` says that it was never seen there,
    so that nothing is known of how it went. `left_s` is the last reading of what its lease had left, taken at `read_s`;
    only readings above zero count, for zero is also the answer for a lease that is gone.
    `ending` is a lease of which nothing was left at the last reading, and that is still there.
    `death` names who has recorded the end of this life: `node`, `controllers` or nobody (empty). `left` is one that was taken
    out of the soup, and whose lifeforms stayed behind: it has no life that could be known.
    """

    node: str
    rack: str = ""
    life: int = 0
    present: bool = True
    since_s: float = 0.0
    from_start: bool = False
    left_s: float | None = None
    read_s: float = 0.0
    death: str = ""
    maintenance: bool = False
    left: bool = False
    ending: bool = False


@dataclass(frozen=True, slots=True)
class Dead:
    """It may be declared dead, for this reason (a sentence)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet, or not by itself (`until_s` None)."""

    until_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Too much went at once: a person has to say so."""

    reason: str


Verdict = Dead | Wait | Hold


def judge(watched: Sequence[Watched], timings: Timings, now: float, *, override: bool = False) -> dict[str, Verdict]:
    """What is to be said of each node that is away and not yet dead. `override` lifts the hold."""
    away = [each for each in watched if not each.present and not each.death and (each.life or each.left)]
    found: dict[str, Verdict] = {}
    for node in away:
        verdict = _alone(node, len(watched), timings, now)
        if isinstance(verdict, Dead) and not override and not node.left:
            verdict = _hold(node, watched, timings, now) or verdict
        found[node.node] = verdict
    return found


def next_reading_s(left_s: float | None, timings: Timings) -> float:
    """How long after a reading the next one is due, so that none runs out without having been seen close to its end.

    A lease that was just renewed is left alone for half of its time: asking costs the engine. From then on it is asked about
    often, for the one reading that counts has a window of a second, which a machine that is busy would miss.
    """
    if left_s is None or left_s <= timings.takeover_ttl_s:
        return _SLACK_S
    return max(_SLACK_S, left_s - timings.takeover_ttl_s - _EARLY_S)


def last_sign_s(node: Watched, timings: Timings) -> float:
    """The latest moment at which the node can have written. Of a lease that was not seen running out only this is certain: its
    holder may have renewed it until the key went, and has written until its deadline after that."""
    if node.death == "node":
        return node.since_s  # whatever it ran had ended before it took its key away
    renewed_s = node.since_s
    if node.left_s is not None and _ran_out(node, timings):
        # The engine rounds down what is left, so the renewal may have been up to a second later than it seems.
        renewed_s = node.read_s - (timings.ttl_s - min(timings.ttl_s, node.left_s + 1))
    return renewed_s + timings.deadline_s + timings.drift_s


# ---------------------------------------------------------------- one node


def _alone(node: Watched, total: int, timings: Timings, now: float) -> Verdict:
    if total < 2:
        return Wait(None, "It is the only node: there is nobody to fail over to.")
    if node.maintenance:
        return Wait(None, "It is in maintenance, and is not declared dead.")
    if node.left:
        return _by(node.since_s + timings.absent_grace_s, now, "It has left the soup, and what it ran stayed behind")
    if node.from_start:
        return _by(node.since_s + timings.absent_grace_s, now, "It has been away since this leader began to look")
    if _ran_out(node, timings):
        return Dead(f"Its lease ran out: {node.left_s:g} s were left of it when it was last read, and it was not renewed.")
    deadline = node.since_s + timings.deadline_s + timings.drift_s
    return _by(deadline, now, f"Its lease has ended{_last_heard(node)}, and its deadline has passed since then")


def _last_heard(node: Watched) -> str:
    if node.left_s is None:
        return ", of which nothing had been read"
    return f", {node.since_s - node.read_s:.1f} s after {node.left_s:g} s were left of it"


def _ran_out(node: Watched, timings: Timings) -> bool:
    """Whether the lease was seen so close to its end, and went no earlier than it had to, that it was not renewed."""
    left, gone_s = node.left_s, node.since_s
    if left is None or not 0 < left <= timings.takeover_ttl_s:
        return False
    return node.read_s + left - _SLACK_S <= gone_s <= node.read_s + timings.ttl_s


def _by(until_s: float, now: float, words: str) -> Verdict:
    return Dead(f"{words}.") if now >= until_s else Wait(until_s, f"{words}; it is given {until_s - now:.0f} s more.")


# ---------------------------------------------------------------- many at once


def _hold(node: Watched, watched: Sequence[Watched], timings: Timings, now: float) -> Hold | None:
    """What speaks against declaring anybody: those that went, or are going, about when this node did."""
    together = [each for each in watched if _goes_with(each, node, timings, now)]
    racks = {each.rack or f"of {each.node}" for each in together}
    if len(racks) < 2 or len(together) <= timings.hold_share * len(watched):
        return None
    return Hold(
        f"{len(together)} of {len(watched)} nodes, on {len(racks)} racks, went within {timings.ttl_s} s without a proof: it is "
        "more likely that they are not seen than that they are dead, so nothing is failed over. "
        "If they are off, say so: `primordia failover --all`."
    )


def _goes_with(other: Watched, node: Watched, timings: Timings, now: float) -> bool:
    if other.node == node.node:
        return True
    if other.maintenance or other.left or other.death == "node":
        return False
    if not other.present:
        return abs(other.since_s - node.since_s) <= timings.ttl_s
    # It holds its lease and has not renewed it for several periods: it is going.
    if other.ending:
        return True
    fresh = now - other.read_s <= timings.ttl_s / 2
    return other.left_s is not None and fresh and other.left_s <= timings.ttl_s - timings.deadline_s

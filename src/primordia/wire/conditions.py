"""Verdicts into conditions: the time of the last transition moves only when the status does."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import msgspec

from primordia.domain.conditions import Verdict
from primordia.wire.meta import Condition
from primordia.wire.resources import Node

RECOVERED = "Recovered"
"""A Lifeform's condition: True once it was started elsewhere because its node had died, False while it waits for that."""
FAILOVER_HELD = "FailoverHeld"
"""Why a Node is Unknown: its death is not declared, for too much went at once."""
NODE_DEAD = "NodeDead"
"""Why a Node is not Ready, or a box has Failed: the node's life is over for good."""


def merge(before: tuple[Condition, ...], verdicts: Iterable[Verdict], now: str, generation: int = 0) -> tuple[Condition, ...]:
    """The conditions after these verdicts, in the verdicts' order; a type without a verdict is dropped.

    `now` is RFC 3339; `generation` is the spec's that was judged.
    """
    known = {condition.type: condition for condition in before}
    return tuple(_merge_one(known.get(verdict.type), verdict, now, generation) for verdict in verdicts)


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of that type."""
    return next((condition for condition in conditions if condition.type == kind), None)


def holds(conditions: Iterable[Condition], kind: str) -> bool:
    """Whether the condition is there and True."""
    found = find(conditions, kind)
    return found is not None and found.status == "True"


def is_silent(conditions: Iterable[Condition]) -> bool:
    """Whether these, a Node's, say that nothing is heard of it, because its lease has ended: it may be dead, or not."""
    found = find(conditions, "Ready")
    return found is not None and (found.status == "Unknown" or found.reason == NODE_DEAD)


def is_dead(conditions: Iterable[Condition]) -> bool:
    """Whether these, a Node's, say that its last life is over for good."""
    found = find(conditions, "Ready")
    return found is not None and found.reason == NODE_DEAD


def dead_since(conditions: Iterable[Condition]) -> float | None:
    """When these, a Node's, began to say that its last life is over, in seconds; None while they do not."""
    found = find(conditions, "Ready")
    if found is None or found.reason != NODE_DEAD:
        return None
    try:
        return datetime.datetime.fromisoformat(found.last_transition_time).timestamp()
    except ValueError:
        return None


def in_maintenance(node: Node, now: datetime.datetime) -> bool:
    """Whether somebody works on the node now: its silence is then no death."""
    maintenance = node.spec.maintenance
    if maintenance is None:
        return False
    try:
        return not maintenance.until or now < datetime.datetime.fromisoformat(maintenance.until)
    except (ValueError, TypeError):  # which validation lets not in: the careful side
        return True


def _merge_one(before: Condition | None, verdict: Verdict, now: str, generation: int) -> Condition:
    moved = before is None or before.status != verdict.status
    fresh = Condition(
        type=verdict.type,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message,
        last_transition_time=now,
        observed_generation=generation,
    )
    if moved or before is None:
        return fresh
    return msgspec.structs.replace(fresh, last_transition_time=before.last_transition_time)

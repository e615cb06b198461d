"""Which snapshots of a volume may go. Pure.

Kept are: the last so many; the newest of each of the last hours and days that have one (the rule of `restic forget`,
restic.readthedocs.io/en/stable/060_forget.html); every checkpoint; the newest of all; and whatever others rely on: the
newest in common with any replica, and what is counted for the last sync. Those the caller names, and nothing overrules them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from primordia.domain.snapshots import Manifest

_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S


@dataclass(frozen=True)
class Retention:
    """How many are kept. `last` is at least 1 in effect: the newest is never dropped."""

    last: int = 10
    hourly: int = 24
    daily: int = 7


def newest_common(owner: Sequence[Manifest], replicas: Iterable[Collection[str]]) -> frozenset[int]:
    """For each replica (the roots it holds), the owner's newest snapshot that it holds too: none of them may go."""
    common: set[int] = set()
    for roots in replicas:
        held = [each.number for each in owner if each.root in roots]
        if held:
            common.add(max(held))
    return frozenset(common)


def to_drop(snapshots: Sequence[Manifest], policy: Retention, needed: Collection[int] = ()) -> tuple[int, ...]:
    """The numbers that may be deleted, oldest first. `needed` (see `newest_common`) stay whatever the policy says."""
    ordered = sorted(snapshots, key=lambda each: each.number, reverse=True)
    kept = {each.number for each in ordered[: max(1, policy.last)]} | set(needed)
    kept |= {each.number for each in ordered if each.checkpoint}
    kept |= _newest_of_each(ordered, _HOUR_S, policy.hourly) | _newest_of_each(ordered, _DAY_S, policy.daily)
    return tuple(each.number for each in reversed(ordered) if each.number not in kept)


def _newest_of_each(newest_first: Sequence[Manifest], period_s: int, count: int) -> set[int]:
    found: dict[int, int] = {}
    for each in newest_first:
        found.setdefault(int(each.time_s // period_s), each.number)
    return {found[period] for period in sorted(found, reverse=True)[:count]}

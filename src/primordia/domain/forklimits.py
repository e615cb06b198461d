"""Whether a node takes more forks: pure.

A fork costs little when it is made and may come to cost all its memory, page by page, long after anybody could still say
no. So it is charged for what it may come to use, and what cannot be paid is refused while that is only a sentence: before
the host swaps. One that waits, paused, runs nothing and is charged a part; it is also the first to go.

The limit for each root (a lifeform, or a box, with all that was forked from it) keeps a fork bomb in one from taking what
another needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from primordia.domain.placement import VMM_OVERHEAD_BYTES
from primordia.kit.units import human_bytes

PAUSED_PERCENT = 30
"""Charge of a fork that waits, in percent of a running one's."""


@dataclass(frozen=True)
class Limits:
    """Of one node. `memory_bytes` is what contexts may be charged for together."""

    most: int
    most_of_root: int
    deepest: int
    memory_bytes: int


@dataclass(frozen=True)
class Use:
    """What there is: forks in all, those of the root in question, and the memory charged for everything that runs."""

    forks: int
    of_root: int
    charged_bytes: int


@dataclass(frozen=True)
class Ask:
    """`count` forks at this depth, each with so much guest memory."""

    count: int
    depth: int
    memory_bytes: int


@dataclass(frozen=True)
class Refusal:
    """Why not, and what would help."""

    reason: str
    message: str
    remedy: str


def charge_bytes(memory_bytes: int, *, paused: bool = False) -> int:
    """What a microVM with so much guest memory is charged."""
    whole = memory_bytes + VMM_OVERHEAD_BYTES
    return whole * PAUSED_PERCENT // 100 if paused else whole


def refusal_of(ask: Ask, use: Use, limits: Limits) -> Refusal | None:
    """Why the node does not take them; None when it does."""
    if ask.depth > limits.deepest:
        return Refusal(
            "ForkTooDeep",
            f"A fork of it would be the {ask.depth}th generation, and this node makes {limits.deepest}.",
            "Fork an earlier one.",
        )
    if use.of_root + ask.count > limits.most_of_root:
        return Refusal(
            "TooManyForks",
            f"It has {use.of_root} forks with their descendants; {ask.count} more would be above the limit of "
            f"{limits.most_of_root} for one lifeform or box.",
            "End some of them first.",
        )
    if use.forks + ask.count > limits.most:
        return Refusal(
            "TooManyForks",
            f"The node has {use.forks} forks; {ask.count} more would be above its limit of {limits.most}.",
            "End some of them first, or use another node.",
        )
    wanted = ask.count * charge_bytes(ask.memory_bytes)
    left = max(0, limits.memory_bytes - use.charged_bytes)
    if wanted > left:
        return Refusal(
            "InsufficientMemory",
            f"{ask.count} forks may come to use {human_bytes(wanted)}, and {human_bytes(left)} of the node's "
            f"{human_bytes(limits.memory_bytes)} are not promised.",
            "End something on this node, fork fewer, or give the template less memory.",
        )
    return None

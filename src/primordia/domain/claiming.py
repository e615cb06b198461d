"""Which node is asked for a box first: a pure decision over what the nodes' and the template's status say.

Both may be a moment old, so this is an order and no verdict: the node itself decides whether it has room, and the next
one is asked when it has not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """A node as a claim sees it. `warm` counts the forks of the template that wait there and nobody is about to take.

    `takes`: it is Ready, and not cordoned. `frozen`: it has the template. `free_share` is the part of its memory that is not
    promised, from 0 to 1.
    """

    name: str
    takes: bool
    warm: int = 0
    frozen: bool = False
    free_share: float = 0.0


def order(hosts: Iterable[Host]) -> tuple[str, ...]:
    """The nodes to ask: first where a fork waits, then where the template is, and of equals the one with most free memory."""
    able = [host for host in hosts if host.takes]
    return tuple(host.name for host in sorted(able, key=_rank))


def _rank(host: Host) -> tuple[bool, bool, float, str]:
    return host.warm <= 0, not host.frozen, -host.free_share, host.name

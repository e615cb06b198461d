"""Which nodes may run the engine's servers: one on each rack, one change at a time, and never fewer than a majority. Pure.

A server that is being added counts for the majority at once, and one that does not answer counts too. So before every
change all that stay must answer: a change made while one is down may be the one that stops the engine.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from primordia.domain.conditions import Verdict
from primordia.kit.errors import AlreadyExistsError, NotFoundError, PermanentError, TemporaryError

LEAST_DISK_BYTES = 96 * 2**20
"""etcd allots its log in pieces of 64 MiB, and its database grows beside it."""


@dataclass(frozen=True)
class Health:
    """What a node sees of its own engine server: it answers, its data was there and is lost, its disk has room."""

    answers: bool
    lost: bool
    has_room: bool


def verdict_of(health: Health, node: str) -> Verdict:
    """The condition EngineServer of a node that has one."""
    kind = "EngineServer"
    if health.lost:
        message = "The data of its engine server is lost. A new one takes its place as soon as the majority agrees."
        return Verdict(kind, "False", "DataLost", message)
    if not health.has_room:
        state = "still answers" if health.answers else "does not run"
        message = f"The disk of its engine server is full, and it {state}. Make room: it goes on by itself."
        return Verdict(kind, "False", "DiskFull", message)
    if health.answers:
        return Verdict(kind, "True", "Answers")
    return Verdict(
        kind,
        "False",
        "NotAnswering",
        f"Its engine server does not answer: see its engine.log. `primordia engine remove {node}` gives it up.",
    )


def nearest_first(urls: Sequence[str], address: str) -> tuple[str, ...]:
    """The servers' URLs in the order in which the node with that address asks them: its own one, if it has one, whose fate is
    its own; else one of them, not the same for all nodes, so that a server's death is felt by few."""
    ordered = sorted(urls)
    begin = next((at for at, url in enumerate(ordered) if f"//{address}:" in url), None)
    if begin is None:
        begin = zlib.crc32(address.encode()) % max(1, len(ordered))
    return (*ordered[begin:], *ordered[:begin])


@dataclass(frozen=True)
class Seat:
    """A node with an engine server, or one that is getting it (`ready` False)."""

    node: str
    rack: str
    ready: bool = True


def check_add(node: str, rack: str, seats: Sequence[Seat], silent: Collection[str]) -> None:
    """Raise unless `node` on `rack` may get a server. `silent` are nodes whose servers do not answer."""
    for seat in seats:
        if seat.node == node:
            state = "has an engine server already" if seat.ready else "is just getting an engine server"
            raise AlreadyExistsError(f"Node {node} {state}.", remedy="See `primordia engine status`.")
        if not seat.ready:
            raise TemporaryError(
                f"Node {seat.node} is just getting an engine server, and changes are made one at a time.",
                remedy=f"Wait, or give it up with `primordia engine remove {seat.node}`.",
                retry_after_s=5.0,
            )
        if seat.rack == rack:
            raise PermanentError(
                f"Nodes {seat.node} and {node} are both on rack {rack}: its loss would take both engine servers.",
                remedy="Choose a node on another rack.",
                reason="SameRack",
            )
    if silent:
        raise _silent(sorted(silent)[0])


def check_remove(node: str, seats: Sequence[Seat], silent: Collection[str]) -> None:
    """Raise unless `node` may lose its server."""
    if node not in {seat.node for seat in seats}:
        raise NotFoundError(f"Node {node} has no engine server.", remedy="See `primordia engine status`.")
    staying = [seat.node for seat in seats if seat.node != node and seat.ready]
    if not staying:
        raise PermanentError(
            f"Node {node} has the engine's only server: with it all state would go.", remedy="Add another one first."
        )
    answering = [name for name in staying if name not in silent]
    if 2 * len(answering) <= len(staying):
        raise _silent(next(name for name in staying if name in silent))


def _silent(node: str) -> TemporaryError:
    return TemporaryError(
        f"The engine server on node {node} does not answer, so that another change might stop the engine.",
        remedy=f"Bring that node back, or remove its server first: `primordia engine remove {node}`.",
        retry_after_s=5.0,
    )

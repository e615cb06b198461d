"""What `describe` tells of moves, and of nodes that are being emptied or worked on."""

from __future__ import annotations

from primordia.cli.describe_forks import Lines
from primordia.wire.resources import LifeformStatus, Node


def move_lines(status: LifeformStatus) -> Lines:
    """The move that is under way or was given up, and the last that was made."""
    lines: Lines = []
    moving, moved = status.moving, status.moved
    if moving is not None and moving.phase == "GivenUp":
        lines.append(("Not moved", moving.message))
    elif moving is not None:
        why = f": {moving.message}" if moving.message else ""
        lines.append(("Moving", f"from {moving.from_node} to {moving.to}, {moving.phase}{why}"))
    if moved is not None:
        way = f"from {moved.from_node} to {moved.to} at {moved.at}, epoch {moved.epoch}"
        lines.append(("Moved", f"{way}: {moved.blackout_seconds:.2f} s of blackout"))
    return lines


def schedulable_words(node: Node) -> str:
    """Whether it takes lifeforms, and what is done to it."""
    words = ["no, cordoned" if node.spec.unschedulable else "yes"]
    if node.spec.evacuating:
        words.append("its copies are to lie elsewhere")
    if node.spec.maintenance is not None:
        until = node.spec.maintenance.until
        words.append(f"in maintenance{f' until {until}' if until else ''}: its silence is no death")
    return "; ".join(words)

"""How a checker counts what is promised. It shares no code with the controllers but the size of a VMM.

A context counts while it is wanted and its program has not ended for good, and for as long as its microVM may still be
there. A lifeform that has a node and no context yet counts with what its manifest asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from primordia.domain.placement import VMM_OVERHEAD_BYTES
from primordia.wire.resources import Context, ContextTemplate, Lifeform, NodeCapacity

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True, order=False)
class Sum:
    """CPU in thousandths of a core, memory in bytes (VMMs included), and a count of contexts."""

    cpu: int = 0
    memory: int = 0
    contexts: int = 0

    def plus(self, other: Sum) -> Sum:
        return Sum(self.cpu + other.cpu, self.memory + other.memory, self.contexts + other.contexts)

    def minus(self, other: Sum) -> Sum:
        return Sum(self.cpu - other.cpu, self.memory - other.memory, self.contexts - other.contexts)

    def exceeds(self, room: Sum) -> str:
        """The first of its parts that is more than the room's, in words; empty when all fit."""
        for name, mine, theirs in (
            ("memory", self.memory, room.memory),
            ("cpu", self.cpu, room.cpu),
            ("contexts", self.contexts, room.contexts),
        ):
            if mine > theirs:
                return f"{name} {mine} of {theirs}"
        return ""


def total(parts: Iterable[Sum]) -> Sum:
    """All of them together."""
    result = Sum()
    for part in parts:
        result = result.plus(part)
    return result


def of_template(template: ContextTemplate) -> Sum:
    """One running context. Raises ValueError for a quantity that is none."""
    resources = template.resources
    return Sum(_milli(resources.cpu), _bytes(resources.memory) + VMM_OVERHEAD_BYTES, 1)


def of_capacity(room: NodeCapacity) -> Sum:
    """What a node offers."""
    return Sum(_milli(room.cpu), _bytes(room.memory), room.contexts)


def wanted(lifeform: Lifeform) -> Sum | None:
    """What the manifest asks for; None when it cannot be read."""
    if lifeform.spec.operating_mode == "Suspended":
        return Sum()
    try:
        return total(of_template(template) for template in lifeform.spec.contexts)
    except ValueError:
        return None


def held(contexts: Iterable[Context]) -> Sum:
    """What these contexts hold."""
    return total(of_template(context.spec.template) for context in contexts if holds(context))


def holds(context: Context) -> bool:
    """Whether its share is still its own."""
    phase = context.status.phase
    if phase in ("Succeeded", "Failed"):
        return context.spec.wanted == "Running" and (context.spec.restart_policy == "Always" or not is_told(context))
    if phase in ("Stopped", "Pending"):
        return context.spec.wanted == "Running" and context.metadata.deletion_timestamp is None
    return True


def is_told(context: Context) -> bool:
    """Whether its status is about its present spec."""
    return context.status.observed_generation == context.metadata.generation


def _milli(text: str) -> int:
    return _number(text[:-1], 1) if text.endswith("m") else _number(text, 1000)


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-2:])
    return _number(text, 1) if unit is None else _number(text[:-2], unit)


def _number(text: str, factor: int) -> int:
    if not text.replace(".", "", 1).isdigit():
        raise ValueError(f"{text!r} is no number")
    return int(Decimal(text) * factor)

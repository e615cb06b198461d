"""Between quantities as they cross the API and the numbers that placement counts with."""

from __future__ import annotations

import functools

from primordia.domain.placement import Demand, one_context
from primordia.kit.units import parse_bytes, parse_milli_cpu
from primordia.wire.resources import ContextTemplate, NodeCapacity

_MI = 2**20


def demand_of(template: ContextTemplate) -> Demand:
    """What one context needs. Raises ValueError with a sentence for a bad quantity."""
    return _demand(template.resources.cpu, template.resources.memory)


@functools.lru_cache(maxsize=4096)
def _demand(cpu: str, memory: str) -> Demand:
    """Remembered, because a soup has many contexts of few sizes and the controllers ask for them all the time."""
    return one_context(parse_milli_cpu(cpu), parse_bytes(memory))


def demand_of_capacity(capacity: NodeCapacity) -> Demand:
    """A node's capacity in numbers. Raises ValueError."""
    return Demand(parse_milli_cpu(capacity.cpu), parse_bytes(capacity.memory), capacity.contexts)


def capacity_of(demand: Demand, disk_bytes: int = 0) -> NodeCapacity:
    """Numbers as a capacity, memory and disk in whole MiB (rounded down)."""
    return NodeCapacity(
        cpu=f"{demand.cpu_milli}m" if demand.cpu_milli % 1000 else str(demand.cpu_milli // 1000),
        memory=f"{demand.memory_bytes // _MI}Mi",
        disk=f"{disk_bytes // _MI}Mi",
        contexts=demand.contexts,
    )

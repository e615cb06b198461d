"""Nodes and lifeforms for a world, in a few words."""

from __future__ import annotations

from typing import Any

from primordia.kit.units import parse_bytes
from primordia.wire.meta import LABEL_NODE, LABEL_RACK, LABEL_SEGMENT, Condition, ObjectMeta
from primordia.wire.resources import (
    ContextTemplate,
    Lifeform,
    LifeformSpec,
    Node,
    NodeCapacity,
    NodeStatus,
    Resources,
)
from primordia.wire.volumes import Data, PoolSummary


def make_node(
    name: str,
    *,
    cpu: str = "8",
    memory: str = "8Gi",
    contexts: int = 100,
    rack: str = "",
    segment: str = "east",
    pool: str = "",
    **labels: str,
) -> Node:
    """A ready Node; without `rack`, on one of its own; with an empty `pool` of that size, or none."""
    room = NodeCapacity(cpu=cpu, memory=memory, contexts=contexts)
    topology = {LABEL_NODE: name, LABEL_RACK: rack or f"rack-{name}", LABEL_SEGMENT: segment}
    return Node(
        metadata=ObjectMeta(name=name, labels={**topology, **labels}),
        status=NodeStatus(
            capacity=room,
            allocatable=room,
            conditions=(Condition(type="Ready", status="True"),),
            pool=make_pool(parse_bytes(pool)) if pool else PoolSummary(),
        ),
    )


def make_pool(total_bytes: int, used_bytes: int = 0) -> PoolSummary:
    """A healthy pool; a twentieth of it is its reserve."""
    return PoolSummary(
        total_bytes=total_bytes,
        used_bytes=used_bytes,
        free_bytes=total_bytes - used_bytes,
        reserve_bytes=total_bytes // 20,
    )


def make_lifeform(
    name: str, *contexts: str, memory: str = "128Mi", cpu: str = "1", namespace: str = "default", data: str = "", **spec: Any
) -> Lifeform:
    """A Lifeform whose contexts all run the image `busybox`, each with `data` of that size if it is given; one context,
    named `main`, unless told otherwise."""
    templates = tuple(
        ContextTemplate(
            name=each,
            image="busybox",
            resources=Resources(cpu=cpu, memory=memory),
            data=Data(size=data) if data else None,
        )
        for each in contexts or ("main",)
    )
    return Lifeform(metadata=ObjectMeta(name=name, namespace=namespace), spec=LifeformSpec(contexts=templates, **spec))

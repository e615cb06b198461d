"""Which node a lifeform goes to, and why none does.

A lifeform is placed whole: all its contexts on one node or none at all. Memory is never promised twice; CPU is, as far as
the node allows (its `allocatable` holds the overcommitted figure). Among the nodes that fit, the one that keeps the largest
free share of memory wins, then the name: the same input always gives the same answer.

Nodes are kept in order of their free share (`domain/ranking.py`), so that a choice looks at a few of them and not at all:
the share that a node would keep is never more than the one it has, so whoever comes after a good enough one cannot win.
(This is the threshold idea of R. Fagin, A. Lotem, M. Naor: Optimal aggregation algorithms for middleware, 2001.) Only
where none fits are all of them asked why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from primordia.kit.units import human_bytes

VMM_OVERHEAD_BYTES = 48 * 2**20


@dataclass(frozen=True, slots=True)
class Demand:
    """What contexts need together, or what a node has. `memory_bytes` includes the VMM's own."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    contexts: int = 0

    def __add__(self, other: Demand) -> Demand:
        return Demand(self.cpu_milli + other.cpu_milli, self.memory_bytes + other.memory_bytes, self.contexts + other.contexts)

    def __sub__(self, other: Demand) -> Demand:
        return Demand(self.cpu_milli - other.cpu_milli, self.memory_bytes - other.memory_bytes, self.contexts - other.contexts)

    def __or__(self, other: Demand) -> Demand:
        """The larger of each part: what has room for either."""
        return Demand(
            max(self.cpu_milli, other.cpu_milli),
            max(self.memory_bytes, other.memory_bytes),
            max(self.contexts, other.contexts),
        )

    def __and__(self, other: Demand) -> Demand:
        """The smaller of each part: what both cover."""
        return Demand(
            min(self.cpu_milli, other.cpu_milli),
            min(self.memory_bytes, other.memory_bytes),
            min(self.contexts, other.contexts),
        )


def one_context(cpu_milli: int, memory_bytes: int) -> Demand:
    """The demand of one context: its guest's memory and what the VMM adds to it."""
    return Demand(cpu_milli, memory_bytes + VMM_OVERHEAD_BYTES, 1)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as placement sees it; `used` does not count the lifeform in question. `disk_free_bytes` is the room of its pool,
    None without one. Disks are thin, so room is not promised: it is what is free now."""

    name: str
    labels: Mapping[str, str]
    ready: bool
    unschedulable: bool
    allocatable: Demand
    used: Demand = Demand()
    disk_free_bytes: int | None = None

    @property
    def free(self) -> Demand:
        return self.allocatable - self.used

    @property
    def takes_new(self) -> bool:
        """Whether it takes lifeforms at all."""
        return self.ready and not self.unschedulable


@dataclass(frozen=True, slots=True)
class Request:
    """`beside` names the nodes that `colocateWith` leaves; None when it is not asked for. `data_on` is the one node where its
    data is, empty when it has none yet; `disk_bytes` are the volumes that are to be made (None: none is). `apart` is the node
    that it is to leave, `among` those that hold copies of its data, where one of them is wanted."""

    demand: Demand
    node_selector: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] | None = None
    data_on: str = ""
    disk_bytes: int | None = None
    apart: str = ""
    among: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """`node` is empty when nothing fits; `message` says why here, or why nowhere."""

    node: str
    message: str


@dataclass(frozen=True, slots=True)
class Shortage:
    """What a node has too little of."""

    what: Literal["memory", "cpu", "contexts", "disk"]
    wants: int
    free: int

    def words(self, most: str = "has") -> str:
        """As the tail of a sentence."""
        if self.what == "memory":
            return f"has not enough memory (wants {_short(self.wants)}, {most} {_short(self.free)} free)"
        if self.what == "disk":
            return f"has not enough room in the pool (wants {_short(self.wants)}, {most} {_short(self.free)} free)"
        if self.what == "cpu":
            return f"has not enough cpu (wants {_cores(self.wants)}, {most} {_cores(self.free)} free)"
        return f"has no room for more contexts (wants {self.wants}, {most} {max(0, self.free)} free)"


class Ranked(Protocol):
    """All nodes of a soup, kept in an order."""

    most_memory: int
    """No node that takes lifeforms has more memory to promise."""

    def candidates(self, request: Request) -> Iterable[NodeView]:
        """Every node that may fit (others may be among them), in descending order of `free_share`, then by name."""

    def all(self) -> Iterable[NodeView]:
        """Every node."""


def place(request: Request, nodes: Ranked) -> Placement:
    """Choose a node."""
    best: NodeView | None = None
    best_share = 0.0
    passed: list[str | Shortage] = []
    taken = request.demand.memory_bytes / nodes.most_memory if nodes.most_memory else 0.0
    for node in nodes.candidates(request):
        if best is not None and free_share(node) - taken <= best_share:
            break
        refusal = refusal_of(request, node)
        if refusal is not None:
            passed.append(refusal)
            continue
        share = free_share(node, request.demand.memory_bytes)
        if best is None or share > best_share:
            best, best_share = node, share
    if best is None:
        return Placement("", _explain(request, nodes.all()))
    if request.data_on:
        return Placement(best.name, "its data is there.")
    others = f" (passed over: {_reasons(passed)})" if passed else ""
    return Placement(best.name, f"of the nodes that fit, it keeps the most memory free, {max(0.0, best_share):.0%}{others}.")


def free_share(node: NodeView, less_bytes: int = 0) -> float:
    """The part of the node's memory that is not promised, when so much more is."""
    if node.allocatable.memory_bytes <= 0:
        return 0.0
    return (node.allocatable.memory_bytes - node.used.memory_bytes - less_bytes) / node.allocatable.memory_bytes


def refusal_of(request: Request, node: NodeView) -> str | Shortage | None:
    """Why this node cannot take the lifeform, as the tail of a sentence or as what it lacks; None when it can."""
    if request.data_on and node.name != request.data_on:
        return f"does not have its data, which is on {request.data_on}"
    if node.name == request.apart:
        return "is where it is now"
    if request.among is not None and node.name not in request.among:
        return "does not hold all copies of its data"
    if not node.ready:
        return "is not ready"
    if node.unschedulable:
        return "is cordoned"
    for key, value in request.node_selector.items():
        if node.labels.get(key) != value:
            return f"does not match nodeSelector {key}={value}"
    if request.beside is not None and node.name not in request.beside:
        return "runs no lifeform that colocateWith asks for"
    return disk_refusal(request.disk_bytes, node) or shortage_of(request.demand, node.free)


def disk_refusal(disk_bytes: int | None, node: NodeView) -> str | Shortage | None:
    """Why the node's pool cannot take so many bytes of new volumes; None when it can, or none are asked for."""
    if disk_bytes is None:
        return None
    if node.disk_free_bytes is None:
        return "has no healthy pool for its data"
    if disk_bytes > node.disk_free_bytes:
        return Shortage("disk", disk_bytes, node.disk_free_bytes)
    return None


def shortage_of(demand: Demand, free: Demand) -> Shortage | None:
    """What is missing; None when `demand` fits into `free`."""
    if demand.memory_bytes > free.memory_bytes:
        return Shortage("memory", demand.memory_bytes, free.memory_bytes)
    if demand.cpu_milli > free.cpu_milli:
        return Shortage("cpu", demand.cpu_milli, free.cpu_milli)
    if demand.contexts > free.contexts:
        return Shortage("contexts", demand.contexts, free.contexts)
    return None


def _explain(request: Request, nodes: Iterable[NodeView]) -> str:
    refusals = [refusal_of(request, node) for node in nodes]
    if not refusals:
        return "There are no nodes."
    return f"0/{len(refusals)} nodes fit: {_reasons(each for each in refusals if each is not None)}."


def _reasons(refusals: Iterable[str | Shortage]) -> str:
    """How many nodes refused for which reason. Of those that lack the same thing, the one that lacks least is told."""
    counts: Counter[str] = Counter()
    shortages: dict[str, list[Shortage]] = {}
    for refusal in refusals:
        if isinstance(refusal, Shortage):
            shortages.setdefault(refusal.what, []).append(refusal)
        else:
            counts[refusal] += 1
    for group in shortages.values():
        nearest = max(group, key=lambda each: each.free)
        same = all(each.free == nearest.free for each in group)
        counts[nearest.words("has" if same else "at most")] = len(group)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason if count == 1 else _plural(reason)}" for reason, count in ordered)


_PLURALS = {"is": "are", "has": "have", "does": "do", "runs": "run"}


def _plural(reason: str) -> str:
    """The tail of a sentence about one node, for several."""
    verb, _, rest = reason.partition(" ")
    return f"{_PLURALS.get(verb, verb)} {rest}"


def _short(count: int) -> str:
    """A size as quantities are written: `64Gi`, `3.2Gi`, `120Mi`."""
    number, unit = human_bytes(max(0, count)).split(" ")
    return number.removesuffix(".0") + unit.removesuffix("B")


def _cores(milli: int) -> str:
    return f"{max(0, milli) / 1000:g}"

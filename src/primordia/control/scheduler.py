"""Placement for real: what the nodes and the ledger say, put before the pure decision.

Invariant: between asking and promising there is no await, so a promise always rests on the sums it was checked against.
And a promise is given up only when the registry has shown that nothing came of it: a cache that is behind proves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from primordia.control.blueprint import held_by, needs_of, total_held
from primordia.control.company import Company
from primordia.control.data import DataNeeds
from primordia.control.ledger import Ledger
from primordia.control.waiting import WaitingRoom
from primordia.domain.moving import Destination
from primordia.domain.placement import (
    Demand,
    NodeView,
    Placement,
    Request,
    Shortage,
    disk_refusal,
    place,
    refusal_of,
    shortage_of,
)
from primordia.domain.ranking import Ranking
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.conditions import holds
from primordia.wire.demand import demand_of_capacity
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Context, Lifeform, Node
from primordia.wire.volumes import PoolSummary

Key = tuple[str, str]
Labels = tuple[tuple[str, str], ...]

BY_LIFEFORM = "lifeform"
_DISK_STEP = 2**20
_NO_DATA = DataNeeds()


@dataclass(frozen=True, slots=True)
class Line:
    """What those in one line of the waiting room want: a node, or more of the one they have (`node`, then `uid` says who).

    `data_on` and `disk_bytes` are as in `placement.Request`.
    """

    demand: Demand
    node_selector: Labels = ()
    namespace: str = ""
    company: Labels | None = None
    node: str = ""
    uid: str = ""
    data_on: str = ""
    disk_bytes: int | None = None


def index_key(context: Context) -> Key | None:
    """The lifeform a context says it belongs to; None for one of no lifeform."""
    return (context.metadata.namespace, context.spec.lifeform) if context.spec.lifeform_uid else None


class Scheduler:
    """Chooses nodes, and wakes (by `wake`) those for whom something may have become free."""

    def __init__(self, informers: Informers, wake: Callable[[Key], None]) -> None:
        self._wake = wake
        self._ranking = Ranking()
        self._company = Company()
        self.waiting: WaitingRoom[Key, Line] = WaitingRoom()
        self.in_flight: set[str] = set()
        """Lifeforms (uids) whose change of node is being written: until that is known, nobody decides anything about them."""
        self.ledger = Ledger(self._on_sum)
        self._lifeforms = informers.of(Lifeform)
        self._contexts = informers.of(Context)
        self._contexts.index(BY_LIFEFORM, index_key)
        self._lifeforms.subscribe(self._on_lifeform)
        self._nodes = informers.of(Node)
        self._nodes.subscribe(self._on_node)

    def close(self) -> None:
        """Leave the caches."""
        self._lifeforms.unsubscribe(self._on_lifeform)
        self._nodes.unsubscribe(self._on_node)

    def choose(self, lifeform: Lifeform, demand: Demand, data: DataNeeds = _NO_DATA) -> Placement:
        """A node for a lifeform that holds nothing, promised to it; or why there is none."""
        line = _line_of(lifeform, demand, data)
        placement = place(self._request(line, lifeform.metadata.uid), self._ranking)
        if placement.node:
            self.ledger.promise(lifeform.metadata.uid, placement.node, demand)
        else:
            self._join(lifeform, line)
        return placement

    def choose_anew(self, lifeform: Lifeform, demand: Demand, disk_bytes: int | None) -> Placement:
        """As `choose`, for one whose node is dead and which leaves nothing there; it does not wait in a line."""
        line = _line_of(lifeform, demand, DataNeeds(disk_bytes=disk_bytes))
        placement = place(self._request(line, lifeform.metadata.uid), self._ranking)
        if placement.node:
            self.ledger.promise(lifeform.metadata.uid, placement.node, demand)
        return placement

    def views(self) -> dict[str, NodeView]:
        """Every node as it is now, by name."""
        return {node.name: node for node in self._ranking.all()}

    def beside(self, lifeform: Lifeform) -> frozenset[str] | None:
        """The nodes that `colocateWith` leaves to it; None when it asks for none."""
        wanted = lifeform.spec.colocate_with
        if wanted is None:
            return None
        return self._company.nodes(lifeform.metadata.namespace, wanted.match_labels, lifeform.metadata.uid)

    def grow(self, lifeform: Lifeform, demand: Demand, kept: Demand) -> Shortage | None:
        """Promise the lifeform more, or less, where it is; or what the node has too little of for `demand`.

        `kept` is what it holds meanwhile. Less is always granted, and so is what is held already: a node that shrank
        evicts nobody.
        """
        uid, node_name = lifeform.metadata.uid, lifeform.status.node
        shortage = self._shortage(uid, node_name, demand)
        if shortage is not None:
            self._join(lifeform, Line(demand, node=node_name, uid=uid))
            return shortage
        self.ledger.promise(uid, node_name, kept)
        return None

    def lacks_disk(self, lifeform: Lifeform, disk_bytes: int | None) -> str:
        """Why new volumes of a placed lifeform have no room there, as the tail of a sentence; empty when they have."""
        node = self._ranking.get(lifeform.status.node)
        refusal = disk_refusal(disk_bytes, node) if node is not None else None
        if refusal is None:
            return ""
        line = Line(Demand(), node=lifeform.status.node, uid=lifeform.metadata.uid, disk_bytes=disk_bytes)
        self._join(lifeform, line)
        return refusal.words() if isinstance(refusal, Shortage) else refusal

    # ------------------------------------------------------------ moves

    def choose_elsewhere(
        self, lifeform: Lifeform, demand: Demand, to: Destination, disk_bytes: int | None, holders: frozenset[str]
    ) -> Placement:
        """A node for a lifeform that is to leave its own, promised to it beside that one; or why there is none.

        One of the `holders`, which have copies of all its data, if any will do: nothing has to be brought there first.
        """
        request = self._request(_line_of(lifeform, demand, _NO_DATA), lifeform.metadata.uid)
        request = dataclasses.replace(request, apart=lifeform.status.node)
        placement = Placement("", "")
        if holders:
            placement = self._towards(dataclasses.replace(request, among=holders), to)
        if not placement.node:
            placement = self._towards(dataclasses.replace(request, disk_bytes=disk_bytes), to)
        if placement.node:
            self.ledger.promise(_second(lifeform.metadata.uid), placement.node, demand)
        return placement

    def lacks_elsewhere(self, lifeform: Lifeform, demand: Demand, node_name: str) -> str:
        """Promise it that node beside its own; or why it is not to be had any more, as the end of a sentence."""
        node = self._ranking.get(node_name)
        if node is None:
            return f"node {node_name} is not in the soup any more"
        if not node.ready:
            return f"node {node_name} is not ready"
        shortage = self._shortage(_second(lifeform.metadata.uid), node_name, demand)
        if shortage is not None:
            return f"node {node_name} {shortage.words()}"
        if not self._is_there(lifeform):
            return "it is no more"  # and nobody would ever give the place back
        self.ledger.promise(_second(lifeform.metadata.uid), node_name, demand)
        return ""

    def _is_there(self, lifeform: Lifeform) -> bool:
        cached = self._lifeforms.get(lifeform.metadata.name, lifeform.metadata.namespace)
        return cached is not None and cached.metadata.uid == lifeform.metadata.uid

    def give_up_for_the_gone(self, lifeform: Lifeform) -> None:
        """After a write that failed: the second place is kept until it is known what came of it, unless nobody will ask."""
        if not self._is_there(lifeform):
            self.stay(lifeform)

    def arrive(self, lifeform: Lifeform, demand: Demand) -> None:
        """The lifeform is where it was to go: what was promised to it there is its own, and its old place is free."""
        self.stay(lifeform)
        self.ledger.promise(lifeform.metadata.uid, lifeform.status.node, demand)

    def stay(self, lifeform: Lifeform) -> None:
        """The lifeform goes nowhere: it needs no second place."""
        self.ledger.withdraw(_second(lifeform.metadata.uid))

    def _towards(self, request: Request, to: Destination) -> Placement:
        if to.kind == "node":
            node = self._ranking.get(to.name)
            if node is None:
                return Placement("", f"There is no node {to.name}.")
            refusal = refusal_of(request, node)
            if refusal is None:
                return Placement(to.name, "it was asked for.")
            return Placement("", f"{to.name} {refusal.words() if isinstance(refusal, Shortage) else refusal}.")
        label = {"rack": LABEL_RACK, "segment": LABEL_SEGMENT}.get(to.kind)
        asked = request.node_selector.get(label, to.name) if label is not None else to.name
        if asked != to.name:
            return Placement("", f"Its nodeSelector asks for {label}={asked}.")
        if label is not None:
            request = dataclasses.replace(request, node_selector={**request.node_selector, label: to.name})
        return place(request, self._ranking)

    def leave(self, key: Key) -> None:
        """The lifeform does not wait for room any more: whoever is behind it may have a try."""
        self._wake_one(self.waiting.leave(key))

    # ------------------------------------------------------------ the ledger, made again

    def recall(self) -> None:
        """Fill the ledger from what was given already, before anything new is.

        What contexts hold is theirs. A manifest alone holds nothing: it may have changed since it was judged.
        """
        given: dict[str, tuple[str, Demand]] = {}
        for context in self._contexts.items():
            if index_key(context) is None:
                continue
            _, before = given.get(context.spec.lifeform_uid, ("", Demand()))
            given[context.spec.lifeform_uid] = (context.spec.node, before + held_by(context))
        # One that was given another node, as its contexts will be, holds it there.
        placed = {each.metadata.uid: each.status.node for each in self._lifeforms.items() if each.status.node}
        for uid, (node, demand) in given.items():
            self.ledger.promise(uid, placed.get(uid, node), demand)
        for lifeform in self._lifeforms.items():
            if lifeform.status.node and lifeform.metadata.uid not in given:
                self._recall_bare(lifeform)
        self._recall_moves()

    def _recall_moves(self) -> None:
        """What is under way holds two places, also where its contexts stand still; and never less than they hold."""
        for lifeform in self._lifeforms.items():
            moving, uid = lifeform.status.moving, lifeform.metadata.uid
            if moving is None or moving.phase == "GivenUp" or lifeform.metadata.deletion_timestamp is not None:
                continue
            try:
                demand = needs_of(lifeform, {})[0]
            except ValueError:
                continue
            kept = demand | self.ledger.held(uid)
            if self._shortage(uid, lifeform.status.node, kept) is None:
                self.ledger.promise(uid, lifeform.status.node, kept)
            if moving.phase != "Starting":
                self.lacks_elsewhere(lifeform, demand, moving.to)

    def _recall_bare(self, lifeform: Lifeform) -> None:
        """A lifeform that has a node and no contexts yet."""
        uid, node = lifeform.metadata.uid, lifeform.status.node
        try:
            demand = needs_of(lifeform, {})[0]
        except ValueError:
            demand = Demand()
        fits = self._shortage(uid, node, demand) is None
        self.ledger.promise(uid, node, demand if fits else Demand())

    def recount(self, key: Key, uid: str) -> None:
        """Make the ledger say what the contexts of a lifeform that is gone still hold."""
        left = [context for context in self._contexts.by_index(BY_LIFEFORM, key) if context.spec.lifeform_uid == uid]
        if left:
            self.ledger.promise(uid, left[0].spec.node, total_held(left))
        else:
            self.ledger.withdraw(uid)
        self.ledger.withdraw(_second(uid))

    # ------------------------------------------------------------ inside

    def _request(self, line: Line, uid: str = "") -> Request:
        beside = self._company.nodes(line.namespace, dict(line.company), uid) if line.company is not None else None
        return Request(line.demand, dict(line.node_selector), beside, line.data_on, line.disk_bytes)

    def _shortage(self, uid: str, node_name: str, demand: Demand) -> Shortage | None:
        node = self._ranking.get(node_name)
        if node is None or _covers(self.ledger.held(uid), demand):
            return None
        return shortage_of(demand, node.allocatable - self.ledger.used_by_others(node_name, uid))

    def _join(self, lifeform: Lifeform, line: Line) -> None:
        self._wake_one(self.waiting.join((lifeform.metadata.namespace, lifeform.metadata.name), line))

    def _wake_one(self, key: Key | None) -> None:
        if key is not None:
            self._wake(key)

    def _on_sum(self, node_name: str, less: bool) -> None:
        node = self._ranking.get(node_name)
        if node is None:
            return
        self._ranking.put(_with_used(node, self.ledger.used(node_name)))
        if less:
            self._help(node_name)

    def _on_node(self, change: Change[Node]) -> None:
        about = change.new or change.old
        assert about is not None
        name = about.metadata.name
        if change.new is None:
            self._ranking.remove(name)
            return
        before, now = self._ranking.get(name), view_of(change.new, self.ledger.used(name))
        if before != now:
            self._ranking.put(now)
            self._help(name)

    def _on_lifeform(self, change: Change[Lifeform]) -> None:
        old, new = change.old, change.new
        if old is not None and new is not None and _company_of(old) == _company_of(new):
            return
        self._company.replace(old, new)
        if new is not None and new.status.node and self.waiting:
            self._accompany(new)

    def _help(self, node_name: str) -> None:
        """Something may have become free there: wake the first of every line that it would do for."""
        if not self.waiting:
            return
        node = self._ranking.get(node_name)
        if node is None:
            return
        for line, first in list(self.waiting.lines()):
            if self._would_do(node, line):
                self._wake(first)

    def _would_do(self, node: NodeView, line: Line) -> bool:
        if line.node:
            fits = line.node == node.name and self._shortage(line.uid, line.node, line.demand) is None
            return fits and disk_refusal(line.disk_bytes, node) is None
        return refusal_of(self._request(line), node) is None

    def _accompany(self, lifeform: Lifeform) -> None:
        """The lifeform may be the company that others wait for."""
        meta = lifeform.metadata
        for line, first in list(self.waiting.lines()):
            if line.company is not None and line.namespace == meta.namespace and set(line.company) <= meta.labels.items():
                self._wake(first)


def view_of(node: Node, used: Demand) -> NodeView:
    """A Node resource as placement sees it. An unreadable capacity counts as none."""
    try:
        allocatable = demand_of_capacity(node.status.allocatable)
    except ValueError:
        allocatable = Demand()
    return NodeView(
        name=node.metadata.name,
        labels=node.metadata.labels,
        ready=holds(node.status.conditions, "Ready") and node.metadata.deletion_timestamp is None,
        unschedulable=node.spec.unschedulable,
        allocatable=allocatable,
        used=used,
        disk_free_bytes=_disk_free(node.status.pool),
    )


def _disk_free(pool: PoolSummary) -> int | None:
    """The room for new volumes, in whole steps: what running disks take by the way is no news."""
    return pool.room_bytes // _DISK_STEP * _DISK_STEP if pool.total_bytes and not pool.problems else None


def _second(uid: str) -> str:
    """Who holds a place for a lifeform that is on its way there."""
    return f"{uid}/moving"


def _line_of(lifeform: Lifeform, demand: Demand, data: DataNeeds) -> Line:
    selector, company = lifeform.spec.node_selector, lifeform.spec.colocate_with
    return Line(
        demand,
        tuple(sorted(selector.items())) if selector else (),
        lifeform.metadata.namespace if company is not None else "",
        tuple(sorted(company.match_labels.items())) if company is not None else None,
        data_on=data.node,
        disk_bytes=data.disk_bytes,
    )


def _company_of(lifeform: Lifeform) -> tuple[str, dict[str, str]]:
    """What others may want to be beside."""
    return lifeform.status.node, lifeform.metadata.labels


def _with_used(node: NodeView, used: Demand) -> NodeView:
    return dataclasses.replace(node, used=used)


def _covers(held: Demand, demand: Demand) -> bool:
    return demand.cpu_milli <= held.cpu_milli and demand.memory_bytes <= held.memory_bytes and demand.contexts <= held.contexts

"""Where the lifeforms of dead nodes go on, and from what: a pure plan, made again whenever something has changed.

Hard rules. A lifeform starts from snapshots that have all that a sync ever promised (G4); from less only where somebody allowed
the loss. All its volumes come from one node, which has room for it and may have it. Where that cannot be had it is parked, and
the plan says what it waits for.

Of the nodes that will do, the one with the newest snapshots is taken, then the emptiest, then the first by name. Lifeforms
are served by priority, then by age, a few at once on each node, so that a rack's worth of them is not one storm. One without
data is nobody's problem but the scheduler's: the plan only says when.

`now` is boot-time seconds; times of snapshots are wall-clock seconds, and only ever told to people.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from primordia.domain.lost import (
    Action,
    DeadNode,
    Held,
    Later,
    Lost,
    LostVolume,
    Park,
    PlaceAnew,
    Recover,
    SeedOnto,
    Taken,
    View,
)
from primordia.domain.placement import Demand, NodeView, Request, Shortage, disk_refusal, free_share, refusal_of
from primordia.domain.timings import Timings
from primordia.kit.units import human_bytes

AT_ONCE = 8
"""So many lifeforms are being started on one node at the same time."""

_LINK_BYTES_S = 100 * 2**20
"""What a copy over the network is taken to move in a second, where the manifest gives no bandwidth."""

_NOTHING = Demand()


def order_of(lost: Lost) -> tuple[int, str, str, str]:
    """Highest priority first, then the oldest."""
    return -lost.priority, lost.created, lost.namespace, lost.name


def plan(lost: Iterable[Lost], view: View, timings: Timings, now: float) -> tuple[Action, ...]:
    """One action for each lifeform, in the order in which they are to be carried out."""
    return _Planner(view, timings, now).plan(sorted(lost, key=order_of))


class _Planner:
    def __init__(self, view: View, timings: Timings, now: float) -> None:
        self._view = view
        self._timings = timings
        self._now = now
        self._busy = Counter(view.busy)
        self._promised: dict[str, Demand] = {}

    def plan(self, lost: Sequence[Lost]) -> tuple[Action, ...]:
        return tuple(self._one(each) for each in lost)

    def _one(self, lost: Lost) -> Action:
        if not lost.has_data:
            return PlaceAnew(lost)
        dead = self._view.dead[lost.dead]
        silent = self._silent(lost, dead)
        patience_s = dead.known_s + self._timings.holdings_wait_s
        if silent and self._now < patience_s:
            return Later(lost, f"It is waited for what {_names(silent)} hold{_s(silent)} of its data.", patience_s)
        return self._from_copies(lost, dead, silent)

    def _silent(self, lost: Lost, dead: DeadNode) -> list[str]:
        """The living who should hold something of it and have not said what."""
        asked = {name for volume in lost.volumes if volume.begun for name in volume.replicas}
        return sorted(name for name in asked - dead.answered if self._lives(name))

    def _lives(self, name: str) -> bool:
        node = self._view.nodes.get(name)
        return node is not None and node.ready

    # ------------------------------------------------------------ copies

    def _from_copies(self, lost: Lost, dead: DeadNode, silent: Sequence[str]) -> Action:
        whole = self._holders(lost)
        good = {name: held for name, held in whole.items() if all(map(_is_enough, *_pairs(lost, held)))}
        if good:
            return self._choose(lost, dead, good)
        # What may be lost is what cannot be reached, not what somebody who lives has merely not named yet. Whoever says nothing
        # for long has no pool any more.
        waited_for = silent if self._now < dead.known_s + self._timings.reprotect_after_s else ()
        if not lost.allow_loss or waited_for:
            return Park(lost, "WaitingForCopies", self._what_is_missing(lost, dead, whole, silent))
        if whole:
            return self._choose(lost, dead, whole)
        if any(volume.held for volume in lost.volumes):
            return Park(lost, "WaitingForCopies", self._what_is_missing(lost, dead, whole, silent))
        return self._begin_empty(lost, dead, silent)

    def _holders(self, lost: Lost) -> dict[str, dict[str, Held]]:
        """The living nodes that hold something of every volume that has begun, and what."""
        found: dict[str, dict[str, Held]] = {}
        wanted = [volume for volume in lost.volumes if volume.begun]
        for volume in wanted:
            for held in volume.held:
                if held.node != lost.dead and self._lives(held.node):
                    found.setdefault(held.node, {})[volume.name] = held
        return {name: held for name, held in found.items() if len(held) == len(wanted)}

    def _choose(self, lost: Lost, dead: DeadNode, holders: Mapping[str, dict[str, Held]]) -> Action:
        refusals: dict[str, str] = {}
        fitting: list[NodeView] = []
        for name in sorted(holders):
            node = self._with_promises(self._view.nodes[name])
            refusal = _refusal(lost, node)
            if refusal is None:
                fitting.append(node)
            else:
                refusals[name] = refusal.words() if isinstance(refusal, Shortage) else refusal
        if not fitting:
            return self._no_room(lost, dead, holders, refusals)
        best = max(
            (node for node in fitting if self._busy[node.name] < AT_ONCE or not lost.runs),
            key=lambda node: (_newest(lost, holders[node.name]), free_share(node, lost.demand.memory_bytes)),
            default=None,
        )
        if best is None:
            names = [node.name for node in fitting]
            return Later(lost, f"{_names(names)} {'starts' if len(names) == 1 else 'start'} {AT_ONCE} others first.")
        return self._take(lost, dead, best.name, holders[best.name])

    def _take(self, lost: Lost, dead: DeadNode, node: str, held: Mapping[str, Held]) -> Recover:
        if lost.runs:
            self._busy[node] += 1
        self._promised[node] = self._promised.get(node, _NOTHING) + lost.demand
        taken = tuple(self._taken(volume, held.get(volume.name), dead) for volume in lost.volumes)
        parts = ", ".join(_words(each) for each in taken)
        return Recover(lost, node, taken, f"{lost.dead} is dead. On {node} it goes on from {parts}.")

    def _taken(self, volume: LostVolume, held: Held | None, dead: DeadNode) -> Taken:
        number = volume.synced[1] if volume.synced is not None else 0
        if held is None:
            lost_s = self._since(volume.born_s, dead) if volume.begun else 0.0
            return Taken(volume.name, None, number, lost_s, not volume.begun)
        lost_s = self._since(held.at_s or volume.born_s, dead)
        if held.at_s - dead.last_sign_s > self._timings.ttl_s:
            lost_s = max(lost_s, self._since(volume.born_s, dead))
        if held.behind_s is not None:
            # Nothing is cut while nothing changes: what is old may lack little.
            lost_s = min(lost_s, held.behind_s)
        return Taken(volume.name, held, number, lost_s, _is_enough(volume, held))

    def _since(self, moment_s: float, dead: DeadNode) -> float:
        """From a moment of the dead node's life to its last sign. One long after that was told by a clock that goes wrong, or
        is read by one: by so much at least, and what it says is worth no more than that."""
        ahead_s = moment_s - dead.last_sign_s
        return ahead_s if ahead_s > self._timings.ttl_s else max(0.0, -ahead_s)

    def _with_promises(self, node: NodeView) -> NodeView:
        promised = self._promised.get(node.name)
        return node if promised is None else dataclasses.replace(node, used=node.used + promised)

    # ------------------------------------------------------------ no room, no copies

    def _no_room(
        self, lost: Lost, dead: DeadNode, holders: Mapping[str, dict[str, Held]], refusals: Mapping[str, str]
    ) -> Action:
        said = "; ".join(f"{name} holds its data and {why}" for name, why in sorted(refusals.items()))
        if lost.seed == "local":
            return Park(lost, "NoRoom", f"{said}. It waits for room there (recovery.seed is local).")
        others = [node for node in map(self._with_promises, self._view.nodes.values()) if node.name not in holders]
        rooms = [node for node in others if _refusal(lost, node, disk=_bytes(lost)) is None]
        if not rooms:
            return Park(lost, "NoRoom", f"{said}; no other node has room for it and its {human_bytes(_bytes(lost))} either.")
        best = max(sorted(holders), key=lambda name: _newest(lost, holders[name]))
        onto = max(rooms, key=lambda node: (free_share(node, lost.demand.memory_bytes), node.name)).name
        estimate = f"making a copy on {onto} takes about {_seed_s(lost):.0f} s ({human_bytes(_used(lost))})"
        if not self._view.can_move:
            why = "it cannot be moved away from its data, so it waits for room"
            return Park(lost, "NoRoom", f"{said}; {onto} has room, and {estimate}; but {why}.")
        if self._busy[onto] >= AT_ONCE:
            return Later(lost, f"{onto}, which is to have a copy of its data, starts {AT_ONCE} others first.")
        self._busy[onto] += 1
        self._promised[onto] = self._promised.get(onto, _NOTHING) + lost.demand
        taken = tuple(self._taken(volume, holders[best].get(volume.name), dead) for volume in lost.volumes)
        return SeedOnto(lost, best, onto, taken, f"{lost.dead} is dead. {said}; {estimate}.")

    def _begin_empty(self, lost: Lost, dead: DeadNode, silent: Sequence[str]) -> Action:
        """Nobody holds anything, and that may be lost. Who has not said so is no place for empty data."""
        size = sum(volume.size_bytes for volume in lost.volumes)
        others = [node for node in self._view.nodes.values() if node.name not in silent]
        nodes = [self._with_promises(node) for node in others if self._busy[node.name] < AT_ONCE]
        fitting = [node for node in nodes if _refusal(lost, node, disk=size) is None]
        if not fitting:
            return Park(lost, "NoRoom", f"It may begin with empty data, and no node has room for it and {human_bytes(size)}.")
        best = max(fitting, key=lambda node: (free_share(node, lost.demand.memory_bytes), node.name))
        return self._take(lost, dead, best.name, {})

    def _what_is_missing(self, lost: Lost, dead: DeadNode, whole: Mapping[str, dict[str, Held]], silent: Sequence[str]) -> str:
        allow = f"`primordia failover {lost.name} -n {lost.namespace} --allow-loss`"
        waits = [name for volume in lost.volumes for name in volume.replicas if name != lost.dead and not self._lives(name)]
        where = _names(sorted({lost.dead, *waits}))
        unheard = f" {_names(silent)} ha{'s' if len(silent) == 1 else 've'} not said yet." if silent else ""
        if whole:
            name = max(sorted(whole), key=lambda each: _newest(lost, whole[each]))
            said = ", ".join(_behind(volume, whole[name].get(volume.name)) for volume in lost.volumes if volume.begun)
            return (
                f"Its last sync cannot be reached: {said} on {name}. It waits for {where}.{unheard} "
                f"{allow} starts it from what {name} holds."
            )
        if any(volume.held for volume in lost.volumes):
            said = "; ".join(
                f"{each.name} is on {_names([held.node for held in each.held]) or 'none'}" for each in lost.volumes
            )
            return f"No node that lives holds all of its volumes ({said}). It waits for {where}.{unheard}"
        return (
            f"It has data, and no node that lives holds a copy. It waits for {where}.{unheard} "
            f"{allow} starts it with empty data."
        )


# ---------------------------------------------------------------- small decisions


def _is_enough(volume: LostVolume, held: Held) -> bool:
    """Whether the snapshot has all that a sync promised."""
    return volume.synced is None or held.order >= volume.synced


def _pairs(lost: Lost, held: Mapping[str, Held]) -> tuple[list[LostVolume], list[Held]]:
    begun = [volume for volume in lost.volumes if volume.begun]
    return begun, [held[volume.name] for volume in begun]


def _newest(lost: Lost, held: Mapping[str, Held]) -> tuple[tuple[int, int], ...]:
    return tuple(held[volume.name].order for volume in lost.volumes if volume.begun)


def _refusal(lost: Lost, node: NodeView, *, disk: int | None = None) -> str | Shortage | None:
    """Why the node cannot take it; one that is to stand still only needs the node to be there."""
    if node.name == lost.dead:
        return "is dead"
    fresh = [volume.size_bytes for volume in lost.volumes if not volume.begun]
    disk_bytes = disk if disk is not None else sum(fresh) if fresh else None
    if not lost.runs:
        return "is not ready" if not node.ready else disk_refusal(disk_bytes, node)
    return refusal_of(Request(lost.demand, lost.node_selector, lost.beside, "", disk_bytes), node)


def _bytes(lost: Lost) -> int:
    return sum(volume.size_bytes for volume in lost.volumes)


def _used(lost: Lost) -> int:
    return sum(volume.used_bytes or volume.size_bytes for volume in lost.volumes)


def _seed_s(lost: Lost) -> float:
    """What copying its data is estimated to take."""
    return sum((each.used_bytes or each.size_bytes) / (each.bandwidth or _LINK_BYTES_S) for each in lost.volumes)


def _words(taken: Taken) -> str:
    if taken.held is None:
        return f"an empty {taken.volume}"
    lost = f", at most {taken.lost_s:.1f} s lost" if taken.lost_s else ""
    return f"snapshot {taken.held.number} of {taken.volume}{lost}"


def _behind(volume: LostVolume, held: Held | None) -> str:
    if held is None or volume.synced is None:
        return f"{volume.name} is there"
    epoch, number = volume.synced
    return f"{volume.name} is at snapshot {held.number} (epoch {held.epoch}), and {number} (epoch {epoch}) was synced,"


def _names(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _s(names: Sequence[str]) -> str:
    return "s" if len(names) == 1 else ""

"""The volume controller: each volume's spec follows its lifeform's manifest, its copies have places, its state has words.

Who owns a volume, and in which epoch, is written where lifeforms are placed (`binding.py`); here only volumes of no lifeform
get a node. A volume never leaves the node that has its data. Of its status this writes phase, replicas and conditions, and
leaves alone what the owner's daemon says.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from primordia.control.blueprint import goal_of
from primordia.control.data import followed, templates_with_data, volume_name
from primordia.control.extra import extra_copies, settled
from primordia.control.protection import Copies, choose_copies, choose_owner, holder_of, protection, with_room
from primordia.control.queue import WorkQueue
from primordia.domain.conditions import Verdict
from primordia.domain.copies import Holder
from primordia.domain.timings import Timings
from primordia.kit.clock import Clock
from primordia.kit.units import parse_bytes
from primordia.registry.codec import Change
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.wire.conditions import dead_since, find, is_dead, is_silent, merge
from primordia.wire.resources import Lifeform, Node, Volume
from primordia.wire.volume_rules import lifeform_named_by, uses
from primordia.wire.volumes import VolumeStatus, holder_finalizer, owned_by

log = logging.getLogger(__name__)

Key = tuple[str, str]
_ROOM_STEP = 16 * 2**20
_NO_COPIES = Copies(0, (), "")
_DEFAULT = Timings()
_ROUNDED_S = 1.0
"""Conditions tell whole seconds."""


class VolumeController:
    """Looks at volumes, by `queue`; `wake` has a lifeform looked at."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        queue: WorkQueue[Key],
        wake: Callable[[Key], None],
        events: EventRecorder,
        clock: Clock,
        timings: Timings = _DEFAULT,
    ) -> None:
        self.queue = queue
        self._reprotect_after_s = timings.reprotect_after_s
        self._wake = wake
        self._registry = registry
        self._events = events
        self._clock = clock
        self._lifeforms = informers.of(Lifeform)
        self._nodes = informers.of(Node)
        self._volumes = informers.of(Volume)
        self._promised: Counter[str] = Counter()
        self._held: dict[str, dict[Key, None]] = {}
        self._waiting: dict[Key, None] = {}
        self._volumes.subscribe(self._on_volume)

    def close(self) -> None:
        """Leave the caches."""
        self._volumes.unsubscribe(self._on_volume)

    # ------------------------------------------------------------ what has changed

    def _on_volume(self, change: Change[Volume]) -> None:
        old, new = change.old, change.new
        about = new or old
        assert about is not None
        key = (about.metadata.namespace, about.metadata.name)
        self._count(key, old, new)
        if new is None:
            self._waiting.pop(key, None)
        self.queue.add(key)
        lifeform = lifeform_named_by(about)
        if lifeform and (_binding(old) != _binding(new) or self._moves(about, lifeform)):
            self._wake((about.metadata.namespace, lifeform))

    def _moves(self, volume: Volume, name: str) -> bool:
        """Whether a move of its lifeform may wait for it."""
        lifeform = self._lifeforms.get(name, volume.metadata.namespace)
        return lifeform is not None and lifeform.status.moving is not None

    def on_lifeform(self, change: Change[Lifeform]) -> None:
        """A lifeform has changed, come or gone: its volumes want to know."""
        old, new = change.old, change.new
        if old is not None and new is not None and old.spec is new.spec and goal_of(old) == goal_of(new):
            return
        for lifeform in (each for each in (old, new) if each is not None):
            for name in templates_with_data(lifeform):
                self.queue.add((lifeform.metadata.namespace, volume_name(lifeform, name)))

    def on_node(self, change: Change[Node]) -> None:
        """A node has changed: those whose data is there, and those that wait for a place, look again."""
        old, new = change.old, change.new
        about = new or old
        if about is None:
            return
        if new is None:  # which may be the last that the end of a volume waited for
            for volume in self._volumes.items():
                if volume.metadata.deletion_timestamp is not None:
                    self.queue.add((volume.metadata.namespace, volume.metadata.name))
        if old is None or new is None or _room(old) != _room(new):
            for key in self._waiting:
                self.queue.add(key)
        if old is None or new is None or _standing(old) != _standing(new):
            for key in self._held.get(about.metadata.name, ()):
                self.queue.add(key)

    # ------------------------------------------------------------ a look

    async def look(self, key: Key) -> None:
        """Make a volume's spec and status true. Raises ConflictError when the caches are behind, StoreUnavailableError."""
        namespace, name = key
        volume = self._volumes.get(name, namespace)
        if volume is None:
            return
        if volume.metadata.deletion_timestamp is not None:
            await self._free_of_the_gone(volume)
            return
        lifeform = self._lifeforms.get(lifeform_named_by(volume), namespace)
        user = lifeform if lifeform is not None and uses(lifeform, volume) else None
        if user is not None:
            spec = followed(user, volume)
            if spec is not volume:
                volume = await self._registry.amend(volume, spec)
                self._volumes.learn(volume)
        owned = msgspec.structs.replace(volume, status=self._owned(volume, user))
        goal, leaving = goal_of(user), self._leaving(owned)
        copies = self._copies(settled(owned, goal, leaving), user) if owned.status.node else _NO_COPIES
        self._remember(key, owned, copies)
        phase = _phase(owned, user, self._nodes.get(owned.status.node))
        nodes = {name: node for name in copies.nodes if (node := self._nodes.get(name)) is not None}
        replicas = (*copies.nodes, *(extra_copies(owned, copies, goal, leaving) if owned.status.node else ()))
        await self._write(volume, owned, phase, replicas, protection(owned, copies, nodes))

    def _owned(self, volume: Volume, user: Lifeform | None) -> VolumeStatus:
        """The status with a node, where the volume is nobody's and there is room for it."""
        status = volume.status
        if status.node or user is not None or volume.spec.lifeform:
            return status
        node = choose_owner(parse_bytes(volume.spec.size), self._holders(volume, self._nodes.items()).values())
        return owned_by(status, node, status.epoch + 1) if node else status

    def _copies(self, volume: Volume, user: Lifeform | None) -> Copies:
        """Who holds its copies. Mostly those who do, and then the other nodes are not looked at."""
        near = self._holders(volume, filter(None, map(self._nodes.get, sorted(_holders(volume)))))
        lost = self._lost(volume)
        copies = choose_copies(volume, near, 0, lost=lost)
        if copies.nodes and not copies.short:
            return copies
        holders = self._holders(volume, self._nodes.items())
        return choose_copies(volume, holders, _racks(holders), lost=lost, company=self._company(volume, user))

    def _lost(self, volume: Volume) -> frozenset[str]:
        """Its copies' nodes that have been dead for so long that their copies do not count any more.

        None while its owner is silent, who would have to feed another. For one that is dead for less there is another look.
        """
        owner = self._nodes.get(volume.status.node)
        if owner is None or is_silent(owner.status.conditions):
            return frozenset()
        now, lost, soonest_s = self._clock.wall().timestamp(), set(), math.inf
        for name in volume.status.replicas:
            node = self._nodes.get(name)
            since_s = dead_since(node.status.conditions) if node is not None else None
            if since_s is None:
                continue
            left_s = since_s + self._reprotect_after_s - now
            if left_s <= 0:
                lost.add(name)
            soonest_s = min(soonest_s, left_s if left_s > 0 else math.inf)
        if soonest_s < math.inf:
            self.queue.add_after((volume.metadata.namespace, volume.metadata.name), soonest_s + _ROUNDED_S)
        return frozenset(lost)

    def _company(self, volume: Volume, user: Lifeform | None) -> frozenset[str]:
        """Who holds the copies of its lifeform's other volumes: a failover wants all of them in one place."""
        names = (volume_name(user, context) for context in templates_with_data(user)) if user is not None else ()
        others = (self._volumes.get(name, volume.metadata.namespace) for name in names if name != volume.metadata.name)
        return frozenset(node for each in others if each is not None for node in each.status.replicas)

    def _leaving(self, volume: Volume) -> frozenset[str]:
        """Of the nodes that hold copies, those that are to hold none."""
        nodes = [self._nodes.get(name) for name in volume.status.replicas]
        return frozenset(node.metadata.name for node in nodes if node is not None and node.spec.evacuating)

    async def _write(self, stored: Volume, owned: Volume, phase: str, replicas: tuple[str, ...], verdict: Verdict) -> None:
        """Write what is decided, if it is news, in place of what it was decided from; tell of it."""
        now, generation = timestamp(self._clock.wall()), stored.metadata.generation
        status = msgspec.structs.replace(
            owned.status,
            phase=phase,
            replicas=replicas,
            conditions=merge(stored.status.conditions, [verdict], now, generation),
            observed_generation=generation,
        )
        if status == stored.status:
            return
        before = find(stored.status.conditions, "Protected")
        written = await self._registry.amend(stored, msgspec.structs.replace(stored, status=status), status=True)
        self._volumes.learn(written)
        if replicas != stored.status.replicas:
            meta = stored.metadata
            log.info("volume %s/%s: copies on %s", meta.namespace, meta.name, ", ".join(replicas) or "no node")
        begins = before is None and verdict.reason == "Degraded"  # its first copies are being made
        if not begins and (before is None or before.reason != verdict.reason):
            self._events.record(written, verdict.reason, verdict.message, warning=verdict.status != "True")

    async def _free_of_the_gone(self, volume: Volume) -> None:
        """A volume that is being destroyed does not wait for nodes that have left: what they had is out of reach."""
        meta = volume.metadata
        names = {holder_finalizer(node.metadata.name) for node in self._nodes.items()}
        left = tuple(each for each in meta.finalizers if each in names or not each.startswith(holder_finalizer("")))
        if left != meta.finalizers:
            freed = msgspec.structs.replace(volume, metadata=msgspec.structs.replace(meta, finalizers=left))
            self._volumes.learn(await self._registry.amend(volume, freed))

    # ------------------------------------------------------------ counting

    def _holders(self, volume: Volume, nodes: Iterable[Node]) -> dict[str, Holder]:
        """These nodes as places for this volume's data."""
        size = parse_bytes(volume.spec.size)
        found = {}
        for node in nodes:
            name = node.metadata.name
            found[name] = with_room(holder_of(node, self._promised[name], len(self._held.get(name, ()))), node, size)
        return found

    def _count(self, key: Key, old: Volume | None, new: Volume | None) -> None:
        """Who holds it, and what each is promised to it."""
        for volume, sign in ((old, -1), (new, 1)):
            for name in _holders(volume) if volume is not None else ():
                self._promised[name] += sign * _size_of(volume)
                held = self._held.setdefault(name, {})
                held.pop(key, None)
                if sign > 0:
                    held[key] = None

    def _remember(self, key: Key, volume: Volume, copies: Copies) -> None:
        """Whether a change of any node may change what was decided."""
        default = volume.spec.replication is None or volume.spec.replication.layout.mirror is None
        if not volume.status.node or copies.short or (default and not copies.wanted):
            self._waiting[key] = None
        else:
            self._waiting.pop(key, None)


def _holders(volume: Volume) -> set[str]:
    """The nodes that have, or are to have, data of it."""
    return {volume.status.node, *volume.status.replicas} - {""}


def _size_of(volume: Volume | None) -> int:
    try:
        return parse_bytes(volume.spec.size) if volume is not None else 0
    except ValueError:
        return 0


def _binding(volume: Volume | None) -> object:
    """What of a volume matters to its lifeform."""
    if volume is None:
        return None
    meta, status = volume.metadata, volume.status
    return meta.uid, meta.deletion_timestamp is not None, volume.spec.filesystem, status.node, status.epoch


def _standing(node: Node) -> object:
    """What of a node matters to the volumes it holds."""
    said = node.status.conditions
    return node.metadata.labels, node.metadata.deletion_timestamp, is_silent(said), is_dead(said), node.spec.evacuating


def _room(node: Node) -> object:
    """What of a node matters to volumes that look for a place; its room in steps, for it changes all the time."""
    pool, ready = node.status.pool, find(node.status.conditions, "Ready")
    return (
        node.metadata.labels,
        ready.status if ready is not None else "",
        node.spec.unschedulable,
        pool.total_bytes,
        pool.room_bytes // _ROOM_STEP,
        pool.problems,
    )


def _racks(holders: Mapping[str, Holder]) -> int:
    """The racks that can have data."""
    return len({(each.segment, each.rack) for each in holders.values() if each.segment and each.rack and each.total_bytes})


def _phase(volume: Volume, user: Lifeform | None, node: Node | None) -> str:
    if not volume.status.node:
        return "Pending"
    if node is None or is_silent(node.status.conditions):
        return "Unknown"
    return "Bound" if user is not None else "Available"

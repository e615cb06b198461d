"""The keys that no object is made of: leases, lives, deaths, owners. What must hold of them, judged from the store's history.

Nobody is declared dead who holds a lease or has begun another life; no lifeform leaves a node that has not died; and where so
many go at once that it is more likely us than them, nobody is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from primordia.domain.lease import DEATHS, LEASES, LIVES
from primordia.domain.timings import Timings
from primordia.drivers.store_memory import KeyChange
from primordia.kit.clock import Clock
from primordia.registry.lives import Death, read_death
from primordia.sim.checkers import Checker
from primordia.sim.history import Moment
from primordia.wire.meta import ANNOTATION_MOVE, LABEL_RACK
from primordia.wire.resources import Lifeform, Volume

_AT_ONCE_S = 0.5


@dataclass
class NodeKeys:
    """What is known of one node: the life that its lease key names (0: none), its last life, its death, when its key went."""

    lease: int = 0
    life: int = 0
    death: Death | None = None
    gone_s: float | None = None


@dataclass
class KeyHistory:
    """Follows the keys. `declared` are deaths of the revision that is observed now, by node."""

    clock: Clock
    timings: Timings
    nodes: dict[str, NodeKeys] = field(default_factory=dict)
    declared: dict[str, Death] = field(default_factory=dict)
    proved: set[tuple[str, int]] = field(default_factory=set)
    revoked: set[tuple[str, int]] = field(default_factory=set)
    deaths: int = 0
    is_prompt: Callable[[], bool] = lambda: True
    """Whether what is written now was decided now."""

    def observe(self, revision: int, changes: Sequence[KeyChange]) -> None:
        """One revision."""
        self.declared = {}
        for change in changes:
            after = change.after
            if change.key.startswith(LEASES):
                node = self._node(change.key.removeprefix(LEASES))
                node.lease = after.create_revision if after is not None else 0
                node.gone_s = self.clock.boottime() if after is None else None
            elif change.key.startswith(LIVES) and after is not None:
                self._node(change.key.removeprefix(LIVES)).life = after.mod_revision
            elif change.key.startswith(DEATHS):
                name = change.key.removeprefix(DEATHS)
                death = read_death(after)
                self._node(name).death = death
                if death is not None:
                    self.deaths += 1
                    self.declared[name] = death
                    if death.by == "node":
                        self.proved.add((name, death.life))

    def _node(self, name: str) -> NodeKeys:
        return self.nodes.setdefault(name, NodeKeys())


class Deaths(Checker):
    """A death names the last life of a node that holds no lease."""

    def __init__(self, keys: KeyHistory) -> None:
        super().__init__()
        self._keys = keys

    def judge(self, moment: Moment) -> Iterator[str]:
        for name, death in self._keys.declared.items():
            node = self._keys.nodes[name]
            if node.lease:
                yield f"{name} was declared dead by the {death.by}, and holds its lease of life {node.lease}."
            if death.life != node.life:
                yield f"{name} was declared dead in life {death.life}, and its last is {node.life}."


class Holds(Checker):
    """Where nodes of several racks and more than a third of all go at one time without proof, nobody of them is declared.

    One after another is seen to go, so those that go a moment after a death was declared count, too: they were going. Not so
    one whose lease was ended from one moment to the next.
    """

    def __init__(self, keys: KeyHistory) -> None:
        super().__init__()
        self._keys = keys
        self._recent: dict[str, tuple[float, float]] = {}

    def judge(self, moment: Moment) -> Iterator[str]:
        for name, death in self._keys.declared.items():
            gone_s = self._keys.nodes[name].gone_s
            if death.by == "controllers" and gone_s is not None and self._keys.is_prompt():
                self._recent[name] = moment.time_s, gone_s
        for name, (declared_s, gone_s) in list(self._recent.items()):
            if moment.time_s - declared_s > _AT_ONCE_S:
                del self._recent[name]
                continue
            away = [
                other
                for other, node in self._keys.nodes.items()
                if node.gone_s is not None
                and abs(node.gone_s - gone_s) <= _AT_ONCE_S
                and (other, node.life) not in self._keys.proved
                and (node.gone_s <= declared_s or (other, node.life) not in self._keys.revoked)
            ]
            racks = {moment.state.nodes[other].metadata.labels.get(LABEL_RACK) for other in away if other in moment.state.nodes}
            if len(racks) > 1 and len(away) > len(self._keys.nodes) / 3:
                del self._recent[name]
                yield f"{name} was declared dead, though {', '.join(sorted(away))} went at that time, without proof."


class Moves(Checker):
    """A lifeform that was somewhere goes elsewhere only from a node whose life is over and that holds no lease; or because it
    was asked to, and then with all its data, which nobody writes any more."""

    def __init__(self, keys: KeyHistory) -> None:
        super().__init__()
        self._keys = keys

    def judge(self, moment: Moment) -> Iterator[str]:
        for move in moment.moves:
            old, new = move.old, move.new
            if not isinstance(old, Lifeform) or not isinstance(new, Lifeform) or old.status.node in ("", new.status.node):
                continue
            if _was_asked_for(old, new, moment):
                continue
            node = self._keys.nodes.get(old.status.node, NodeKeys())
            if node.death is None or node.death.life != node.life:
                yield f"{new.metadata.name} left {old.status.node} in life {node.life}, which was not declared dead."
            if node.lease:
                yield f"{new.metadata.name} left {old.status.node}, which holds its lease."


def _was_asked_for(old: Lifeform, new: Lifeform, moment: Moment) -> bool:
    """Whether somebody wanted it there, and its node has handed over all of its volumes in its last epoch."""
    if ANNOTATION_MOVE not in old.metadata.annotations:
        return False
    before = {move.old.metadata.name: move.old for move in moment.moves if isinstance(move.old, Volume)}
    names = [f"{old.metadata.name}.{each.name}" for each in old.spec.contexts if each.data is not None]
    return all(name in before and _is_given(before[name], old.status.epoch, new.status.node) for name in names)


def _is_given(volume: Volume, epoch: int, to: str) -> bool:
    wish, given = volume.status.handover, volume.status.handed_over
    if wish is None or given is None:
        return False
    return (wish.to, wish.epoch) == (to, epoch) and (given.to, given.at) == (to, wish.at)


def key_checkers(keys: KeyHistory) -> list[Checker]:
    """A fresh one of each."""
    return [Deaths(keys), Holds(keys), Moves(keys)]

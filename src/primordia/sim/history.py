"""What happened in a run: every revision of the store, in order, as objects and as one fingerprint.

The fingerprint covers times, keys and bytes. Two runs with the same fingerprint were the same run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from primordia.drivers.store_memory import KeyChange
from primordia.kit.clock import Clock
from primordia.ports.store import KeyValue
from primordia.registry.keys import ROOT
from primordia.registry.leader import LEADERS
from primordia.wire.resources import BY_PLURAL, Context, Event, Lifeform, Node, Resource, Volume

T = TypeVar("T")


@dataclass(frozen=True)
class Move:
    """One object before and after a revision; None where it was not, or is no more."""

    old: Resource | None
    new: Resource | None

    @property
    def either(self) -> Resource:
        """What it is, or was at last."""
        found = self.new if self.new is not None else self.old
        assert found is not None
        return found


@dataclass
class State:
    """All objects as of some revision. `contexts` are by the lifeform's uid they name, then by their own; volumes by uid."""

    lifeforms: dict[str, Lifeform] = field(default_factory=dict)
    contexts: dict[str, dict[str, Context]] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def apply(self, move: Move) -> None:
        """Go on by one change."""
        new, about = move.new, move.either
        if isinstance(about, Lifeform):
            _put(self.lifeforms, about.metadata.uid, new if isinstance(new, Lifeform) else None)
        elif isinstance(about, Context):
            group = self.contexts.setdefault(about.spec.lifeform_uid, {})
            _put(group, about.metadata.uid, new if isinstance(new, Context) else None)
        elif isinstance(about, Node):
            _put(self.nodes, about.metadata.name, new if isinstance(new, Node) else None)
        elif isinstance(about, Volume):
            _put(self.volumes, about.metadata.uid, new if isinstance(new, Volume) else None)
        elif isinstance(new, Event):
            self.events.append(new)

    def contexts_of(self, uid: str) -> list[Context]:
        """The contexts that name this lifeform."""
        return list(self.contexts.get(uid, {}).values())

    def volume_named(self, name: str) -> Volume | None:
        """The volume of this name; all are of one namespace."""
        return next((each for each in self.volumes.values() if each.metadata.name == name), None)

    def all_contexts(self) -> Iterator[Context]:
        """Every context."""
        for group in self.contexts.values():
            yield from group.values()


@dataclass(frozen=True)
class Moment:
    """One revision, and the state after it."""

    time_s: float
    revision: int
    moves: tuple[Move, ...]
    state: State


class Listener(Protocol):
    """Who is told of every moment."""

    def seen(self, moment: Moment) -> None:
        """One revision has come to be."""


class History:
    """Follows a memory store; `observe` is its observer. Each moment is told to every listener."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._digest = hashlib.sha256()
        self._listeners: list[Listener] = []
        self.state = State()
        self.commits = 0
        self.terms = 0
        self.last_change_s = 0.0

    def observe(self, revision: int, changes: Sequence[KeyChange]) -> None:
        """Note one revision. Events count as happening, but not as change: they are written behind."""
        now_s = self._clock.boottime()
        self.commits += 1
        moves = []
        for change in changes:
            value = change.after.value if change.after is not None else b""
            self._digest.update(f"{now_s!r} {revision} {change.key} {len(value)} ".encode())
            self._digest.update(value)
            self.terms += change.key.startswith(LEADERS) and change.before is None
            move = _move(change)
            if move is not None:
                self.state.apply(move)
                moves.append(move)
        if any(not isinstance(move.either, Event) for move in moves):
            self.last_change_s = now_s
        moment = Moment(now_s, revision, tuple(moves), self.state)
        for listener in self._listeners:
            listener.seen(moment)

    def listen(self, listener: Listener) -> None:
        """Tell it of every moment from now on."""
        self._listeners.append(listener)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that happened so far."""
        return self._digest.hexdigest()


def _put(place: dict[str, T], key: str, value: T | None) -> None:
    if value is None:
        place.pop(key, None)
    else:
        place[key] = value


def _move(change: KeyChange) -> Move | None:
    """The change as objects; None for keys that hold none."""
    kind = BY_PLURAL.get(change.key.removeprefix(ROOT).partition("/")[0])
    if kind is None or not change.key.startswith(ROOT):
        return None
    return Move(_decode(kind, change.before), _decode(kind, change.after))


def _decode(kind: type[Resource], item: KeyValue | None) -> Resource | None:
    return None if item is None else msgspec.json.decode(item.value, type=kind)

"""What a plan of failovers is made from, and what it says: values only.

A lifeform is *lost* when its node, or that of its data, is dead. What others hold of its volumes is *held*; what the new
owner begins with is *taken*. The plan gives one action for each that is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from primordia.domain.placement import Demand, NodeView

Seed = Literal["auto", "local", "network"]


@dataclass(frozen=True, slots=True)
class Held:
    """The newest whole snapshot of a volume on a node; `at_s` is when it was cut. `behind_s` is the most that its owner can
    have written beyond it, by what it had told the node; None where it told nothing."""

    node: str
    epoch: int
    number: int
    at_s: float
    behind_s: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        return self.epoch, self.number


@dataclass(frozen=True, slots=True)
class LostVolume:
    """A volume whose owner is dead. `synced` is the epoch and number of its last sync; `begun` is false when it never had a
    disk. `replicas` should hold something of it. `bandwidth` is bytes a second, 0 for no limit."""

    name: str
    size_bytes: int = 0
    used_bytes: int = 0
    synced: tuple[int, int] | None = None
    begun: bool = True
    born_s: float = 0.0
    bandwidth: int = 0
    replicas: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """A lifeform whose node, or whose data's node, is dead. `runs` says that it wants a microVM."""

    namespace: str
    name: str
    uid: str
    dead: str
    created: str = ""
    priority: int = 0
    seed: Seed = "auto"
    allow_loss: bool = False
    runs: bool = True
    demand: Demand = Demand()  # noqa: RUF009 (frozen)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] | None = None
    volumes: tuple[LostVolume, ...] = ()

    @property
    def has_data(self) -> bool:
        return any(volume.begun for volume in self.volumes)


@dataclass(frozen=True, slots=True)
class DeadNode:
    """`known_s` is when its death was learned here, `last_sign_s` (wall clock) the latest moment at which it can have written;
    `answered` are the nodes that have said what they hold of it."""

    name: str
    known_s: float
    last_sign_s: float
    answered: frozenset[str] = frozenset()


@dataclass(frozen=True)
class View:
    """What the plan is made from. `busy` counts the recovered lifeforms that are being started, by node; `can_move` says that a
    lifeform can be moved off the node that holds its data."""

    nodes: Mapping[str, NodeView]
    dead: Mapping[str, DeadNode]
    busy: Mapping[str, int] = field(default_factory=dict)
    can_move: bool = False


# ---------------------------------------------------------------- what is to be done


@dataclass(frozen=True, slots=True)
class Taken:
    """A volume of the new owner: from `held`, or empty (None). `lost_s` is the most that can have been lost."""

    volume: str
    held: Held | None
    synced_number: int
    lost_s: float
    sufficient: bool = True


@dataclass(frozen=True, slots=True)
class Recover:
    """Give the lifeform and its volumes to the node."""

    lost: Lost
    node: str
    taken: tuple[Taken, ...]
    message: str

    @property
    def lost_s(self) -> float:
        return max((each.lost_s for each in self.taken), default=0.0)


@dataclass(frozen=True, slots=True)
class PlaceAnew:
    """It has nothing to bring along: the scheduler chooses."""

    lost: Lost
    message: str = "It has no data: it is placed as any other."


@dataclass(frozen=True, slots=True)
class SeedOnto:
    """Make `node`, which has the data and no room for the microVM, the volumes' owner; from there it moves to `onto`."""

    lost: Lost
    node: str
    onto: str
    taken: tuple[Taken, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Park:
    """Nothing can be done now. `reason` is CamelCase, `message` says what it waits for and what a person can do."""

    lost: Lost
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Later:
    """Its turn comes by itself: at `until_s`, or when something that is under way has ended (None)."""

    lost: Lost
    message: str
    until_s: float | None = None


Action = Recover | PlaceAnew | SeedOnto | Park | Later

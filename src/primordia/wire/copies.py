"""What nodes say to each other about copies of volumes, beside the deltas (`wire/deltas.py`). Only nodes may.

GET  /node/v1/volumes/UID                  what this node holds: Holding
POST /node/v1/volumes/UID/deltas           a delta from the owner; answered once it is durable: Taken
GET  /node/v1/volumes/UID/deltas?to=&from= the whole content of a root, but for its first bytes
POST /node/v1/volumes/UID/seed             fetch the whole from one of these nodes: Seed
POST /node/v1/volumes/UID/current           the owner's disk holds nothing beyond what is here: Current
POST /node/v1/volumes/UID/scrub            read everything of it here back: wire.data.ScrubbedCopy
"""

from __future__ import annotations

from primordia.wire.meta import Wire

PREFIX = "/node/v1/volumes/"
DELTAS, SEED, CURRENT, SCRUB = "deltas", "seed", "current", "scrub"


class HeldSnapshot(Wire, frozen=True, kw_only=True):
    """One that is whole, verified and durable, whether it is published yet or not."""

    number: int
    epoch: int
    root: str


class Unfinished(Wire, frozen=True, kw_only=True):
    """A delta that was cut off."""

    number: int
    root: str
    base: str
    bytes_done: int
    bytes_all: int


class Holding(Wire, frozen=True, kw_only=True):
    """What a node has of a volume, oldest first; nothing at all is an answer too. `epoch` is the highest it has seen.

    `seeding` while it fetches the whole; `message` says why that, or anything else about it here, does not go on. `stamp` is
    to be given back in a Current; 0 from a node that knows nothing of it.
    """

    epoch: int = 0
    snapshots: tuple[HeldSnapshot, ...] = ()
    unfinished: Unfinished | None = None
    seeding: bool = False
    message: str = ""
    stamp: float = 0.0


class Taken(Wire, frozen=True, kw_only=True):
    """The snapshot that is durable here now."""

    number: int
    root: str


class Seed(Wire, frozen=True, kw_only=True):
    """Fetch snapshot `number` of that root from the first of `sources` (names of nodes) that gives it."""

    number: int
    root: str
    sources: tuple[str, ...]


class Current(Wire, frozen=True, kw_only=True):
    """After it had heard `stamp` the owner found that its disk holds nothing beyond snapshot `number` of that root."""

    number: int
    root: str
    stamp: float


class Notes(Wire, frozen=True, kw_only=True):
    """What lies beside the data, for a rebuild from pools alone: the object's identity, and the last promise that was made.

    `spec` is the object's spec as JSON would have it.
    """

    namespace: str
    name: str
    uid: str
    owner: str
    epoch: int
    spec: dict[str, object] = {}
    synced_epoch: int = 0
    synced_number: int = 0


def path_of(uid: str, part: str = "") -> str:
    """The path of a volume between nodes."""
    return f"{PREFIX}{uid}/{part}" if part else f"{PREFIX}{uid}"

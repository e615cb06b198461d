"""The forks port: what the API asks of a node about claims and live forks. Bodies: the node itself, and a peer reached
as exec is. Every method raises PrimordiaError with a reason and a remedy; whatever fails leaves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from primordia.ports.guest import Program
from primordia.wire.resources import Context


@dataclass(frozen=True)
class ClaimRequest:
    """A box from the template. `name` empty: one is made up. `ttl_s` 0: until it is killed. `env` is for what runs in it."""

    namespace: str
    template: str
    name: str = ""
    ttl_s: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    egress: bool = False


@dataclass(frozen=True)
class ForkRequest:
    """`count` children of a running context. `lifetime`: `parent` ends them with their parent, `keep` does not.

    `program`, when given, is started in each child once its identity is confirmed. `secrets` keeps the parent's files.
    """

    count: int = 1
    ttl_s: float = 0.0
    lifetime: str = "parent"
    inherit_secrets: bool = False
    program: Program | None = None


@dataclass(frozen=True)
class ForkOutcome:
    """One child: its Context's name and uid, or why there is none. Milliseconds from the request to its confirmation."""

    name: str = ""
    uid: str = ""
    confirmed_ms: float = 0.0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class ForkReport:
    """`pause_ms` is how long the parent stood still, `copied_bytes` what was copied of its memory meanwhile."""

    pause_ms: float
    copied_bytes: int
    children: tuple[ForkOutcome, ...]


@dataclass(frozen=True)
class Claimed:
    """A box: its Context's name and uid. `warm` says whether the pool had it ready.

    `context` is the object as it was stored, where the node tells it: whoever answers with it need not read it again.
    """

    name: str
    uid: str
    node: str
    warm: bool
    confirmed_ms: float
    context: Context | None = None


@dataclass(frozen=True)
class Promoted:
    """The lifeform that a fork became, its volume, and the node where both are. `took_ms` is how long its disk stood still."""

    name: str
    uid: str
    volume: str
    node: str
    size_bytes: int
    took_ms: float


class Forks(Protocol):
    """One node's claims and forks."""

    async def claim(self, request: ClaimRequest) -> Claimed:
        """A box, its identity confirmed. Raises CapacityError, NotFoundError (no such template), TemporaryError."""

    async def fork(self, uid: str, request: ForkRequest) -> ForkReport:
        """Fork the running context `uid`. The parent is unharmed whatever happens; each child has its own outcome."""

    async def promote(self, uid: str, name: str) -> Promoted:
        """Make the fork `uid`, which has data, a lifeform of its own. It is unharmed until that is there, and gone then."""

"""The engine's servers as they are kept in the store and told to administrators."""

from __future__ import annotations

import msgspec

PREFIX = "/engine/v1/"
MEMBERS = PREFIX + "members"


class EngineSeat(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A node with a server. `ready` False: it is to get one, and its daemon sees to it."""

    node: str
    rack: str
    address: str
    ready: bool = True


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All of them."""

    seats: tuple[EngineSeat, ...] = ()


class SeatRequest(msgspec.Struct, frozen=True, kw_only=True):
    node: str


class SeatStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A seat and how its server does. `member` says whether it counts for the engine's majority; `trouble` is what its
    node says of it, in a sentence."""

    node: str
    rack: str
    address: str
    ready: bool
    member: bool
    answers: bool
    leader: bool = False
    trouble: str = ""


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    seats: tuple[SeatStatus, ...]

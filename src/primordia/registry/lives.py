"""Lives and deaths of nodes, and what the living hold of the dead: the keys of docs/design/0009-survival.md.

A node's *life* is the create revision of its lease key, which is also the mod revision of its lives key. A death names one
life. Nothing that ran under it runs on: either the node itself has proved that, or its deadline has passed and it will
find the death before it uses another life.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from primordia.domain.lease import DEATHS, LIVES, death_key, lease_key, life_key
from primordia.ports.store import Compare, Delete, KeyValue, Put, Store
from primordia.registry.keys import ROOT

__all__ = ["DEATHS", "HOLDINGS", "LIVES", "Death", "Held", "Holding", "Life"]

T = TypeVar("T")

HOLDINGS = f"{ROOT}holdings/"


class Life(msgspec.Struct, frozen=True, rename="camel"):
    """Who holds, or held, a node's lease: the value of the lease key and of the lives key."""

    node: str
    boot_id: str = ""
    incarnation: str = ""
    address: str = ""


class Death(msgspec.Struct, frozen=True, rename="camel"):
    """A life that is over, by the word of the node itself, once nothing of it ran any more, or of the controllers, by rule."""

    life: int
    by: Literal["node", "controllers"]
    reason: str = ""
    boot_id: str = ""
    at: str = ""


class Held(msgspec.Struct, frozen=True):
    """The newest whole snapshot of a volume on a node; `at` is when it was cut (RFC 3339).

    `behind_s`: so many seconds before the node heard of the death the owner's disk held nothing beyond it, by the owner's word
    and the node's own clock; None where that never gave its word.
    """

    epoch: int
    number: int
    root: str
    at: str = ""
    behind_s: float | None = None


class Holding(msgspec.Struct, frozen=True):
    """What a node holds of the volumes that a dead node owns, by uid; said once for that `life`."""

    life: int
    volumes: dict[str, Held] = {}


def holding_key(dead: str, node: str) -> str:
    """Where `node` says what it holds of the volumes of `dead`."""
    return f"{HOLDINGS}{dead}/{node}"


def read_death(item: KeyValue | None) -> Death | None:
    """The death; None when there is none or it cannot be read."""
    return _read(item, Death)


def read_holding(item: KeyValue | None) -> Holding | None:
    """The holding; None when there is none or it cannot be read."""
    return _read(item, Holding)


def read_life(item: KeyValue | None) -> Life | None:
    """The holder; None when there is none or it cannot be read."""
    return _read(item, Life)


def dead_guards(node: str, life: int) -> tuple[Compare, ...]:
    """That `life` is the node's last, and that it holds no lease: what declaring and using a death rests on."""
    return Compare(lease_key(node), "create", 0), Compare(life_key(node), "mod", life)


def death_put(node: str, death: Death) -> Put:
    """The operation that declares it."""
    return Put(death_key(node), msgspec.json.encode(death))


async def forget(store: Store, node: str) -> None:
    """Remove what is kept of a node that has left the soup. Raises StoreUnavailableError."""
    held = [item.key for item in (await store.list(HOLDINGS)).items if node in item.key.removeprefix(HOLDINGS).split("/")]
    await store.txn([], [Delete(life_key(node)), Delete(death_key(node)), *map(Delete, held)])


def _read(item: KeyValue | None, kind: type[T]) -> T | None:
    try:
        return None if item is None else msgspec.json.decode(item.value, type=kind)
    except msgspec.MsgspecError:
        return None

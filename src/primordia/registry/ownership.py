"""Who owns a lifeform, and the permission to start: one transaction that nothing stale can pass.

A lifeform's owner is the key `/primordia/owners/<uid>`, written in the same transaction that creates its contexts. Before
each start of a context its node asks, in one transaction: is the lease of mine still the one I know (its key's create
revision), and is the owner what I have just read (its mod revision): me, in my epoch? A node whose lease has ended, that
was replaced, or that cannot reach the engine therefore starts nothing. What runs goes on running.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from primordia.kit.errors import TemporaryError
from primordia.ports.store import Compare, KeyValue, Put, Store
from primordia.registry.guarded import satisfied
from primordia.registry.keys import ROOT

OWNERS = f"{ROOT}owners/"
_TRIES = 3
_LEASE_RETRY_S = 1.0
_OWNER_RETRY_S = 5.0


class StartDeniedError(TemporaryError):
    """The node may not start the context now. `reason` is NodeLeaseLost or NotOwner."""


class Owner(msgspec.Struct, frozen=True):
    """The node that runs a lifeform, and in which epoch."""

    node: str
    epoch: int


@dataclass(frozen=True)
class NodeLife:
    """One life of a node: its lease's key, and the revision at which that was created."""

    key: str
    create_revision: int


def owner_key(lifeform_uid: str) -> str:
    """Where a lifeform's owner is written."""
    return OWNERS + lifeform_uid


def owner_put(lifeform_uid: str, node: str, epoch: int) -> Put:
    """The operation that makes the node the owner."""
    return Put(owner_key(lifeform_uid), msgspec.json.encode(Owner(node, epoch)))


def read_owner(item: KeyValue | None) -> Owner | None:
    """The owner; None when there is none or it cannot be read."""
    try:
        return None if item is None else msgspec.json.decode(item.value, type=Owner)
    except msgspec.MsgspecError:
        return None


class StartGuard:
    """Gives one node its permissions. `life` tells the node's life as it is now, None while it holds no lease."""

    def __init__(self, store: Store, node: str, life: Callable[[], NodeLife | None]) -> None:
        self._store = store
        self._node = node
        self._life = life

    async def permit(self, lifeform_uid: str, epoch: int) -> None:
        """Return if a context of the lifeform may be started here, now, in this epoch.

        Raises StartDeniedError with the reason, StoreUnavailableError when the engine cannot be asked.
        """
        for _ in range(_TRIES):
            life = self._life()
            if life is None:
                raise self._no_lease()
            key = owner_key(lifeform_uid)
            item = await self._store.get(key)
            self._check(read_owner(item), epoch)
            assert item is not None
            lease, owner = Compare(life.key, "create", life.create_revision), Compare(key, "mod", item.mod_revision)
            # The reads are not for their answers alone: etcd answers a transaction that neither writes nor reads from the
            # asked server's own memory, which may be old (`isTxnSerializable` is true of an empty one).
            result = await self._store.txn([lease, owner], [], read_if_failed=[life.key, key])
            if result.done:
                return
            if not satisfied(lease, result.found[0]) and self._life() == life:
                raise self._no_lease()
        raise StartDeniedError(
            "The lifeform's owner keeps changing, so it is not started.", reason="NotOwner", retry_after_s=_OWNER_RETRY_S
        )

    def _check(self, owner: Owner | None, epoch: int) -> None:
        if owner == Owner(self._node, epoch):
            return
        who = "nobody" if owner is None else f"{owner.node} in epoch {owner.epoch}"
        raise StartDeniedError(
            f"It is not started here: its owner is {who}, and this is {self._node} in epoch {epoch}.",
            reason="NotOwner",
            retry_after_s=_OWNER_RETRY_S,
        )

    def _no_lease(self) -> StartDeniedError:
        return StartDeniedError(
            f"It is not started: node {self._node} does not hold its lease.",
            remedy="`primordia status` shows whose leases have ended; the log of that node's supervisor says why.",
            reason="NodeLeaseLost",
            retry_after_s=_LEASE_RETRY_S,
        )

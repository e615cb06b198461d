"""Owners brought into line with what exists, once, by a leader that begins.

Normally an owner comes with its contexts and goes after them. What an interrupted hand, or an older version without owners,
has left is put right here: an owner that is missing is written as the lifeform's status says, one of nothing is removed.
One that differs from the status is left alone: nothing is started by it, and that is the safe side.
"""

from __future__ import annotations

from primordia.ports.store import Compare, Delete
from primordia.registry.informers import Informers
from primordia.registry.ownership import OWNERS, owner_key, owner_put
from primordia.registry.registry import Registry, unchanged
from primordia.wire.resources import Context, Lifeform


async def settle_owners(registry: Registry, informers: Informers) -> int:
    """Put the owners right; how many were wrong. The caches must be as new as the leadership. StoreUnavailableError."""
    stored = {item.key: item for item in (await registry.store.list(OWNERS)).items}
    contexts = informers.of(Context).items()
    running = {context.spec.lifeform_uid or context.metadata.uid for context in contexts}
    lifeforms = {lifeform.metadata.uid: lifeform for lifeform in informers.of(Lifeform).items()}
    wrong = 0
    for uid, lifeform in lifeforms.items():
        key = owner_key(uid)
        if uid in running and lifeform.status.node and key not in stored:
            put = owner_put(uid, lifeform.status.node, lifeform.status.epoch)
            await registry.store.txn([unchanged(lifeform), Compare(key, "mod", 0)], [put])
            wrong += 1
    wanted = {owner_key(uid) for uid in lifeforms.keys() | running}
    for key, item in stored.items():
        if key not in wanted:
            await registry.store.txn([Compare(key, "mod", item.mod_revision)], [Delete(key)])
            wrong += 1
    return wrong

"""`/primordia/engine/members`: which nodes are to have the engine's servers. Every daemon follows it.

The engine itself knows its members, but nobody can watch that, nor read there which one is still to be started. The record
is made from it at the first change; without a record what node.json says holds.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from primordia.kit.errors import PermanentError, TemporaryError
from primordia.ports.engine import EngineMembers
from primordia.ports.store import Compare, Put, Store
from primordia.registry.registry import Registry
from primordia.wire.engine import EngineRecord, EngineSeat
from primordia.wire.meta import LABEL_RACK
from primordia.wire.resources import Node

PREFIX = "/primordia/engine/"
KEY = PREFIX + "members"
_ATTEMPTS = 8


async def read(store: Store) -> tuple[EngineRecord | None, int]:
    """The record and its revision; None and 0 while there is none. Raises StoreUnavailableError."""
    found = await store.get(KEY)
    return (decode(found.value), found.mod_revision) if found is not None else (None, 0)


def decode(value: bytes) -> EngineRecord:
    """The record. Raises PermanentError."""
    try:
        return msgspec.json.decode(value, type=EngineRecord)
    except msgspec.MsgspecError as error:
        raise PermanentError(f"{KEY} in the store cannot be read ({error}).", remedy="Remove it there.") from error


async def change(store: Store, decide: Callable[[EngineRecord | None], EngineRecord | None]) -> EngineRecord | None:
    """Read, decide, compare, write; None from `decide` leaves it as it is. Gives what holds now."""
    for _ in range(_ATTEMPTS):
        record, revision = await read(store)
        wanted = decide(record)
        if wanted is None or wanted == record:
            return record
        done = await store.txn([Compare(KEY, "mod", revision)], [Put(KEY, msgspec.json.encode(wanted))])
        if done.done:
            return wanted
    raise TemporaryError("The engine's members change too fast.", remedy="Try again.")


async def known(registry: Registry, members: EngineMembers) -> EngineRecord:
    """The record, or what it would be at this moment."""
    record, _ = await read(registry.store)
    if record is not None:
        return record
    racks = {node.metadata.name: node.metadata.labels.get(LABEL_RACK, "") for node in (await registry.list(Node)).items}
    return EngineRecord(
        seats=tuple(
            EngineSeat(node=each.name, rack=racks.get(each.name, ""), address=urlsplit(each.client_url).hostname or "")
            for each in sorted(await members.list(), key=lambda server: server.name)
            if each.name
        )
    )

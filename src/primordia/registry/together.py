"""Several objects written in one transaction: all of them, or none.

A lifeform and its volumes say the same node and epoch at every revision, because no revision is written with only one of
them. What a write makes of each object is the business of who calls this; generation and claims are kept as elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from primordia.kit.errors import ConflictError
from primordia.ports.store import Compare, Delete, KeyValue, Put
from primordia.registry import keys, rules
from primordia.registry.claims import change_of
from primordia.registry.codec import encode, with_metadata, with_revision
from primordia.registry.registry import Registry, unchanged
from primordia.wire.resources import Resource

Pair = tuple[Resource | None, Resource]
"""An object as it was read, None for one that is to be created, and as it is wanted: metadata, spec and status."""


async def write_together(
    registry: Registry, pairs: Sequence[Pair], guards: Sequence[Compare] = (), *, also: Sequence[Put | Delete] = ()
) -> tuple[Resource, ...]:
    """Write all of them and do `also`, or nothing; the objects as they then are, in the same order.

    Raises ConflictError when one is no longer as it was read, or exists already, or a guard does not hold.
    """
    asked = list(guards)
    puts: list[Put] = []
    claimed: list[Put | Delete] = []
    written = []
    for before, wanted in pairs:
        after = _born(registry, wanted) if before is None else _successor(before, wanted)
        claims = change_of(before, after)
        key = keys.key_of_object(after)
        asked += [Compare(key, "mod", 0) if before is None else unchanged(before), *claims.guards]
        puts.append(Put(key, encode(after)))
        claimed += claims.operations
        written.append(after)
    result, sure = await registry.once(asked, [*also, *puts, *claimed], [put.key for put in puts])
    revision = result.revision if result.done else 0 if sure else _done_before(pairs, puts, result.found)
    if not revision:
        names = ", ".join(keys.describe(type(each), each.metadata.name, each.metadata.namespace) for _, each in pairs)
        raise ConflictError(f"{names} cannot be written together: one of them has changed.", remedy="Look again.")
    return tuple(with_revision(each, str(revision)) for each in written)


def _done_before(pairs: Sequence[Pair], puts: Sequence[Put], found: Sequence[KeyValue | None]) -> int:
    """The revision at which a transaction that got no answer has put all this, 0 if that cannot be told."""
    there = [item for put, item in zip(puts, found, strict=True) if item is not None and item.value == put.value]
    revisions = {item.mod_revision for item in there}
    if len(there) < len(puts) or len(revisions) != 1:
        return 0
    revision = revisions.pop()
    return revision if all(before is None or revision > int(before.metadata.resource_version) for before, _ in pairs) else 0


def _born(registry: Registry, obj: Resource) -> Resource:
    now = rules.timestamp(registry.clock.wall())
    return rules.born(obj, name=obj.metadata.name, uid=registry.new_uid(), now=now)


def _successor(before: Resource, wanted: Resource) -> Resource:
    return with_metadata(rules.successor(before, wanted), resource_version=before.metadata.resource_version)

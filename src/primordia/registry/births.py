"""Objects whose uid is known before they are stored: what runs already had to be called something."""

from __future__ import annotations

from collections.abc import Sequence

from primordia.kit.errors import AlreadyExistsError
from primordia.ports.store import Compare, Put
from primordia.registry import keys, rules
from primordia.registry.codec import R, encode, with_revision
from primordia.registry.guarded import GuardError, satisfied
from primordia.registry.registry import Registry


async def create_with_uid(registry: Registry, obj: R, guards: Sequence[Compare] = ()) -> R:
    """Store a new object under the uid that it has, while the guards hold.

    Raises AlreadyExistsError, and GuardError when a guard does not hold.
    """
    meta = obj.metadata
    fresh = rules.born(obj, name=meta.name, uid=meta.uid, now=rules.timestamp(registry.clock.wall()))
    key = keys.key_of_object(fresh)
    asked = [key, *(guard.key for guard in guards)]
    result, sure = await registry.once([Compare(key, "mod", 0), *guards], [Put(key, encode(fresh))], asked)
    if result.done:
        return with_revision(fresh, str(result.revision))
    there = result.found[0]
    if not sure and there is not None and registry.is_stored(type(obj), there, meta.uid):
        return with_revision(fresh, str(there.create_revision))
    for guard, found in zip(guards, result.found[1:], strict=True):
        if not satisfied(guard, found):
            raise GuardError(f"{keys.describe(type(obj), meta.name, meta.namespace)} was not made: {guard.key} changed.")
    raise AlreadyExistsError(
        f"{keys.describe(type(obj), meta.name, meta.namespace)} exists already.", remedy="Choose another name."
    )

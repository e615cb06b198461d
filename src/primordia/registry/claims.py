"""What only one object of the whole soup may have: a published port.

Two API servers may be asked at the same instant for two lifeforms with one port, and neither's cache knows of the other.
So a claim is a key of its own, `/primordia/claims/ports/PORT`, whose value is the holder's `NAMESPACE/NAME`. It is written
and removed in the very transaction that writes or removes the object, and compared there: of two, the engine takes one.

A claim whose holder is gone or wants it no more is nobody's: whoever comes next may take it, as long as it is still at the
revision at which that was seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from primordia.kit.errors import InvalidError, NotFoundError, PermanentError
from primordia.ports.store import Compare, Delete, KeyValue, Put
from primordia.registry.keys import ROOT, path
from primordia.wire.problems import InvalidResourceError, Problem
from primordia.wire.resources import Lifeform, Resource

_PORTS = f"{ROOT}claims/ports/"


Get = Callable[[type[Resource], str, str], Awaitable[Resource]]
"""Reads an object by kind, name and namespace, as `Registry.get` does."""


@dataclass(frozen=True, slots=True)
class ClaimChange:
    """What a write does to claims: `wanted` are new ones by key, with the fields that want them; `dropped` are given up.

    `guards` and `operations` belong into the transaction of the write.
    """

    wanted: Mapping[str, str]
    guards: tuple[Compare, ...] = ()
    operations: tuple[Put | Delete, ...] = ()


NO_CHANGE = ClaimChange({})


def claims_of(obj: Resource) -> dict[str, str]:
    """The keys of an object's claims, with the fields that make them."""
    if not isinstance(obj, Lifeform):
        return {}
    return {
        f"{_PORTS}{port.publish}": f"spec.contexts[{i}].ports[{j}].publish"
        for i, context in enumerate(obj.spec.contexts)
        for j, port in enumerate(context.ports)
        if port.publish
    }


def change_of(before: Resource | None, after: Resource | None, free: Mapping[str, int] | None = None) -> ClaimChange:
    """What replacing `before` (None: it is new) with `after` (None: it goes) does to claims.

    `free` are claims that nobody has though their keys are there, with the revisions at which that was seen.
    """
    if not isinstance(before or after, Lifeform) or (before and after and _same_spec(before, after)):
        return NO_CHANGE
    had = claims_of(before) if before is not None else {}
    has = claims_of(after) if after is not None else {}
    wanted = {key: field for key, field in has.items() if key not in had}
    guards = tuple(Compare(key, "mod", (free or {}).get(key, 0)) for key in wanted)
    holder = holder_of(after).encode() if after is not None else b""
    gone = tuple(Delete(key) for key in had if key not in has)
    return ClaimChange(wanted, guards, (*(Put(key, holder) for key in wanted), *gone))


def holder_of(obj: Resource) -> str:
    """How a claim names the object: `NAMESPACE/NAME`."""
    return path(type(obj), obj.metadata.name, obj.metadata.namespace)


async def nobodys(obj: Resource, change: ClaimChange, found: Sequence[KeyValue | None], get: Get) -> dict[str, int]:
    """Which of the claims that `obj` wants are there and nobody's, with their revisions; `found` is what is there.

    Raises InvalidResourceError naming each one that another has.
    """
    free: dict[str, int] = {}
    problems = []
    for (key, field), item in zip(change.wanted.items(), found, strict=True):
        if item is None:
            continue
        holder = item.value.decode(errors="replace")
        if await _holds(type(obj), holder, key, get):
            port = key.removeprefix(_PORTS)
            words = f"{port} is published by {obj.KIND} {holder} already; choose another port"
            problems.append(Problem(field, words, "FieldValueDuplicate"))
        else:
            free[key] = item.mod_revision
    if problems:
        raise InvalidResourceError(obj.KIND, obj.metadata.name, problems)
    return free


async def _holds(kind: type[Resource], holder: str, key: str, get: Get) -> bool:
    namespace, _, name = holder.rpartition("/")
    try:
        return key in claims_of(await get(kind, name, namespace))
    except (NotFoundError, InvalidError):
        return False
    except PermanentError:  # this version cannot read it, and others may
        return True


def _same_spec(before: Resource, after: Resource) -> bool:
    """Writes of the status alone are the most frequent, and keep the spec as it is."""
    return isinstance(before, Lifeform) and isinstance(after, Lifeform) and before.spec is after.spec

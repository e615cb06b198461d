"""What a write makes of an object: pure rules of metadata, as Kubernetes has them.

The store's writer decides identity (uid, creation, generation, deletion marks); callers decide spec, labels, annotations,
owners and finalizers; status is written apart. `generation` counts changes of the spec and nothing else. An object with
finalizers is only marked when deleted, and is gone with its last finalizer.
"""

from __future__ import annotations

import datetime
import functools

import msgspec

from primordia.kit.errors import InvalidError, PermanentError
from primordia.registry.codec import R, with_metadata
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Resource


def timestamp(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC, whole seconds, as Kubernetes writes it."""
    return _timestamp(moment.replace(microsecond=0))


def moment(text: str) -> datetime.datetime | None:
    """What RFC 3339 says, with its zone; None for what is no such time."""
    try:
        found = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


@functools.lru_cache(maxsize=64)
def _timestamp(moment: datetime.datetime) -> str:
    """Remembered, because a busy controller writes many in one second."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def born(obj: R, *, name: str, uid: str, now: str) -> R:
    """A new object with its identity."""
    return with_metadata(
        obj,
        name=name,
        uid=uid,
        creation_timestamp=now,
        generation=1 if has(obj, "spec") else 0,
        deletion_timestamp=None,
        deletion_grace_period_seconds=None,
        resource_version="",
    )


def updated(current: R, wanted: R) -> R:
    """`current` with everything that a caller may change taken from `wanted`; its status stays.

    Raises InvalidError when a finalizer is added to an object that is being deleted.
    """
    meta = _merged(current.metadata, wanted.metadata)
    changes: dict[str, object] = {"metadata": meta}
    if has(current, "status"):
        changes["status"] = getattr(current, "status")  # noqa: B009 (not every kind has one)
    merged = msgspec.structs.replace(wanted, **changes)
    if has(current, "spec") and _spec(merged) != _spec(current):
        merged = with_metadata(merged, generation=current.metadata.generation + 1)
    return merged


def with_status(current: R, wanted: R) -> R:
    """`current` with the status of `wanted`. Raises PermanentError for kinds that have none."""
    if not has(current, "status"):
        raise PermanentError(f"{current.KIND} has no status.")
    return msgspec.structs.replace(current, status=getattr(wanted, "status"))  # noqa: B009 (not every kind has one)


def successor(current: R, wanted: R) -> R:
    """`current` with all that a caller may change, and the status of `wanted`. Raises as `updated`."""
    merged = updated(current, wanted)
    return with_status(merged, wanted) if has(wanted, "status") else merged


def marked(current: R, now: str) -> R:
    """`current` as being deleted; a mark that is there stays."""
    if current.metadata.deletion_timestamp is not None:
        return current
    return with_metadata(current, deletion_timestamp=now)


def finished(obj: Resource) -> bool:
    """Whether it is marked as deleted and nothing holds it any more."""
    return obj.metadata.deletion_timestamp is not None and not obj.metadata.finalizers


def has(obj: Resource, field: str) -> bool:
    """Whether this kind has `spec` or `status`."""
    return field in obj.__struct_fields__


def _merged(current: ObjectMeta, wanted: ObjectMeta) -> ObjectMeta:
    added = [each for each in wanted.finalizers if each not in current.finalizers]
    if current.deletion_timestamp is not None and added:
        raise InvalidError("metadata.finalizers", f"{added[0]} cannot be added: the object is being deleted")
    return msgspec.structs.replace(
        current,
        labels=wanted.labels,
        annotations=wanted.annotations,
        owner_references=wanted.owner_references,
        finalizers=wanted.finalizers,
    )


def _spec(obj: Resource) -> object:
    return getattr(obj, "spec")  # noqa: B009 (not every kind has one)

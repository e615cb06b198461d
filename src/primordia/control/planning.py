"""Between resources and the plan: what a lifeform and its contexts are to it, and what its steps make of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from primordia.control.blueprint import (
    LIFEFORM_FINALIZER,
    Blueprint,
    blueprint_of,
    blueprints,
    may_start,
    new_context,
    stands,
    status_of,
)
from primordia.control.data import NO_VOLUMES, Volumes, is_bound
from primordia.domain.conditions import Verdict
from primordia.domain.lifeforms import Present, Wanted
from primordia.wire.resources import STARTING_PHASES, Context, ContextStatus, Lifeform, LifeformStatus, Node


def wanted_of(lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes = NO_VOLUMES) -> Wanted[Blueprint]:
    """The lifeform, as the plan takes it."""
    return Wanted(
        deleting=lifeform.metadata.deletion_timestamp is not None,
        claimed=LIFEFORM_FINALIZER in lifeform.metadata.finalizers,
        node=lifeform.status.node,
        specs=blueprints(lifeform, contexts, volumes) if lifeform.status.node else {},
        bound=is_bound(lifeform, volumes),
    )


def present_of(lifeform: Lifeform, contexts: Mapping[str, Context]) -> dict[str, Present[Blueprint]]:
    """The contexts that exist, as the plan takes them."""
    return {
        name: Present(
            blueprint_of(context),
            deleting=context.metadata.deletion_timestamp is not None,
            foreign=not is_mine(lifeform, context),
        )
        for name, context in contexts.items()
    }


def is_mine(lifeform: Lifeform, context: Context) -> bool:
    """Whether it is this lifeform's, and not an earlier one's of the same name."""
    return context.spec.lifeform_uid == lifeform.metadata.uid


def mine_of(lifeform: Lifeform, contexts: Mapping[str, Context]) -> dict[str, Context]:
    """Those that are this lifeform's."""
    return {name: context for name, context in contexts.items() if is_mine(lifeform, context)}


def scheduled_so_far(lifeform: Lifeform) -> Verdict:
    """The Scheduled condition, before anything else is decided."""
    if lifeform.status.node:
        return Verdict("Scheduled", "True", "Placed", f"It is on {lifeform.status.node}.")
    return Verdict("Scheduled", "False", "Pending", "It has not been placed yet.")


def redrawn(context: Context, blueprint: Blueprint) -> Context:
    """The context as its lifeform wants it now. On another node nothing is left of what the one before said of it.

    Its node may have news late, and start what it was to run until now: one that is not to run is said to be stopping until
    the node itself has said that nothing of it runs, so that its share is nobody else's before.
    """
    metadata = msgspec.structs.replace(context.metadata, labels=dict(blueprint.labels))
    before = context.status
    if context.spec.node != blueprint.spec.node:
        status = ContextStatus(restarts=before.restarts, image_digest=before.image_digest)
        return msgspec.structs.replace(context, metadata=metadata, spec=blueprint.spec, status=status)
    if (context.spec.wanted, blueprint.spec.wanted) == ("Running", "Stopped") and stands(context) and may_start(context):
        status = msgspec.structs.replace(before, phase="Stopping")
        return msgspec.structs.replace(context, metadata=metadata, spec=blueprint.spec, status=status)
    return msgspec.structs.replace(context, metadata=metadata, spec=blueprint.spec)


def marked(context: Context) -> Context:
    """The context as it is after it was deleted: its node still holds it."""
    mark = context.metadata.deletion_timestamp or "now"
    return msgspec.structs.replace(context, metadata=msgspec.structs.replace(context.metadata, deletion_timestamp=mark))


def as_placed(
    lifeform: Lifeform, status: LifeformStatus, scheduled: Verdict, volumes: Volumes, node: Node | None, now: str
) -> Lifeform:
    """The lifeform as it is written where it is given its node: with our finalizer, and with the status that it has once its
    contexts are made, for each write is heard by every node. `status` has the node and the epoch, `now` is RFC 3339."""
    placed = msgspec.structs.replace(claimed(lifeform), status=status)
    fresh = {name: new_context(placed, each) for name, each in blueprints(placed, {}, volumes).items()}
    return msgspec.structs.replace(placed, status=status_of(placed, fresh, scheduled, node, now))


def is_passing(before: LifeformStatus, after: LifeformStatus) -> bool:
    """Whether all that is new is how far its contexts have come with their start."""
    if not (before.phase == after.phase == "Starting") or any(each.phase not in STARTING_PHASES for each in after.contexts):
        return False
    said = [(each.type, each.status) for each in before.conditions] == [(each.type, each.status) for each in after.conditions]
    return said and msgspec.structs.replace(after, contexts=before.contexts, conditions=before.conditions) == before


def claimed(lifeform: Lifeform) -> Lifeform:
    """The lifeform, held by our finalizer as well."""
    finalizers = lifeform.metadata.finalizers
    return lifeform if LIFEFORM_FINALIZER in finalizers else with_finalizers(lifeform, (*finalizers, LIFEFORM_FINALIZER))


def with_finalizers(lifeform: Lifeform, finalizers: tuple[str, ...]) -> Lifeform:
    """The lifeform, held by these."""
    return msgspec.structs.replace(lifeform, metadata=msgspec.structs.replace(lifeform.metadata, finalizers=finalizers))

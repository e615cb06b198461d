"""From a Lifeform to the Contexts it wants, and back from its Contexts to its status: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from primordia.control.data import NO_VOLUMES, Volumes
from primordia.domain.conditions import Verdict
from primordia.domain.lifeforms import Member, context_object_name, phase_of, readiness
from primordia.domain.placement import Demand
from primordia.wire.conditions import FAILOVER_HELD, RECOVERED, find, is_dead, is_silent, merge
from primordia.wire.demand import demand_of
from primordia.wire.meta import (
    API_VERSION,
    LABEL_CONTEXT,
    LABEL_LIFEFORM,
    LABEL_NODE,
    LABEL_RACK,
    LABEL_SEGMENT,
    ObjectMeta,
    OwnerReference,
)
from primordia.wire.resources import (
    Context,
    ContextSpec,
    ContextSummary,
    ContextTemplate,
    Lifeform,
    LifeformStatus,
    Node,
    Recovered,
    Volume,
)

LIFEFORM_FINALIZER = "primordia.dev/contexts"
CONTEXT_FINALIZER = "primordia.dev/node"
_TERMINAL = ("Succeeded", "Failed")
_NOTHING = Demand()


@dataclass(frozen=True)
class Blueprint:
    """All of a context that its lifeform decides. Labels are sorted pairs, so that two compare."""

    spec: ContextSpec
    labels: tuple[tuple[str, str], ...]


def blueprints(lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes = NO_VOLUMES) -> dict[str, Blueprint]:
    """The contexts a placed lifeform wants, by name. `contexts` are those it has, `volumes` its volumes, which are bound.

    One that is being stopped keeps its template until it is: what it says is what it holds.
    """
    found = {}
    for template in lifeform.spec.contexts:
        known = contexts.get(template.name)
        stopping = known is not None and not is_to_run(lifeform) and held_by(known) != _NOTHING
        kept = known.spec.template if known is not None and stopping else template
        found[template.name] = _blueprint(lifeform, kept, volumes.get(template.name))
    return found


def blueprint_of(context: Context) -> Blueprint:
    """What a context is, to compare with what it should be."""
    return Blueprint(context.spec, tuple(sorted(context.metadata.labels.items())))


def new_context(lifeform: Lifeform, blueprint: Blueprint) -> Context:
    """A Context to create: owned by its lifeform, and kept by its node until nothing of it is left there."""
    meta = lifeform.metadata
    owner = OwnerReference(
        api_version=API_VERSION, kind=lifeform.KIND, name=meta.name, uid=meta.uid, controller=True, block_owner_deletion=True
    )
    return Context(
        metadata=ObjectMeta(
            name=context_object_name(meta.name, blueprint.spec.template.name),
            namespace=meta.namespace,
            labels=dict(blueprint.labels),
            owner_references=(owner,),
            finalizers=(CONTEXT_FINALIZER,),
        ),
        spec=blueprint.spec,
    )


def needs_of(lifeform: Lifeform, contexts: Mapping[str, Context]) -> tuple[Demand, Demand]:
    """What the lifeform needs, and what nobody else may have while it becomes what it wants to be.

    It needs what it wants and what it no longer wants but has not given back yet. Nothing is wanted while it is suspended,
    and nothing for a program that ended for good. A context that is changed makes room for its new self, but until then
    nobody else may have the larger of the two. Raises ValueError for a bad quantity.
    """
    needed = kept = _NOTHING
    templates = () if is_suspended(lifeform) else lifeform.spec.contexts
    for template in templates:
        known = contexts.get(template.name)
        want = _NOTHING if known is not None and _stays_over(lifeform, template, known) else demand_of(template)
        needed += want
        kept += want if known is None else want | held_by(known)
    wanted = {template.name for template in templates}
    for name, context in contexts.items():
        if name not in wanted:
            held = held_by(context)
            needed += held
            kept += held
    return needed, kept


def _stays_over(lifeform: Lifeform, template: ContextTemplate, context: Context) -> bool:
    """Whether its program has ended and is not started again, as it is with a new template or in a new epoch."""
    same = context.spec.template == template and context.spec.epoch == lifeform.status.epoch
    return lifeform.spec.restart_policy != "Always" and same and _is_over(context)


def total_held(contexts: Iterable[Context]) -> Demand:
    """What these contexts hold together."""
    return sum((held_by(context) for context in contexts), _NOTHING)


def _is_over(context: Context) -> bool:
    """Whether its program has ended for good. Under an older spec it may have: the new one starts it again."""
    return context.status.phase in _TERMINAL and context.status.observed_generation == context.metadata.generation


def is_suspended(lifeform: Lifeform) -> bool:
    """Whether it is to have no microVM."""
    return lifeform.spec.operating_mode == "Suspended"


def stands_for_move(lifeform: Lifeform) -> bool:
    """Whether it is to stand still until a move has handed its data over, or is given up."""
    moving = lifeform.status.moving
    return moving is not None and moving.phase in ("Stopping", "HandingOver")


def goal_of(lifeform: Lifeform | None) -> str:
    """The node that makes ready for a lifeform, and is to have its data, before it goes there; empty for none."""
    moving = lifeform.status.moving if lifeform is not None else None
    return moving.to if moving is not None and moving.phase in ("Seeding", "Stopping", "HandingOver") else ""


def is_to_run(lifeform: Lifeform) -> bool:
    """Whether its microVMs are wanted now."""
    return not is_suspended(lifeform) and not stands_for_move(lifeform)


def stands(context: Context) -> bool:
    """Whether there is no microVM, as far as its node has said."""
    return context.status.phase in (*_TERMINAL, "Pending", "Stopped")


def may_start(context: Context) -> bool:
    """Whether its node may start it, if it knows nothing newer: also one whose end is asked for, until the node lets it go."""
    return context.status.phase not in _TERMINAL or context.spec.restart_policy == "Always" or not _is_over(context)


def held_by(context: Context) -> Demand:
    """What a context keeps others from having: its share, while its microVM is wanted or may still be there."""
    holds = not stands(context) or (context.spec.wanted == "Running" and may_start(context))
    try:
        return demand_of(context.spec.template) if holds else _NOTHING
    except ValueError:
        return _NOTHING


def status_of(
    lifeform: Lifeform, contexts: Mapping[str, Context], scheduled: Verdict, node: Node | None, now: str
) -> LifeformStatus:
    """The lifeform's status. `contexts` are its own, by name; `now` is RFC 3339."""
    before = lifeform.status
    suspended = is_suspended(lifeform)
    members = [_member(contexts[name]) for name in _in_order(lifeform, contexts)]
    phase = phase_of(
        deleting=lifeform.metadata.deletion_timestamp is not None,
        suspended=suspended,
        placed=bool(before.node),
        members=members,
        complete=all(template.name in contexts for template in lifeform.spec.contexts),
        silent=node is not None and is_silent(node.status.conditions),
        dead=node is None or is_dead(node.status.conditions),
    )
    if phase == "Starting" and stands_for_move(lifeform):
        phase = "Moving"
    verdicts = [scheduled, readiness(phase, members), *_recovery(lifeform, node)]
    labels = node.metadata.labels if node is not None else {}
    return msgspec.structs.replace(
        before,
        phase=phase,
        rack=labels.get(LABEL_RACK, before.rack) if before.node else "",
        segment=labels.get(LABEL_SEGMENT, before.segment) if before.node else "",
        observed_generation=lifeform.metadata.generation,
        conditions=merge(before.conditions, verdicts, now, lifeform.metadata.generation),
        contexts=tuple(_summary(contexts[name]) for name in _in_order(lifeform, contexts)),
    )


def _recovery(lifeform: Lifeform, node: Node | None) -> list[Verdict]:
    """What is said of its recovery, as long as it is true: the failover's word, or that its node's death is not declared."""
    said = find(lifeform.status.conditions, RECOVERED)
    ready = find(node.status.conditions, "Ready") if node is not None else None
    if ready is not None and ready.reason == FAILOVER_HELD:
        return [Verdict(RECOVERED, "False", "Holding", ready.message)]
    if said is None:
        return []
    waits = said.status != "True" and (node is None or is_silent(node.status.conditions)) and said.reason != "Holding"
    if waits or (said.status == "True" and recovered_in(lifeform) is not None):
        return [Verdict(RECOVERED, said.status, said.reason, said.message)]
    return []


def recovered_in(lifeform: Lifeform) -> Recovered | None:
    """What it was recovered from, if its present epoch began so."""
    recovered = lifeform.status.recovered
    return recovered if recovered is not None and recovered.epoch == lifeform.status.epoch else None


def topology(node: Node) -> tuple[str, str, str]:
    """Node, rack and segment as the node's labels say."""
    labels = node.metadata.labels
    return labels.get(LABEL_NODE, node.metadata.name), labels.get(LABEL_RACK, ""), labels.get(LABEL_SEGMENT, "")


def _blueprint(lifeform: Lifeform, template: ContextTemplate, volume: Volume | None) -> Blueprint:
    spec, meta = lifeform.spec, lifeform.metadata
    labels = {**meta.labels, LABEL_LIFEFORM: meta.name, LABEL_CONTEXT: template.name}
    return Blueprint(
        ContextSpec(
            lifeform=meta.name,
            lifeform_uid=meta.uid,
            node=lifeform.status.node,
            epoch=lifeform.status.epoch,
            template=template,
            wanted="Running" if is_to_run(lifeform) else "Stopped",
            keep_memory=is_suspended(lifeform) and spec.keep_memory,
            restart_policy=spec.restart_policy,
            network=spec.network,
            termination_grace_period_seconds=spec.termination_grace_period_seconds,
            lifeform_labels=meta.labels,
            volume=volume.metadata.name if volume is not None else "",
            volume_uid=volume.metadata.uid if volume is not None else "",
            recovered=recovered_in(lifeform),
            next_node=goal_of(lifeform),
        ),
        tuple(sorted(labels.items())),
    )


def _in_order(lifeform: Lifeform, contexts: Mapping[str, Context]) -> Iterable[str]:
    """Contexts in the manifest's order; those it no longer has come last."""
    named = [template.name for template in lifeform.spec.contexts if template.name in contexts]
    return [*named, *sorted(set(contexts) - set(named))]


def _member(context: Context) -> Member:
    status = context.status
    return Member(context.spec.template.name, status.phase, status.ready, status.reason, status.message)


def _summary(context: Context) -> ContextSummary:
    status = context.status
    return ContextSummary(
        name=context.spec.template.name,
        phase=status.phase,
        ready=status.ready,
        ip=status.ip,
        restarts=status.restarts,
        image_digest=status.image_digest,
        message=status.message,
    )

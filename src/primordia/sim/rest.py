"""What must hold once the faults are over, nobody asks for anything, and nothing has changed for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from primordia.sim import counting
from primordia.sim.checkers import attracts, is_ready
from primordia.sim.counting import Sum
from primordia.sim.data_rest import data_fits, data_problems
from primordia.sim.history import State
from primordia.wire.conditions import find
from primordia.wire.resources import Context, Lifeform, Node


def problems_at_rest(state: State) -> Iterator[tuple[str, str]]:
    """What is wrong, as a checker's name and a sentence."""
    yield from _orphans(state)
    yield from data_problems(state)
    used = _used(state)
    for lifeform in sorted(state.lifeforms.values(), key=lambda each: each.metadata.name):
        if lifeform.metadata.deletion_timestamp is not None:
            yield "Deletion", f"{lifeform.metadata.name} is still being deleted."
        elif not lifeform.status.node:
            yield from _unplaced(lifeform, state, used)
        else:
            yield from _placed(lifeform, state, used)


def _orphans(state: State) -> Iterator[tuple[str, str]]:
    for context in state.all_contexts():
        if context.spec.lifeform_uid not in state.lifeforms:
            yield "Orphans", f"{context.metadata.name} outlived its lifeform."


def _used(state: State) -> dict[str, Sum]:
    used: dict[str, Sum] = {}
    for uid, lifeform in state.lifeforms.items():
        node = lifeform.status.node
        used[node] = used.get(node, Sum()).plus(counting.held(state.contexts_of(uid)))
    return used


def _unplaced(lifeform: Lifeform, state: State, used: dict[str, Sum]) -> Iterator[tuple[str, str]]:
    name = lifeform.metadata.name
    wanted = counting.wanted(lifeform)
    if wanted is not None:
        for node in state.nodes.values():
            free = counting.of_capacity(node.status.allocatable).minus(used.get(node.metadata.name, Sum()))
            if _may_go(lifeform, node, state) and data_fits(lifeform, node, state) and not wanted.exceeds(free):
                yield "Placed", f"{name} waits, and {node.metadata.name} has room for {wanted}: {free}."
    yield from _explained(lifeform, state)


def _may_go(lifeform: Lifeform, node: Node, state: State) -> bool:
    if not is_ready(node) or node.spec.unschedulable:
        return False
    if not lifeform.spec.node_selector.items() <= node.metadata.labels.items():
        return False
    if lifeform.spec.colocate_with is None:
        return True
    return any(
        other.status.node == node.metadata.name and other.metadata.uid != lifeform.metadata.uid and attracts(lifeform, other)
        for other in state.lifeforms.values()
    )


def _explained(lifeform: Lifeform, state: State) -> Iterator[tuple[str, str]]:
    """Somebody who asks why gets an answer: a condition that is about the present manifest, and an event that says the same."""
    name = lifeform.metadata.name
    scheduled = find(lifeform.status.conditions, "Scheduled")
    if scheduled is None or scheduled.status != "False" or not scheduled.message:
        yield "Explained", f"{name} waits, and its status does not say why."
    elif scheduled.observed_generation != lifeform.metadata.generation:
        yield "Explained", f"{name} waits, and its status is about an older manifest."
    elif not any(event.involved_object.uid == lifeform.metadata.uid and event.type == "Warning" for event in state.events):
        yield "Explained", f"{name} waits, and no event tells of it."


def _placed(lifeform: Lifeform, state: State, used: dict[str, Sum]) -> Iterator[tuple[str, str]]:
    """Every context is as the manifest says and has come to rest, or the change waits for room and says so."""
    name = lifeform.metadata.name
    contexts = {context.spec.template.name: context for context in state.contexts_of(lifeform.metadata.uid)}
    different = list(_differences(lifeform, contexts))
    if not different:
        yield from _restless(lifeform, contexts.values())
        return
    wanted = counting.wanted(lifeform)
    node = state.nodes.get(lifeform.status.node)
    if node is not None and wanted is not None and data_fits(lifeform, node, state):
        others = used.get(lifeform.status.node, Sum()).minus(counting.held(contexts.values()))
        if not wanted.exceeds(counting.of_capacity(node.status.allocatable).minus(others)):
            yield "Converged", f"{name} is not as its manifest says: {', '.join(different)}."
    yield from _explained(lifeform, state)


def _differences(lifeform: Lifeform, contexts: dict[str, Context]) -> Iterator[str]:
    templates = {template.name: template for template in lifeform.spec.contexts}
    wanted = "Stopped" if lifeform.spec.operating_mode == "Suspended" else "Running"
    for name in sorted(templates.keys() | contexts.keys()):
        if name not in contexts:
            yield f"{name} is missing"
        elif name not in templates:
            yield f"{name} is too many"
        elif contexts[name].spec.template != templates[name] or contexts[name].spec.wanted != wanted:
            yield f"{name} is of an older manifest"
        elif contexts[name].spec.node != lifeform.status.node:
            yield f"{name} is on {contexts[name].spec.node}"


def _restless(lifeform: Lifeform, contexts: Collection[Context]) -> Iterator[tuple[str, str]]:
    good = ("Stopped", "Succeeded") if lifeform.spec.operating_mode == "Suspended" else ("Running", "Succeeded")
    for context in contexts:
        if context.status.phase not in good:
            yield "Converged", f"{context.metadata.name} is {context.status.phase}, {context.status.message or 'silently'}."
    summaries = {summary.name: summary.phase for summary in lifeform.status.contexts}
    if summaries != {context.spec.template.name: context.status.phase for context in contexts}:
        yield "Converged", f"{lifeform.metadata.name} does not show its contexts as they are."

"""Which microVM a request for a stream means, and where it is: a context itself, or a lifeform's first or named one.

A request that comes by way of another node names a context of this one by uid, and is never passed on: two nodes that
disagree about where a context is cannot send a request around in circles.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from primordia.api.errors import RequestError
from primordia.api.paths import Target
from primordia.api.services import Services
from primordia.domain.lifeforms import context_object_name
from primordia.kit.errors import NotFoundError, TemporaryError
from primordia.ports.contexts import Contexts
from primordia.registry import keys
from primordia.wire.resources import Context, Lifeform


@dataclass(frozen=True)
class Place:
    """A context by uid, and the body of the contexts port that reaches it."""

    uid: str
    contexts: Contexts


async def place_of(request: web.BaseRequest, target: Target, services: Services) -> Place:
    """Where the context is. Raises what `_context_of` raises, TemporaryError when its node has no address yet."""
    if target.uid:
        return Place(target.uid, services.contexts)
    context = await _context_of(request, target, services)
    return Place(context.metadata.uid, services.on_node(context.spec.node))


async def _context_of(request: web.BaseRequest, target: Target, services: Services) -> Context:
    """The context. Raises NotFoundError, RequestError for a container that it has not, TemporaryError before its time."""
    if target.kind is Context:
        context = await services.registry.get(Context, target.name, target.namespace)
        _check_container(request, (context.spec.template.name,), keys.describe(Context, target.name, target.namespace))
        return context
    lifeform = services.lifeforms.get(target.name, target.namespace)
    if lifeform is None:
        lifeform = await services.registry.get(Lifeform, target.name, target.namespace)
    words = keys.describe(Lifeform, target.name, target.namespace)
    names = tuple(context.name for context in lifeform.spec.contexts)
    chosen = _check_container(request, names, words)
    try:
        return await services.registry.get(Context, context_object_name(target.name, chosen), target.namespace)
    except NotFoundError as error:
        phase = lifeform.status.phase
        raise TemporaryError(
            f"{words} has no microVM for its context {chosen!r} now (its phase is {phase}).",
            remedy=f"See `primordia describe lifeform {target.name}`.",
        ) from error


async def sole_context(request: web.BaseRequest, target: Target, services: Services) -> Context:
    """The same where a guess would be dangerous: of a lifeform with several contexts, one must be named."""
    if target.kind is Lifeform and not request.query.get("container", ""):
        lifeform = await services.registry.get(Lifeform, target.name, target.namespace)
        names = [each.name for each in lifeform.spec.contexts]
        if len(names) > 1:
            raise RequestError(
                400,
                f"{keys.describe(Lifeform, target.name, target.namespace)} has {len(names)} contexts.",
                remedy=f"Name one of them: {', '.join(f'{target.name}/{each}' for each in names)}.",
            )
    return await _context_of(request, target, services)


def _check_container(request: web.BaseRequest, names: tuple[str, ...], words: str) -> str:
    chosen = request.query.get("container", "") or names[0]
    if chosen not in names:
        raise RequestError(400, f"{words} has no context {chosen[:80]!r}.", remedy=f"It has {', '.join(names)}.")
    return chosen

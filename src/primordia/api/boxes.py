"""Claims of boxes and live forks: asked of any API server, done by the node that has the template or the parent.

No controller is waited for: the server picks the node (`domain/claiming.py`), asks it over its own body of the forks port,
and answers when the guests have confirmed who they are. A request that comes by way of another node is never passed on.
A client that leaves cancels what it asked for, here and on the other node.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import msgspec
from aiohttp import web

from primordia.api import bodies
from primordia.api.answers import document_answer
from primordia.api.errors import RequestError
from primordia.api.hosts import Boxes
from primordia.api.paths import Target
from primordia.api.services import Services
from primordia.api.targets import sole_context
from primordia.kit.errors import CapacityError, NotFoundError, TemporaryError, UnsupportedError
from primordia.ports import forks as port
from primordia.ports.guest import Program
from primordia.registry import keys
from primordia.wire import boxes as wire
from primordia.wire.problems import InvalidResourceError, Problems
from primordia.wire.resources import Context, Template

_LARGEST_BYTES = 256 * 1024
_MOST_ASKED = 3
T = TypeVar("T")

# ---------------------------------------------------------------- claims


async def claim(request: web.BaseRequest, target: Target, services: Services) -> web.Response:
    """A box in the namespace, from whichever node can give one."""
    boxes = _boxes(services)
    wanted = await _read(request, wire.BoxRequest)
    _refuse(wire.problems_of_box(wanted), "Box", wanted.name)
    template = await _template(wanted.template, services)
    claimed = await _claim_somewhere(boxes, template, _asked_claim(wanted, target.namespace))
    context = claimed.context or await services.registry.get(Context, claimed.name, target.namespace)
    return document_answer(wire.BoxAnswer(context=context, warm=claimed.warm, confirmed_ms=claimed.confirmed_ms), code=201)


async def claim_here(request: web.BaseRequest, services: Services) -> web.Response:
    """A box of this very node, for another one."""
    boxes = _boxes(services)
    wanted = await _read(request, wire.ClaimRequest)
    _refuse(wire.problems_of_box(wanted), "Box", wanted.name)
    claimed = await boxes.local.claim(_asked_claim(wanted, wanted.namespace))
    answer = wire.Claimed(
        name=claimed.name,
        uid=claimed.uid,
        node=claimed.node,
        warm=claimed.warm,
        confirmed_ms=claimed.confirmed_ms,
        context=claimed.context,
    )
    return document_answer(answer, code=201)


def _asked_claim(wanted: wire.BoxRequest, namespace: str) -> port.ClaimRequest:
    return port.ClaimRequest(
        namespace=namespace,
        template=wanted.template,
        name=wanted.name,
        ttl_s=wanted.ttl_seconds,
        labels=wanted.labels,
        egress=wanted.egress,
    )


async def _template(name: str, services: Services) -> Template:
    known = _boxes(services).templates.get(name)
    if known is not None:
        return known
    try:
        return await services.registry.get(Template, name)
    except NotFoundError as error:
        raise NotFoundError(
            f"{keys.describe(Template, name)} does not exist.",
            remedy=f"See `primordia template ls`, or make it with `primordia template create {name} --image IMAGE`.",
        ) from error


async def _claim_somewhere(boxes: Boxes, template: Template, wanted: port.ClaimRequest) -> port.Claimed:
    """Ask node after node. Whatever a node fails with leaves nothing, so that the next may be asked for the same."""
    refusals: list[CapacityError | NotFoundError | TemporaryError] = []
    for node in boxes.candidates(template)[:_MOST_ASKED]:
        try:
            with boxes.asking(wanted.template, node):
                return await boxes.on_node(node).claim(wanted)
        except (CapacityError, NotFoundError, TemporaryError) as error:
            refusals.append(error)
    if not refusals:
        raise TemporaryError("No node takes boxes now: none is Ready and not cordoned.", remedy="See `primordia node ls`.")
    # What may pass is the better thing to say: who is told that there is no room does not try again.
    raise next((each for each in refusals if isinstance(each, TemporaryError)), refusals[0])


# ---------------------------------------------------------------- forks


async def fork(request: web.BaseRequest, target: Target, services: Services) -> web.Response:
    """Fork a running context; the answer tells what became of each child."""
    boxes = _boxes(services)
    wanted = await _read(request, wire.ForkRequest)
    _refuse(wire.problems_of_fork(wanted), "Fork", "")
    if target.uid:
        forks, uid = boxes.local, target.uid
    else:
        parent = await sole_context(request, target, services)
        forks, uid = boxes.on_node(parent.spec.node), parent.metadata.uid
    return document_answer(_told_report(await forks.fork(uid, _asked_fork(wanted))))


async def promote(request: web.BaseRequest, target: Target, services: Services) -> web.Response:
    """Make a fork with data a lifeform of its own."""
    boxes = _boxes(services)
    wanted = await _read(request, wire.PromoteRequest)
    _refuse(wire.problems_of_promotion(wanted), "Lifeform", wanted.name)
    if target.uid:
        forks, uid = boxes.local, target.uid
    else:
        child = await services.registry.get(Context, target.name, target.namespace)
        forks, uid = boxes.on_node(child.spec.node), child.metadata.uid
    promoted = await forks.promote(uid, wanted.name)
    return document_answer(wire.Promoted(**dataclasses.asdict(promoted)), code=201)


def _asked_fork(wanted: wire.ForkRequest) -> port.ForkRequest:
    env = tuple((each.name, each.value) for each in wanted.env)
    return port.ForkRequest(
        count=wanted.count,
        ttl_s=wanted.ttl_seconds,
        lifetime=wanted.lifetime,
        inherit_secrets=wanted.inherit_secrets,
        program=Program(wanted.command, env, wanted.working_dir, wanted.user) if wanted.command else None,
    )


def _told_report(report: port.ForkReport) -> wire.ForkReport:
    children = tuple(wire.ForkOutcome(**dataclasses.asdict(each)) for each in report.children)
    return wire.ForkReport(pause_ms=report.pause_ms, copied_bytes=report.copied_bytes, children=children)


# ---------------------------------------------------------------- bodies


def _boxes(services: Services) -> Boxes:
    if services.boxes is None:
        raise UnsupportedError("This server makes no boxes and no forks.", remedy="Ask another node of the soup.")
    return services.boxes


async def _read(request: web.BaseRequest, kind: type[T]) -> T:
    content = await bodies.read(request, _LARGEST_BYTES)
    try:
        return msgspec.json.decode(content or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RequestError(400, f"The body is not as it should be: {error}.") from error


def _refuse(problems: Problems, kind: str, name: str) -> None:
    if problems.found:
        raise InvalidResourceError(kind, name, problems.found)

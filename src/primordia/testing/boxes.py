"""A small body of the forks port: its boxes are Contexts in a registry, and their insides a `LocalContexts`.

It confirms at once, counts what waits, and fails as it is told to. What it cannot do is fork anything.
"""

from __future__ import annotations

import asyncio
import datetime
from collections import deque

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.errors import AlreadyExistsError, NotFoundError, PrimordiaError
from primordia.kit.ids import suffix
from primordia.ports.forks import Claimed, ClaimRequest, ForkOutcome, ForkReport, ForkRequest, Promoted
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.wire.meta import LABEL_PARENT, LABEL_TEMPLATE, Condition, ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextSpec,
    ContextStatus,
    ContextTemplate,
    Lifeform,
    LifeformSpec,
    Node,
    NodeStatus,
    Template,
    TemplateNode,
    TemplateSpec,
    TemplateStatus,
)


class LocalForks:
    """The forks port of node `node`. `uids` is where its boxes are made known to whoever reaches into them.

    Each of `refusals` fails one request, the children beyond `room` fail each by itself. While `go_on` is not set requests
    wait (`waiting` is set); `given_up` is set when one was cancelled meanwhile.
    """

    def __init__(self, registry: Registry, clock: Clock, node: str, uids: set[str]) -> None:
        self.node = node
        self.uids = uids
        self.warm = 0
        self.room = 1000
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.waiting = asyncio.Event()
        self.given_up = asyncio.Event()
        self.refusals: deque[PrimordiaError] = deque()
        self.claims: list[ClaimRequest] = []
        self.forks: list[tuple[str, ForkRequest]] = []
        self._registry = registry
        self._clock = clock

    async def claim(self, request: ClaimRequest) -> Claimed:
        self.claims.append(request)
        await self._begin()
        template = await self._registry.get(Template, request.template)
        warm, self.warm = self.warm > 0, max(0, self.warm - 1)
        spec = ContextSpec(
            node=self.node,
            epoch=1,
            template=ContextTemplate(name="main", image=template.spec.image),
            from_template=request.template,
            expires_at=self._in(request.ttl_s),
        )
        labels = {**request.labels, LABEL_TEMPLATE: request.template}
        name = request.name or f"{request.template}-{suffix()}"
        box = await self._created(name, request.namespace, labels, spec, "warm" if warm else "cold")
        return Claimed(box.metadata.name, box.metadata.uid, self.node, warm, 1.5, box)

    async def fork(self, uid: str, request: ForkRequest) -> ForkReport:
        self.forks.append((uid, request))
        await self._begin()
        found = [each for each in (await self._registry.list(Context)).items if each.metadata.uid == uid]
        if not found or uid not in self.uids:
            raise NotFoundError(f"This node does not run the context {uid}.")
        children = [await self._child(found[0], request, index) for index in range(request.count)]
        return ForkReport(pause_ms=2.5, copied_bytes=4096, children=tuple(children))

    async def promote(self, uid: str, name: str) -> Promoted:
        """Only the lifeform comes to be: data is beyond what a local body has."""
        await self._begin()
        (child,) = [each for each in (await self._registry.list(Context)).items if each.metadata.uid == uid]
        spec = LifeformSpec(contexts=(child.spec.template,))
        meta = ObjectMeta(name=name, namespace=child.metadata.namespace)
        lifeform = await self._registry.create(Lifeform(metadata=meta, spec=spec))
        await self._registry.delete(Context, child.metadata.name, child.metadata.namespace, uid=uid)
        return Promoted(name, lifeform.metadata.uid, f"{name}.{child.spec.template.name}", self.node, 4096, 1.5)

    async def _child(self, parent: Context, request: ForkRequest, index: int) -> ForkOutcome:
        if index >= self.room:
            return ForkOutcome(reason="InsufficientCapacity", message="There is no room for another fork.")
        spec = msgspec.structs.replace(
            parent.spec,
            lifeform="",
            lifeform_uid="",
            parent=parent.metadata.name,
            parent_uid=parent.metadata.uid,
            depth=parent.spec.depth + 1,
            lifetime="keep" if request.lifetime == "keep" else "parent",
            expires_at=self._in(request.ttl_s),
        )
        name = f"{parent.metadata.name}-{suffix()}"
        child = await self._created(name, parent.metadata.namespace, {LABEL_PARENT: parent.metadata.name}, spec, "cold")
        return ForkOutcome(child.metadata.name, child.metadata.uid, 10.0 + index)

    async def _created(self, name: str, namespace: str, labels: dict[str, str], spec: ContextSpec, came: str) -> Context:
        status = ContextStatus(phase="Running", ready=True, started_from=came, confirmed=("clock", "entropy"))
        meta = ObjectMeta(name=name, namespace=namespace, labels=labels)
        try:
            box = await self._registry.create(Context(metadata=meta, spec=spec, status=status))
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"Context {namespace}/{name} exists already.") from error
        self.uids.add(box.metadata.uid)
        return box

    async def _begin(self) -> None:
        self.waiting.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        if self.refusals:
            raise self.refusals.popleft()

    def _in(self, ttl_s: float) -> str:
        return timestamp(self._clock.wall() + datetime.timedelta(seconds=ttl_s)) if ttl_s else ""


def ready_node(name: str, *, ready: str = "True") -> Node:
    """A node that takes boxes; or, with another word for `ready`, none."""
    return Node(metadata=ObjectMeta(name=name), status=NodeStatus(conditions=(Condition(type="Ready", status=ready),)))


def ready_template(name: str, *nodes: TemplateNode, image: str = "busybox") -> Template:
    """A template that is ready on these nodes."""
    status = TemplateStatus(phase="Ready", observed_generation=1, nodes=nodes)
    return Template(metadata=ObjectMeta(name=name), spec=TemplateSpec(image=image), status=status)

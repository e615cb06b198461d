"""The Node object: made and kept by the node itself.

Nothing is written while nothing changes: figures that move all the time (free memory) are not in it, and the look at the
machine every half minute writes only when its answer is another one. Whether the node lives is told by its lease, not here:
what the controllers have said of a node without one (Ready is Unknown) stands until they say that it is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

import msgspec

from primordia import __version__
from primordia.domain.conditions import Verdict
from primordia.domain.placement import Demand
from primordia.kit.deadline import wait_event
from primordia.kit.errors import AlreadyExistsError, PrimordiaError
from primordia.kit.units import human_bytes
from primordia.node.services import Services
from primordia.node.status import StatusWriter
from primordia.node.volumes.pool import summary_of
from primordia.ports.vmm import VmmInfo
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.registry.rules import timestamp
from primordia.wire.conditions import find, is_silent, merge
from primordia.wire.demand import capacity_of, demand_of
from primordia.wire.meta import LABEL_NODE, LABEL_RACK, LABEL_SEGMENT, ObjectMeta
from primordia.wire.resources import Context, Node, NodeSpec, NodeStatus

log = logging.getLogger(__name__)

_RETRY_S = 2.0
_GATHER_S = 0.2
_SHARE_S = 1.0
"""For what its contexts have been given to be summed up: it promises nothing, and starts need the processors."""
_MOST_IMAGES = 100

Verdicts = Callable[[], Sequence[Verdict]]
"""What other parts of the machine have to say of the node, asked at each look."""


class NodeKeeper:
    """Keeps this node's object true. `others` are conditions that are not the node's own to judge, `expecting` the contexts
    that may come."""

    def __init__(
        self,
        services: Services,
        informers: Informers,
        writer: StatusWriter,
        others: Verdicts,
        expecting: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._expecting = expecting
        self._services = services
        self._others = others
        self._nodes = informers.of(Node)
        self._contexts = informers.of(Context)
        self._contexts.index("node", lambda context: context.spec.node)
        self._writer = writer
        self._wake = asyncio.Event()
        self._due_s = math.inf
        self._info: VmmInfo | None = None
        self._images: tuple[str, ...] | None = None

    def look(self) -> None:
        """Look soon: something of what others have to say has changed."""
        self._look_in(_GATHER_S)

    async def run(self) -> None:
        """Keep the object until cancelled."""
        if self._services.lease is not None:
            # Another node may have our name: its object is not ours to write.
            await self._services.lease.held()
        await self._nodes.synced()
        await self._contexts.synced()
        self._nodes.subscribe(self._on_node)
        self._contexts.subscribe(self._on_context)
        while True:
            self._due_s = math.inf
            try:
                node, status = await self._present(), await self._status()
                if status != node.status:
                    self._writer.put(node, status, _amended)
                pause_s = self._services.settings.check_interval_s
            except PrimordiaError as error:
                log.warning("the node's object waits: %s", error)
                pause_s = _RETRY_S
            if not await self._asked(pause_s):
                self._images = None

    async def _asked(self, pause_s: float) -> bool:
        """Wait until a look is due; whether somebody wanted it."""
        clock = self._services.clock
        rested_s = clock.boottime() + pause_s
        while (now_s := clock.boottime()) < (due_s := min(rested_s, self._due_s)):
            self._wake.clear()
            await wait_event(clock, self._wake, due_s - now_s)
        return self._due_s <= now_s

    def _look_in(self, seconds: float) -> None:
        due_s = self._services.clock.boottime() + seconds
        if due_s < self._due_s:
            self._due_s = due_s
            self._wake.set()

    async def _present(self) -> Node:
        """The object, made or brought up to date; what a user set (labels of their own, cordon) stays."""
        config = self._services.config
        wanted = {LABEL_NODE: config.name, LABEL_RACK: config.rack, LABEL_SEGMENT: config.segment}
        node = self._nodes.get(config.name)
        if node is None:
            meta = ObjectMeta(name=config.name, labels=wanted)
            try:
                return await self._services.registry.create(Node(metadata=meta, spec=NodeSpec(pod_cidr=config.pod_cidr)))
            except AlreadyExistsError:
                node = await self._services.registry.get(Node, config.name)
        if node.metadata.labels | wanted == node.metadata.labels and node.spec.pod_cidr == config.pod_cidr:
            return node
        return await self._services.registry.mutate(
            Node, config.name, "", lambda stored: _renewed(stored, wanted, config.pod_cidr)
        )

    async def _status(self) -> NodeStatus:
        services = self._services
        config, host, settings = services.config, services.host, services.settings
        stored = self._nodes.get(config.name)
        size, free = host.disk(services.paths.state)
        memory = config.memory_bytes or host.memory_total()
        capacity = Demand(config.cpu_milli or host.cpus() * 1000, memory, settings.most_contexts)
        allocatable = Demand(
            int(capacity.cpu_milli * config.overcommit_cpu),
            max(0, memory - (0 if config.memory_bytes else settings.memory_reserve_bytes)),
            capacity.contexts,
        )
        pool, pool_ready = await summary_of(services.volumes, services.no_pool)
        verdicts = [await self._ready(), _disk_pressure(free, settings.disk_reserve_bytes), pool_ready, *self._others()]
        info = self._info
        if self._images is None:
            self._images = tuple(image.root.source for image in await services.images.list())[:_MOST_IMAGES]
        return NodeStatus(
            capacity=capacity_of(capacity, config.disk_bytes or size),
            allocatable=capacity_of(allocatable, max(0, (config.disk_bytes or size) - settings.disk_reserve_bytes)),
            allocated=capacity_of(self._allocated()),
            conditions=merge(
                stored.status.conditions if stored is not None else (), verdicts, timestamp(services.clock.wall())
            ),
            address=config.address,
            api_endpoint=f"https://{config.host_address}:{config.api_port}",
            version=__version__,
            boot_id=host.boot_id(),
            accelerator=info.accelerator if info is not None else "",
            accelerator_reason=info.accelerator_reason if info is not None else "",
            vmm_version=f"{info.name} {info.version}" if info is not None else "",
            kernel_version=config.tools.kernel_version,
            images=self._images,
            pool=pool,
            expecting=self._expecting(),
        )

    async def _ready(self) -> Verdict:
        if self._info is None:
            try:
                self._info = await self._services.vmm.info()
            except PrimordiaError as error:
                return Verdict("Ready", "False", error.reason, f"No microVM can be started: {error}")
        return Verdict("Ready", "True", "NodeReady")

    def _allocated(self) -> Demand:
        total = Demand()
        for context in self._contexts.by_index("node", self._services.config.name):
            if context.spec.wanted == "Running" and context.status.phase not in ("Succeeded", "Failed"):
                try:
                    total += demand_of(context.spec.template)
                except ValueError:
                    continue
        return total

    def _on_node(self, change: Change[Node]) -> None:
        about = change.new or change.old
        if about is None or about.metadata.name != self._services.config.name:
            return
        if change.new is None or change.old is None or change.old.metadata != change.new.metadata:
            self._look_in(_GATHER_S)

    def _on_context(self, change: Change[Context]) -> None:
        if _share(change.old) != _share(change.new):
            self._look_in(_SHARE_S)


def _share(context: Context | None) -> object:
    """What of a context counts for its node."""
    if context is None:
        return None
    over = context.status.phase in ("Succeeded", "Failed")
    return context.spec.node, context.spec.wanted, context.spec.template.resources, over


def _amended(stored: NodeStatus, wanted: NodeStatus) -> NodeStatus:
    """The node's own view, with what was said of its silence."""
    if not is_silent(stored.conditions):
        return wanted
    said = find(stored.conditions, "Ready")
    others = (condition for condition in wanted.conditions if condition.type != "Ready")
    return msgspec.structs.replace(wanted, conditions=(*((said,) if said is not None else ()), *others))


def _renewed(stored: Node, labels: dict[str, str], pod_cidr: str) -> Node:
    meta = msgspec.structs.replace(stored.metadata, labels=stored.metadata.labels | labels)
    return msgspec.structs.replace(stored, metadata=meta, spec=msgspec.structs.replace(stored.spec, pod_cidr=pod_cidr))


def _disk_pressure(free: int, reserve: int) -> Verdict:
    if free < reserve:
        return Verdict("DiskPressure", "True", "DiskNearlyFull", f"Only {human_bytes(free)} are free; nothing is started.")
    return Verdict("DiskPressure", "False", "DiskHasRoom")

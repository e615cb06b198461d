"""Keeps the node's network equal to what the resources ask for: looks at all of it after every change, applies it whole.

Changes that come together are applied once: those that nothing depends on yet, as an address that has no microVM, wait for
one that matters, or until somebody waits for them. A context's program is started only behind an `apply` that knew the
context, so that it never meets a network that does not know it yet.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Protocol

from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.node import policy
from primordia.ports.network import Endpoint, Network, NetworkState, PublicationFault
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.resources import Context

log = logging.getLogger(__name__)


class Residents(Protocol):
    """The node's own word for what is on it, which goes before what the registry says."""

    def addresses(self) -> Mapping[str, str]:
        """Addresses of its contexts, by uid."""

    def links(self) -> Mapping[str, str]:
        """What their TAPs are called, by uid, where that is another name."""

    def newcomers(self) -> tuple[Context, ...]:
        """Its contexts that the registry may not tell of yet."""

    def waiting(self) -> tuple[Endpoint, ...]:
        """Forks that are nobody yet."""


Tell = Callable[[Mapping[str, tuple[str, ...]]], None]
"""Hears of the publications that could not be made, by uid."""

_GATHER_S, _LAZY_S = 0.02, 0.25
_RETRY_S = 5.0
_FAULTS_AGAIN_S = 30.0


class NetworkKeeper:
    """One node's."""

    def __init__(self, network: Network, informers: Informers, clock: Clock, node: str) -> None:
        self._network = network
        self._informer = informers.of(Context)
        self._clock = clock
        self._node = node
        self._state: NetworkState | None = None
        self._wake = asyncio.Event()
        self._wanted = 0
        self._done = 0
        self._applied = asyncio.Event()
        self._due_s = math.inf
        self._sooner = asyncio.Event()

    def changed(self, *, lazily: bool = False) -> None:
        """Something the network depends on has changed; `lazily`, where more will that has to be applied in any case."""
        self._wanted += 1
        self._wake.set()
        self._apply_by(self._clock.boottime() + (_LAZY_S if lazily else _GATHER_S))

    def hurry(self) -> None:
        """Wait for no more changes: somebody needs those that are there."""
        self._apply_by(self._clock.boottime())

    async def settled(self) -> None:
        """Wait until everything that has changed so far is applied."""
        mark = self._wanted
        if self._done < mark:
            self.hurry()
        while self._done < mark:
            self._applied.clear()
            await self._applied.wait()

    async def run(self, here: Residents, tell: Tell) -> None:
        """Apply until cancelled. Begins when the contexts are known: before, an earlier daemon's network stays as it is."""
        await self._informer.synced()
        self._informer.subscribe(self._on_context)
        self.changed()
        while True:
            await self._wake.wait()
            await self._gather()
            self._wake.clear()
            mark = self._wanted
            again_s = await self._apply(here, tell)
            if again_s == 0:
                self._finish(mark)
            elif again_s == _FAULTS_AGAIN_S:
                self._finish(mark)
                await self._rest(again_s)
            else:
                await self._clock.sleep(again_s)
                self._wake.set()

    def _apply_by(self, due_s: float) -> None:
        if due_s < self._due_s:
            self._due_s = due_s
            self._sooner.set()

    async def _gather(self) -> None:
        while self._clock.boottime() < self._due_s < math.inf:
            self._sooner.clear()
            await wait_event(self._clock, self._sooner, self._due_s - self._clock.boottime())
        self._due_s = math.inf

    def _finish(self, mark: int) -> None:
        self._done = mark
        self._applied.set()

    async def _rest(self, seconds: float) -> None:
        """A port that is taken may become free without anybody telling: look again, unless a change comes first."""
        if not await wait_event(self._clock, self._wake, seconds):
            self._state = None
            self._wake.set()

    async def _apply(self, here: Residents, tell: Tell) -> float:
        """Apply what is wanted now; 0, or the seconds after which to apply again."""
        contexts = (*self._informer.items(), *here.newcomers())
        decision = policy.decide(self._node, contexts, here.addresses(), links=here.links(), waiting=here.waiting())
        faults: tuple[PublicationFault, ...] = ()
        if decision.state != self._state:
            try:
                faults = await self._network.apply(decision.state)
            except PrimordiaError as error:
                log.warning("the network could not be changed: %s", error)
                self._state = None
                return _RETRY_S
            self._state = decision.state if not faults else None
        tell(_by_uid((*decision.faults, *faults)))
        return _FAULTS_AGAIN_S if faults else 0

    def _on_context(self, change: Change[Context]) -> None:
        own = change.new is not None and change.new.spec.node == self._node
        if _relevant(change.old, own=own) != _relevant(change.new, own=own):
            self.changed(lazily=own and change.old is None)


def _relevant(context: Context | None, *, own: bool) -> object:
    """What the policy reads of a context. The addresses of a node's `own` it knows itself; others' have no part without one."""
    if context is None or not (own or context.status.ip):
        return None
    spec = context.spec
    return (
        context.metadata.uid,
        spec.node,
        spec.network,
        spec.lifeform_labels,
        spec.template.ports,
        "" if own else context.status.ip,
    )


def _by_uid(faults: tuple[PublicationFault, ...]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for fault in faults:
        found[fault.publication.uid] = (*found.get(fault.publication.uid, ()), fault.message)
    return found

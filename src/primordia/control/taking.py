"""Takes lifeforms over from dead nodes: each in one transaction, which a node that lives or an object that has changed refuses.

A transaction whose outcome is unknown may have been carried out. So what was promised on the new node stays promised until the
registry has said where the lifeform is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from primordia.control.lost import Claim, Estate, taken_over, with_recovered
from primordia.control.remains import death_guards
from primordia.control.scheduler import Key, Scheduler
from primordia.domain.conditions import Verdict
from primordia.domain.lost import Park, Taken
from primordia.kit.errors import PrimordiaError
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.ownership import owner_put
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.registry.together import write_together
from primordia.wire.conditions import RECOVERED, find
from primordia.wire.resources import Context, Lifeform, Node, Volume

log = logging.getLogger(__name__)

_PARALLEL = 16


@dataclass
class Takeover:
    """One lifeform for one node, and `done` once that is written."""

    estate: Estate
    node: str
    taken: tuple[Taken, ...]
    message: str
    onto: str = ""
    done: bool = False


class Taker:
    """Writes takeovers, and what is waited for. `wake` has a lifeform looked at."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        scheduler: Scheduler,
        events: EventRecorder,
        wake: Callable[[Key], None],
    ) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._events = events
        self._wake = wake
        self._clock = registry.clock
        self._lifeforms = informers.of(Lifeform)
        self._contexts = informers.of(Context)
        self._volumes = informers.of(Volume)
        self._nodes = informers.of(Node)

    async def carry_out(self, takeovers: Sequence[Takeover], parked: Sequence[tuple[Estate, Park]]) -> bool:
        """Write all of it; whether all takeovers were done."""
        gate = asyncio.Semaphore(_PARALLEL)
        # Before anything is awaited: nobody else is to decide about them meanwhile.
        self._scheduler.in_flight.update(each.estate.lifeform.metadata.uid for each in takeovers)
        await asyncio.gather(*(self._take_over(gate, each) for each in takeovers))
        await asyncio.gather(*(self._park(gate, *each) for each in parked))
        return all(each.done for each in takeovers)

    async def _take_over(self, gate: asyncio.Semaphore, takeover: Takeover) -> None:
        meta = takeover.estate.lifeform.metadata
        try:
            async with gate:
                await self._write(takeover)
        except PrimordiaError as error:
            log.info("%s/%s is not recovered on %s yet: %s", meta.namespace, meta.name, takeover.node, error)
            await self._settle(takeover.estate.lifeform)
        finally:
            self._scheduler.in_flight.discard(meta.uid)
            self._wake((meta.namespace, meta.name))

    async def _write(self, takeover: Takeover) -> None:
        node = self._nodes.get(takeover.node)
        if node is None:
            return
        now = timestamp(self._clock.wall())
        nodes = {each.metadata.name: each for each in self._nodes.items()}
        claim = Claim(node, takeover.taken, takeover.message, takeover.onto)
        pairs = taken_over(takeover.estate, claim, nodes, now)
        after = pairs[0][1]
        assert isinstance(after, Lifeform)
        owner = owner_put(after.metadata.uid, takeover.node, after.status.epoch)
        for written in await write_together(self._registry, pairs, death_guards(takeover.estate.page), also=[owner]):
            if isinstance(written, Lifeform):
                after = written
                self._lifeforms.learn(written)
            elif isinstance(written, Volume):
                self._volumes.learn(written)
            elif isinstance(written, Context):
                self._contexts.learn(written)
        takeover.done = True
        log.warning("%s/%s: epoch %d: %s", after.metadata.namespace, after.metadata.name, after.status.epoch, takeover.message)
        lossy = any(not each.sufficient for each in takeover.taken)
        self._events.record(after, RECOVERED, f"Epoch {after.status.epoch}. {takeover.message}", warning=lossy)

    async def _settle(self, lifeform: Lifeform) -> None:
        """Nobody knows what came of a takeover: make the ledger say what the registry does, if that can be asked."""
        meta, ledger = lifeform.metadata, self._scheduler.ledger
        try:
            current = await self._registry.get(Lifeform, meta.name, meta.namespace)
        except PrimordiaError:
            return
        if current.metadata.uid == meta.uid and current.status.node:
            self._lifeforms.learn(current)
            ledger.promise(meta.uid, current.status.node, ledger.held(meta.uid))

    async def _park(self, gate: asyncio.Semaphore, estate: Estate, park: Park) -> None:
        """Say what it waits for, where that is news."""
        lifeform = estate.lifeform
        before = find(lifeform.status.conditions, RECOVERED)
        if before is not None and (before.status, before.reason, before.message) == ("False", park.reason, park.message):
            return
        now = timestamp(self._clock.wall())
        status = with_recovered(lifeform, Verdict(RECOVERED, "False", park.reason, park.message), now)
        parked = msgspec.structs.replace(lifeform, status=status)
        try:
            async with gate:
                self._lifeforms.learn(await self._registry.amend(lifeform, parked, status=True))
        except PrimordiaError as error:
            log.debug("lifeform %s: %s", lifeform.metadata.name, error)
            return
        if before is None or before.reason != park.reason:
            self._events.record(lifeform, "Parked", park.message, warning=True)

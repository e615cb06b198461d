"""Events about objects, written behind: telling what happened must never slow or break what happens.

`record` only counts in memory. Equal events (same object, reason, message) become one with a count. A bounded number
waits to be written, one writer sends them, and when the store is away the newest are dropped and counted. Each lies under
a lease that ends an hour or a little more after its last writing, so that nobody has to clean up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError
from primordia.kit.ids import short_hash
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Event, EventSource, ObjectReference, Resource

log = logging.getLogger(__name__)

KEEP_S = 3600
_LEASE_SHARED_S = 300
_GATHER_S = 0.25
_LONGEST_DELAY_S = 10.0
_LONGEST_MESSAGE = 1024

_Same = tuple[str, str, str, bool]


@dataclass(slots=True)
class _Tally:
    """One event: who it is about and how often it happened. `last_s` is boottime, the texts are for people."""

    event: Event
    last_s: float


class EventRecorder:
    """Records events as `component` on `host`. `queue` is how many may wait, `remembered` how many are counted on."""

    def __init__(
        self,
        registry: Registry,
        component: str,
        host: str,
        *,
        queue: int = 1000,
        remembered: int = 4096,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._clock = registry.clock
        self._component = component
        self._host = host
        self._queue = queue
        self._remembered = remembered
        self._rng = rng or random.Random()
        self._tallies: OrderedDict[_Same, _Tally] = OrderedDict()
        self._waiting: OrderedDict[_Same, Event] = OrderedDict()
        self._wake = asyncio.Event()
        self._lease = 0
        self._lease_until_s = 0.0
        self.dropped = 0

    def record(self, about: Resource, reason: str, message: str, *, warning: bool = False) -> None:
        """Note that something happened to an object. Never blocks, never raises."""
        try:
            self._count(about, reason, message[:_LONGEST_MESSAGE], warning)
        except Exception:
            log.exception("event %s could not be recorded", reason)

    async def run(self) -> None:
        """Write what was recorded, until cancelled. What still waits then is written by `flush`, if that is wanted."""
        delay_s = _GATHER_S
        while True:
            await self._wake.wait()
            await self._clock.sleep(delay_s)
            try:
                await self.flush()
                delay_s = _GATHER_S
            except Exception as error:
                if not isinstance(error, PrimordiaError):
                    log.exception("the event writer failed")
                delay_s = min(_LONGEST_DELAY_S, delay_s * 2) * self._rng.uniform(0.5, 1.0)

    async def flush(self) -> None:
        """Write everything that waits. Raises StoreUnavailableError; what is not written then still waits."""
        for same, event in list(self._waiting.items()):
            try:
                await self._write(event)
            except PermanentError as error:
                self.dropped += 1
                log.error("event %s of %s is dropped: %s", event.reason, event.involved_object.name, error)
            if self._waiting.get(same) is event:
                del self._waiting[same]
        if not self._waiting:
            self._wake.clear()

    async def _write(self, event: Event) -> None:
        try:
            await self._registry.put(event, lease=await self._current_lease())
        except NotFoundError:
            self._lease = 0
            await self._registry.put(event, lease=await self._current_lease())

    def _count(self, about: Resource, reason: str, message: str, warning: bool) -> None:
        same = (about.metadata.uid or about.metadata.name, reason, message, warning)
        now_s = self._clock.boottime()
        known = self._tallies.pop(same, None)
        if known is not None and now_s - known.last_s < KEEP_S:
            event = self._again(known.event)
        else:
            event = self._first(about, reason, message, warning)
        self._tallies[same] = _Tally(event, now_s)
        if len(self._tallies) > self._remembered:
            self._tallies.popitem(last=False)
        if same not in self._waiting and len(self._waiting) >= self._queue:
            self.dropped += 1
            return
        self._waiting[same] = event
        self._wake.set()

    def _first(self, about: Resource, reason: str, message: str, warning: bool) -> Event:
        now = timestamp(self._clock.wall())
        meta = about.metadata
        uid = self._registry.new_uid()
        return Event(
            metadata=ObjectMeta(
                name=f"{meta.name}.{short_hash(uid, 16)}",
                namespace=meta.namespace or "default",
                uid=uid,
                creation_timestamp=now,
            ),
            involved_object=ObjectReference(
                api_version=about.API_VERSION,
                kind=about.KIND,
                namespace=meta.namespace,
                name=meta.name,
                uid=meta.uid,
                resource_version=meta.resource_version,
            ),
            reason=reason,
            message=message,
            type="Warning" if warning else "Normal",
            count=1,
            first_timestamp=now,
            last_timestamp=now,
            source=EventSource(component=self._component, host=self._host),
            reporting_component=self._component,
            reporting_instance=self._host,
        )

    def _again(self, event: Event) -> Event:
        return msgspec.structs.replace(event, count=event.count + 1, last_timestamp=timestamp(self._clock.wall()))

    async def _current_lease(self) -> int:
        """A lease that has an hour left at least; events of a few minutes share one."""
        now_s = self._clock.boottime()
        if not self._lease or now_s >= self._lease_until_s:
            self._lease = await self._registry.store.grant(KEEP_S + _LEASE_SHARED_S)
            self._lease_until_s = now_s + _LEASE_SHARED_S
        return self._lease

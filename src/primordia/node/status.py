"""Status written behind: the newest status of each object, soon, once, and again until the registry has it.

A change that comes alone is written at once, for somebody may wait for it; those that follow soon after it become one write.
A passing one, which another will follow by itself, has half a second to be overtaken: each write is heard by every node, and
of a start that takes a tenth of a second all that anybody can use is how it ended. A status that the registry already has is
not written. While the store is away the newest ones wait in memory; they can always be made again from what the node sees.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import ConflictError, NotFoundError, PermanentError, PrimordiaError
from primordia.registry.registry import Registry
from primordia.wire.resources import Context, Resource

log = logging.getLogger(__name__)

_GATHER_S = 0.05
_PASSING_S = 0.5
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0
_PARALLEL = 8

Place = tuple[type[Resource], str, str]
Amend = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Wanted:
    """`amend(stored, wanted)` gives the status to write, for parts that others or history decide. It is written at `due_s`,
    in boot-time seconds."""

    obj: Resource
    status: Any
    amend: Amend
    due_s: float

    @property
    def known(self) -> Resource | None:
        """The object as whoever wants this has read it; none where it was not read."""
        return self.obj if self.obj.metadata.resource_version else None


def _as_is(_stored: Any, wanted: Any) -> Any:
    return wanted


class StatusWriter:
    """Writes status of any kind. `put` never blocks."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._waiting: dict[Place, _Wanted] = {}
        self._wake = asyncio.Event()
        self._looks_s = 0.0
        """When `run` looks again by itself."""

    def put(self, obj: Resource, status: Any, amend: Amend = _as_is, *, passing: bool = False) -> None:
        """Want `status` for the object (of that very uid, and as long as it is on the node that it is on now)."""
        place = (type(obj), obj.metadata.name, obj.metadata.namespace)
        due_s = self._clock.boottime() + (_PASSING_S if passing else 0.0)
        before = self._waiting.get(place)
        if before is not None:
            due_s = min(due_s, before.due_s)
        self._waiting[place] = _Wanted(obj, status, amend, due_s)
        if due_s < self._looks_s:
            self._wake.set()

    def drop(self, obj: Resource) -> None:
        """Nothing more is wanted for the object."""
        self._waiting.pop((type(obj), obj.metadata.name, obj.metadata.namespace), None)

    async def run(self) -> None:
        """Write until cancelled."""
        delay_s = _FIRST_DELAY_S
        next_s = self._clock.boottime()
        while True:
            await self._until_due()
            await self._clock.sleep(max(0.0, next_s - self._clock.boottime()))
            now_s = self._clock.boottime()
            next_s = now_s + _GATHER_S
            if await self._write_all([each for each in self._waiting.items() if each[1].due_s <= now_s]):
                delay_s = _FIRST_DELAY_S
            else:
                await self._clock.sleep(delay_s)
                delay_s = min(_LONGEST_DELAY_S, delay_s * 2)

    async def flush(self) -> bool:
        """Write all that waits; whether all could be written."""
        return await self._write_all(list(self._waiting.items()))

    # ------------------------------------------------------------ inside

    async def _until_due(self) -> None:
        while True:
            self._wake.clear()
            now_s, due_s = self._clock.boottime(), min((each.due_s for each in self._waiting.values()), default=math.inf)
            if due_s <= now_s:
                self._looks_s = 0.0  # at the end of this round, whatever comes
                return
            self._looks_s = due_s
            await wait_event(self._clock, self._wake, None if due_s == math.inf else due_s - now_s)

    async def _write_all(self, batch: Sequence[tuple[Place, _Wanted]]) -> bool:
        gate = asyncio.Semaphore(_PARALLEL)
        return all(await asyncio.gather(*(self._write(gate, place, wanted) for place, wanted in batch)))

    async def _write(self, gate: asyncio.Semaphore, place: Place, wanted: _Wanted) -> bool:
        kind, name, namespace = place
        async with gate:
            try:
                await self._registry.mutate(
                    kind, name, namespace, lambda stored: _changed(stored, wanted), status=True, known=wanted.known
                )
            except NotFoundError:
                pass
            except ConflictError:
                return False
            except PermanentError as error:
                log.error("the status of %s %s/%s is dropped: %s", kind.KIND, namespace, name, error)
            except PrimordiaError as error:
                log.warning("the status of %s %s/%s waits: %s", kind.KIND, namespace, name, error)
                return False
        if self._waiting.get(place) is wanted:
            del self._waiting[place]
        return True


def _changed(stored: Any, wanted: _Wanted) -> Any:
    uid, node = wanted.obj.metadata.uid, _node_of(wanted.obj)
    if uid and stored.metadata.uid != uid:
        return None
    if node and _node_of(stored) != node:
        return None  # it went to another node, which tells of it now
    status = wanted.amend(stored.status, wanted.status)
    return None if status == stored.status else msgspec.structs.replace(stored, status=status)


def _node_of(obj: Any) -> str:
    """The node that a context is bound to; empty for other kinds."""
    return obj.spec.node if isinstance(obj, Context) else ""

"""Status written behind: the newest status of each object, soon, once, and again until the registry has it.

A change that comes alone is written at once, for somebody may wait for it; those that follow soon after it become one write.
A status that the registry already has is not written. While the store is away the newest ones wait in memory; they can
always be made again from what the node sees.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError, PermanentError, PrimordiaError
from primordia.registry.registry import Registry
from primordia.wire.resources import Context, Resource

log = logging.getLogger(__name__)

_GATHER_S = 0.05
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0
_PARALLEL = 8

Place = tuple[type[Resource], str, str]
Amend = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Wanted:
    """`amend(stored, wanted)` gives the status to write, for parts that others or history decide."""

    uid: str
    node: str
    status: Any
    amend: Amend


def _as_is(_stored: Any, wanted: Any) -> Any:
    return wanted


class StatusWriter:
    """Writes status of any kind. `put` never blocks."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._waiting: dict[Place, _Wanted] = {}
        self._wake = asyncio.Event()

    def put(self, obj: Resource, status: Any, amend: Amend = _as_is) -> None:
        """Want `status` for the object (of that very uid, and as long as it is on the node that it is on now)."""
        place = (type(obj), obj.metadata.name, obj.metadata.namespace)
        self._waiting[place] = _Wanted(obj.metadata.uid, _node_of(obj), status, amend)
        self._wake.set()

    def drop(self, obj: Resource) -> None:
        """Nothing more is wanted for the object."""
        self._waiting.pop((type(obj), obj.metadata.name, obj.metadata.namespace), None)

    async def run(self) -> None:
        """Write until cancelled."""
        delay_s = _FIRST_DELAY_S
        next_s = self._clock.boottime()
        while True:
            await self._wake.wait()
            await self._clock.sleep(max(0.0, next_s - self._clock.boottime()))
            next_s = self._clock.boottime() + _GATHER_S
            self._wake.clear()
            if await self.flush():
                delay_s = _FIRST_DELAY_S
            else:
                await self._clock.sleep(delay_s)
                delay_s = min(_LONGEST_DELAY_S, delay_s * 2)
                self._wake.set()

    async def flush(self) -> bool:
        """Write all that waits; whether all could be written."""
        gate = asyncio.Semaphore(_PARALLEL)
        batch = list(self._waiting.items())
        return all(await asyncio.gather(*(self._write(gate, place, wanted) for place, wanted in batch)))

    async def _write(self, gate: asyncio.Semaphore, place: Place, wanted: _Wanted) -> bool:
        kind, name, namespace = place
        async with gate:
            try:
                await self._registry.mutate(kind, name, namespace, lambda stored: _changed(stored, wanted), status=True)
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
    if wanted.uid and stored.metadata.uid != wanted.uid:
        return None
    if wanted.node and _node_of(stored) != wanted.node:
        return None  # it went to another node, which tells of it now
    status = wanted.amend(stored.status, wanted.status)
    return None if status == stored.status else msgspec.structs.replace(stored, status=status)


def _node_of(obj: Any) -> str:
    """The node that a context is bound to; empty for other kinds."""
    return obj.spec.node if isinstance(obj, Context) else ""

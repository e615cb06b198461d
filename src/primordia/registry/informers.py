"""One informer for each kind a process follows, shared by its controllers, its node and its API."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

from primordia.registry.codec import R
from primordia.registry.informer import Informer
from primordia.registry.registry import Registry
from primordia.wire.resources import Resource


class Informers:
    """Ask for kinds with `of` while the process is put together, then `run`. `rng` spreads the retries of many processes."""

    def __init__(self, registry: Registry, *, rng: random.Random | None = None) -> None:
        self._registry = registry
        self._rng = rng or random.Random()
        self._informers: dict[type[Resource], Informer[Any]] = {}
        self._running = False

    def of(self, kind: type[R]) -> Informer[R]:
        """The informer of a kind. Raises RuntimeError for a new kind once `run` has begun: nobody would fill it."""
        if kind not in self._informers:
            if self._running:
                raise RuntimeError(f"the informer of {kind.PLURAL} is asked for too late")
            self._informers[kind] = Informer(self._registry, kind, rng=self._rng)
        return cast("Informer[R]", self._informers[kind])

    async def run(self) -> None:
        """Follow the store with all of them until cancelled."""
        self._running = True
        async with asyncio.TaskGroup() as group:
            for kind, informer in self._informers.items():
                group.create_task(informer.run(), name=f"informer/{kind.PLURAL}")

    async def synced(self) -> None:
        """Wait until every cache has been filled once."""
        for informer in self._informers.values():
            await informer.synced()

    async def refresh(self, *kinds: type[Resource]) -> None:
        """List these kinds again: what was written before this call is in their caches after it. StoreUnavailableError."""
        await asyncio.gather(*(self._informers[kind].refresh() for kind in kinds))

    @property
    def is_synced(self) -> bool:
        """Whether every cache has been filled once."""
        return all(informer.is_synced for informer in self._informers.values())

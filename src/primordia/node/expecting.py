"""Contexts that are about to be moved here: what their start needs is made before they stop elsewhere.

Invariant: what the node says it expects can start without an image being fetched or built. The template is a matter of time
only: where none can be made the context boots, and waits for nothing here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.services import Services
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.resources import Context

log = logging.getLogger(__name__)

_RETRY_S = 5.0


class Expecting:
    """One node's. `changed` is called when `ready` has changed."""

    def __init__(self, services: Services, informers: Informers, changed: Callable[[], None]) -> None:
        self._services = services
        self._informer = informers.of(Context)
        self._changed = changed
        self._tasks = TaskSet("expecting")
        self._work: dict[str, asyncio.Task[None]] = {}
        self._ready: set[str] = set()

    @property
    def ready(self) -> tuple[str, ...]:
        """The uids of those for which all is there."""
        return tuple(sorted(self._ready))

    async def run(self) -> None:
        """Make ready for whoever comes, until cancelled."""
        try:
            self._informer.subscribe(self._on_context)
            await asyncio.get_running_loop().create_future()
        finally:
            self._informer.unsubscribe(self._on_context)
            await self._tasks.close()

    def _on_context(self, change: Change[Context]) -> None:
        about = change.new or change.old
        if about is None:
            return
        uid = about.metadata.uid
        if change.new is None or change.new.spec.next_node != self._services.config.name:
            task = self._work.pop(uid, None)
            if task is not None:
                task.cancel()
            if uid in self._ready:
                self._ready.discard(uid)
                self._changed()
        elif uid not in self._work:
            self._work[uid] = self._tasks.start(self._make_ready(change.new), name=change.new.metadata.name)

    async def _make_ready(self, context: Context) -> None:
        services, meta = self._services, context.metadata
        while True:
            try:
                root = await services.image_keeper.root(context.spec.template.image, lambda words: None)
                if services.fork_starts is not None:
                    await services.fork_starts.prepare(context, root)
                break
            except PrimordiaError as error:
                log.warning("%s/%s is expected, and cannot be made ready for: %s", meta.namespace, meta.name, error)
                await services.clock.sleep(_RETRY_S)
        log.info("%s/%s can come", meta.namespace, meta.name)
        self._ready.add(meta.uid)
        self._changed()

"""What a dead node leaves besides lifeforms: boxes and forks, whose memory is gone; contexts that it was still to end; and what
others said that they held of an earlier life of it.

Everything is guarded by the death: a node that has come back does all of this itself, and better.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import msgspec

from primordia.control.blueprint import CONTEXT_FINALIZER
from primordia.control.boxes import is_box
from primordia.control.lifebook import LifeBook, Page
from primordia.domain.lease import death_key
from primordia.kit.errors import NotFoundError
from primordia.ports.store import Compare, Delete
from primordia.registry.events import EventRecorder
from primordia.registry.guarded import GuardedStore
from primordia.registry.informers import Informers
from primordia.registry.lives import Holding, dead_guards, holding_key, read_holding
from primordia.registry.registry import Registry
from primordia.wire.conditions import NODE_DEAD
from primordia.wire.resources import Context

log = logging.getLogger(__name__)

BY_PLACE = "place"
_OVER = ("Succeeded", "Failed")


def death_guards(page: Page) -> tuple[Compare, ...]:
    """That the node is as dead as the page says: what everything about what it left rests on.

    The life is the one that the death names: the page's own may be a later one by now, and that is not over.
    """
    life = page.death.life if page.death is not None else 0
    return *dead_guards(page.node, life), Compare(death_key(page.node), "mod", page.death_revision)


class Remains:
    """Clears up after dead nodes."""

    def __init__(self, registry: Registry, informers: Informers, book: LifeBook, events: EventRecorder) -> None:
        self._registry = registry
        self._book = book
        self._events = events
        self._contexts = informers.of(Context)
        self._contexts.index(BY_PLACE, lambda context: context.spec.node)

    async def clear(self, page: Page) -> None:
        """End what is left on a dead node. Raises PrimordiaError: what is left then is left for the next time."""
        guarded = Registry(GuardedStore(self._registry.store, death_guards(page)), self._registry.clock)
        for context in self._contexts.by_index(BY_PLACE, page.node):
            with contextlib.suppress(NotFoundError):
                if context.metadata.deletion_timestamp is not None:
                    await self._free(guarded, context)
                elif is_box(context):
                    await self._end_box(guarded, context)

    async def forget_holdings(self) -> None:
        """Remove what was said of lives that are not the last. Raises StoreUnavailableError."""
        for page in list(self._book.pages.values()):
            for node, holding in list(page.holdings.items()):
                if page.life and holding.life < page.life and (page.death is None or holding.life < page.death.life):
                    await self._forget(holding_key(page.node, node), holding)

    async def _forget(self, key: str, holding: Holding) -> None:
        """The page may be behind: what has been said of the newest death meanwhile, under the same key, must stay."""
        item = await self._registry.store.get(key)
        if item is not None and read_holding(item) == holding:
            await self._registry.store.txn([Compare(key, "mod", item.mod_revision)], [Delete(key)])

    async def forget(self, page: Page) -> None:
        """Remove the last word about a node that has left, and of which nothing is left. Raises StoreUnavailableError."""
        holdings = [Delete(holding_key(page.node, node)) for node in page.holdings]
        await self._registry.store.txn(death_guards(page), [Delete(death_key(page.node)), *holdings])

    async def _end_box(self, registry: Registry, box: Context) -> None:
        meta = box.metadata
        message = f"Node {box.spec.node} is dead, and its memory with it."
        if box.status.phase not in _OVER:
            self._contexts.learn(
                await registry.mutate(Context, meta.name, meta.namespace, _failed(meta.uid, message), status=True)
            )
            self._events.record(box, NODE_DEAD, message, warning=True)
        marked = await registry.delete(Context, meta.name, meta.namespace, uid=meta.uid)
        log.info("%s/%s: deleted, for its node %s is dead", meta.namespace, meta.name, box.spec.node)
        if marked.metadata.finalizers:
            self._contexts.learn(marked)
            await self._free(registry, marked)

    async def _free(self, registry: Registry, context: Context) -> None:
        """Its node would have let go of it, had it lived."""
        meta = context.metadata
        if CONTEXT_FINALIZER not in meta.finalizers:
            return
        rest = tuple(each for each in meta.finalizers if each != CONTEXT_FINALIZER)
        freed = msgspec.structs.replace(context, metadata=msgspec.structs.replace(meta, finalizers=rest))
        await registry.amend(context, freed)


def _failed(uid: str, message: str) -> Callable[[Context], Context | None]:
    def change(stored: Context) -> Context | None:
        if stored.metadata.uid != uid or stored.status.phase in _OVER:
            return None
        status = msgspec.structs.replace(stored.status, phase="Failed", ready=False, reason=NODE_DEAD, message=message)
        return msgspec.structs.replace(stored, status=status)

    return change

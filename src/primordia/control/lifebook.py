"""What this process has seen of the nodes' leases, lives and deaths, and of what the living hold of the dead.

Every daemon that may lead keeps one, from its own beginning: a new leader then counts from what it saw itself, and not from
the moment it came into office. Nothing is asked here and nothing polled; the keys hardly ever change.

The four watches may be late, each by another time. Whoever acts on what the book says compares it with the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from primordia.domain.lease import DEATHS, LEASES, LIVES
from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError
from primordia.ports.store import CompactedError, KeyValue, Store, WatchEvent
from primordia.registry.lives import HOLDINGS, Death, Holding, Life, read_death, read_holding, read_life

log = logging.getLogger(__name__)

_RETRY_S = 1.0

Told = Callable[[str], None]


@dataclass
class Page:
    """One node. `lease_revision` is its lease key's create revision, 0 while there is none; `since_s` is when that was first
    seen, and `seen` whether the key ever was.

    `life` is its last life, 0 for a node that has left the soup, `death_revision` the mod revision of its deaths key;
    `holdings` is what others hold of it, by node, as they said it for whichever life.
    """

    node: str
    since_s: float
    lease_revision: int = 0
    lease: int = 0
    seen: bool = False
    life: int = 0
    holder: Life | None = None
    death: Death | None = None
    death_revision: int = 0
    holdings: dict[str, Holding] = field(default_factory=dict)

    @property
    def present(self) -> bool:
        return self.lease_revision > 0

    @property
    def dead(self) -> bool:
        """Whether its last life is over for good, and no other has begun."""
        return not self.present and self.death is not None and self.death.life == self.life


class LifeBook:
    """A page for each node that ever was. `subscribe` is told the node whose page has changed."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._pages: dict[str, Page] = {}
        self._told: list[Told] = []
        self._filled = {prefix: asyncio.Event() for prefix in _PREFIXES}

    @property
    def pages(self) -> Mapping[str, Page]:
        """Every page, by node."""
        return self._pages

    def get(self, node: str) -> Page | None:
        """One node's page."""
        return self._pages.get(node)

    def expect(self, node: str) -> None:
        """Somebody is bound to that node: it has a page, though no key of it may be left."""
        if node not in self._pages:
            self._pages[node] = Page(node, self._clock.boottime())
            for told in list(self._told):
                told(node)

    def subscribe(self, told: Told) -> None:
        """Be told of every page that changes from now on."""
        self._told.append(told)

    def unsubscribe(self, told: Told) -> None:
        """No longer; harmless when it never was."""
        if told in self._told:
            self._told.remove(told)

    async def filled(self) -> None:
        """Wait until all keys have been read once."""
        for event in self._filled.values():
            await event.wait()

    async def run(self) -> None:
        """Follow the store until cancelled."""
        async with asyncio.TaskGroup() as group:
            for prefix in _PREFIXES:
                group.create_task(self._follow(prefix), name=f"lifebook{prefix}")

    # ------------------------------------------------------------ following

    async def _follow(self, prefix: str) -> None:
        revision = 0
        while True:
            try:
                if not revision:
                    listing = await self._store.list(prefix)
                    revision = listing.revision
                    self._take_all(prefix, {item.key: item for item in listing.items})
                    self._filled[prefix].set()
                async with self._store.watch(prefix, after_revision=revision) as batches:
                    async for batch in batches:
                        for event in batch.events:
                            self._take(prefix, event.key, _item(event))
                        revision = batch.revision
            except CompactedError:
                revision = 0
            except PrimordiaError as error:
                log.warning("%s: %s", prefix, error)
            await self._clock.sleep(_RETRY_S)

    def _take_all(self, prefix: str, items: Mapping[str, KeyValue]) -> None:
        for key in [self._key_of(prefix, page, other) for page in self._pages.values() for other in _others(prefix, page)]:
            if key not in items:
                self._take(prefix, key, None)
        for key, item in items.items():
            self._take(prefix, key, item)

    def _key_of(self, prefix: str, page: Page, other: str) -> str:
        return f"{prefix}{page.node}/{other}" if prefix == HOLDINGS else prefix + page.node

    def _take(self, prefix: str, key: str, item: KeyValue | None) -> None:
        node, _, other = key.removeprefix(prefix).partition("/")
        page = self._pages.get(node)
        if page is None:
            if item is None:
                return
            page = self._pages[node] = Page(node, self._clock.boottime())
        if prefix == LEASES:
            self._take_lease(page, item)
        elif prefix == LIVES:
            page.life, page.holder = (item.mod_revision, read_life(item)) if item is not None else (0, None)
        elif prefix == DEATHS:
            page.death, page.death_revision = read_death(item), item.mod_revision if item is not None else 0
        elif (holding := read_holding(item)) is not None:
            page.holdings[other] = holding
        else:
            page.holdings.pop(other, None)
        for told in list(self._told):
            told(node)

    def _take_lease(self, page: Page, item: KeyValue | None) -> None:
        revision = item.create_revision if item is not None else 0
        if revision != page.lease_revision:
            page.lease_revision, page.since_s = revision, self._clock.boottime()
            page.lease = 0
        if item is not None:
            page.seen = True
            page.lease = item.lease or page.lease


_PREFIXES = (LEASES, LIVES, DEATHS, HOLDINGS)


def _others(prefix: str, page: Page) -> list[str]:
    """What of a page a listing of the prefix could show to be gone."""
    return list(page.holdings) if prefix == HOLDINGS else [""]


def _item(event: WatchEvent) -> KeyValue | None:
    return None if event.value is None else KeyValue(event.key, event.value, event.create_revision, event.revision)

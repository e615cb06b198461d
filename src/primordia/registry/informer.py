"""A cache of one kind, kept equal to the store by list and watch: what controllers and nodes read instead of the store.

Invariant: after `synced`, the cache is the store as of some revision, and every step from one such state to the next has
been told to the subscribers, in order, each object's steps without a gap. It is allowed to be late, never to be torn.

Whoever writes himself may tell the cache (`learn`), so that he does not decide again on what he has just changed; of such an
object the cache is ahead of the rest, until the watch has told it too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable
from typing import Generic

from primordia.kit.errors import PrimordiaError
from primordia.ports.store import CompactedError
from primordia.registry.codec import Change, Page, R
from primordia.registry.keys import path
from primordia.registry.registry import Registry
from primordia.registry.rules import finished

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0


class _Index(Generic[R]):
    """Objects by a value computed from each; None leaves an object out."""

    def __init__(self, key: Callable[[R], Hashable]) -> None:
        self._key = key
        self._buckets: dict[Hashable, dict[str, R]] = {}

    def replace(self, place: str, old: R | None, new: R | None) -> None:
        if old is not None and (value := self._key(old)) is not None:
            bucket = self._buckets.get(value, {})
            bucket.pop(place, None)
            if not bucket:
                self._buckets.pop(value, None)
        if new is not None and (value := self._key(new)) is not None:
            self._buckets.setdefault(value, {})[place] = new

    def get(self, value: Hashable) -> tuple[R, ...]:
        return tuple(obj for _, obj in sorted(self._buckets.get(value, {}).items()))


class Informer(Generic[R]):
    """List + watch cache of one kind, of one namespace or all. `rng` spreads the retries of many informers."""

    def __init__(self, registry: Registry, kind: type[R], *, namespace: str = "", rng: random.Random | None = None) -> None:
        self._registry = registry
        self._kind = kind
        self._namespace = namespace
        self._rng = rng or random.Random()
        self._objects: dict[str, R] = {}
        self._items: tuple[R, ...] | None = ()
        self._indexes: dict[str, _Index[R]] = {}
        self._callbacks: list[Callable[[Change[R]], None]] = []
        self._synced = asyncio.Event()
        self._delay_s = _FIRST_DELAY_S
        self.revision = 0
        self._told = 0
        self.resyncs = 0

    async def run(self) -> None:
        """Follow the store until cancelled: lists again after compaction, backs off while the store is away."""
        while True:
            try:
                if not self.revision:
                    await self._resync()
                await self._follow()
            except CompactedError:
                log.info("%s: the watched revision is compacted; listing again", self._kind.PLURAL)
                self.revision = 0
            except PrimordiaError as error:
                log.warning("%s: %s", self._kind.PLURAL, error)
            except Exception:
                log.exception("%s: the informer failed and lists again", self._kind.PLURAL)
                self.revision = 0
            await self._registry.clock.sleep(self._delay_s * self._rng.uniform(0.5, 1.0))
            self._delay_s = min(_LONGEST_DELAY_S, self._delay_s * 2)

    async def synced(self) -> None:
        """Wait until the cache has been filled once."""
        await self._synced.wait()

    @property
    def is_synced(self) -> bool:
        """Whether the cache has been filled once."""
        return self._synced.is_set()

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self._objects)

    def get(self, name: str, namespace: str = "") -> R | None:
        """One object as the cache has it."""
        return self._objects.get(path(self._kind, name, namespace))

    def items(self) -> tuple[R, ...]:
        """Every object, in order of namespace and name."""
        if self._items is None:
            self._items = tuple(self._objects[place] for place in sorted(self._objects))
        return self._items

    def subscribe(self, callback: Callable[[Change[R]], None]) -> None:
        """Be told of every change from now on; what the cache has already is told at once, as new.

        What a callback raises is logged and ends nothing.
        """
        self._callbacks.append(callback)
        for obj in self.items():
            self._tell(callback, Change(None, obj, self.revision))

    def unsubscribe(self, callback: Callable[[Change[R]], None]) -> None:
        """Be told no more; harmless when it was not."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    async def refresh(self) -> None:
        """List again: what was written before this call is in the cache after it. Raises StoreUnavailableError."""
        page = await self._registry.list(self._kind, self._namespace)
        # The watch goes on meanwhile: a list that it has overtaken knows nothing new.
        if page.revision >= self._told:
            self._take(page)

    def learn(self, obj: R) -> None:
        """Know what has just been written, as the registry gave it back, before the watch tells it."""
        revision = int(obj.metadata.resource_version)
        if revision > max(self._told, self.revision) and not finished(obj) and self._is_behind(self._place(obj), revision):
            self._set(self._place(obj), obj, revision)

    def index(self, name: str, key: Callable[[R], Hashable]) -> None:
        """Keep objects findable by what `key` gives for each; it must be pure. None leaves the object out."""
        index = self._indexes[name] = _Index(key)
        for place, obj in self._objects.items():
            index.replace(place, None, obj)

    def by_index(self, name: str, value: Hashable) -> tuple[R, ...]:
        """The objects for which the index's key gives `value`, in order of namespace and name."""
        return self._indexes[name].get(value)

    async def _resync(self) -> None:
        page = await self._registry.list(self._kind, self._namespace)
        self._take(page)
        self._told = page.revision

    def _take(self, page: Page[R]) -> None:
        """Make the cache what the list says."""
        seen = {self._place(obj): obj for obj in page.items}
        kept = set(page.undecodable)
        for place in [each for each in self._objects if each not in seen and each not in kept]:
            if self._is_behind(place, page.revision + 1):
                self._set(place, None, page.revision)
        for place, obj in seen.items():
            if self._is_behind(place, int(obj.metadata.resource_version)):
                self._set(place, obj, page.revision)
        self.revision = max(self.revision, page.revision)
        self.resyncs += 1
        self._synced.set()

    async def _follow(self) -> None:
        watch = self._registry.watch(self._kind, self._namespace, after_revision=self.revision, bookmarks=True, previous=False)
        async with watch as changes:
            async for change in changes:
                self._delay_s = _FIRST_DELAY_S
                self._told = change.revision
                obj = change.new or change.old
                if obj is None:
                    # A list that was made meanwhile may be ahead of the watch; what it knows must not be told back.
                    self.revision = max(self.revision, change.revision)
                elif change.revision > self.revision and self._is_behind(self._place(obj), change.revision):
                    self._set(self._place(obj), change.new, change.revision)

    def _is_behind(self, place: str, revision: int) -> bool:
        """Whether what is known of that object is older."""
        known = self._objects.get(place)
        return known is None or int(known.metadata.resource_version) < revision

    def _place(self, obj: R) -> str:
        return path(self._kind, obj.metadata.name, obj.metadata.namespace)

    def _set(self, place: str, new: R | None, revision: int) -> None:
        """Make one object what the store says; another object under the same name is told as gone and new."""
        old = self._objects.get(place)
        if old is not None and new is not None:
            if old.metadata.resource_version == new.metadata.resource_version:
                return
            if old.metadata.uid != new.metadata.uid:
                self._set(place, None, revision)
                old = None
        if old is None and new is None:
            return
        if new is None:
            del self._objects[place]
        else:
            self._objects[place] = new
        self._items = None
        for index in self._indexes.values():
            index.replace(place, old, new)
        for callback in self._callbacks:
            self._tell(callback, Change(old, new, revision))

    def _tell(self, callback: Callable[[Change[R]], None], change: Change[R]) -> None:
        try:
            callback(change)
        except Exception:
            log.exception("%s: a subscriber failed", self._kind.PLURAL)

"""Watches: one JSON line for each change, from a revision on, for as long as the client stays.

One task reads the store and never waits for the client; the other writes to the client and never holds up the store.
Between them waits a bounded number of bytes: a client too slow for that is dropped, and comes back with the last version
it saw. Selected objects that change to be selected no more are told as deleted, and the other way round, as in Kubernetes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from primordia.api import listing, objects
from primordia.api.answers import included
from primordia.api.errors import status_of
from primordia.api.negotiate import JSON, wants_table
from primordia.api.paths import ListQuery, Target
from primordia.api.services import Services
from primordia.kit.errors import PrimordiaError
from primordia.ports.store import CompactedError, WatchBatch, WatchEvent
from primordia.registry import keys
from primordia.wire import selectors
from primordia.wire.resources import Resource
from primordia.wire.tables import table

_INITIAL_END = "k8s.io/initial-events-end"


class SlowWatcherError(Exception):
    """More waits for a client than may."""


class Outbox:
    """Lines that wait for the client."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lines: list[bytes] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, line: bytes, *, bounded: bool = True) -> None:
        """Add a line. Raises SlowWatcherError when too much waits; a single line may be longer than that."""
        if bounded and self._lines and self._size + len(line) > self._limit:
            raise SlowWatcherError
        self._lines.append(line)
        self._size += len(line)
        self._wake.set()

    def end(self) -> None:
        """No more lines come."""
        self._ended = True
        self._wake.set()

    async def take(self) -> bytes:
        """Everything that waits; empty at the end."""
        await self._wake.wait()
        data = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        if not self._ended:
            self._wake.clear()
        return data


@dataclass
class Teller:
    """Turns the store's events into a client's lines."""

    kind: type[Resource]
    selection: selectors.Selection
    services: Services
    as_table: bool
    include: str
    headed: bool = field(default=False)

    def initial(self, stored: bytes, revision: int) -> bytes | None:
        """An object that is there already."""
        return self._line("ADDED", stored, revision)

    def change(self, event: WatchEvent) -> bytes | None:
        """A change, None when it is not of the selection. Raises CompactedError when what was deleted is not known."""
        now = event.value is not None and self._selected(event.value)
        if event.previous is None:
            if event.value is None:
                raise CompactedError(f"What {event.key} was before its deletion is no longer kept.")
            return self._line("ADDED", event.value, event.revision) if now else None
        before = self._selected(event.previous)
        if now and event.value is not None:
            return self._line("MODIFIED" if before else "ADDED", event.value, event.revision)
        if before:
            return self._line("DELETED", event.value or event.previous, event.revision)
        return None

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        """Everything up to this revision has been told."""
        meta: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial_end:
            meta["annotations"] = {_INITIAL_END: "true"}
        body: dict[str, Any] = {"kind": self.kind.KIND, "apiVersion": self.kind.API_VERSION, "metadata": meta}
        if self.as_table:
            row = {"cells": [], "object": body}
            body = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": [], "rows": [row]}
        return _event("BOOKMARK", msgspec.json.encode(body))

    def _selected(self, stored: bytes) -> bool:
        return not self.selection or self.selection.matches(stored)

    def _line(self, word: str, stored: bytes, revision: int) -> bytes | None:
        if not self.as_table:
            body = objects.with_version(self.kind, stored, revision)
            return _event(word, body) if body is not None else None
        obj = objects.typed(self.kind, stored, revision)
        if obj is None:
            return None
        document = table(self.kind, [obj], self.services.clock.wall(), include=self.include)
        document["metadata"] = {"resourceVersion": str(revision)}
        if self.headed:
            document["columnDefinitions"] = None
        self.headed = True
        return _event(word, msgspec.json.encode(document))


def _event(word: str, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (word.encode(), body)


async def answer(request: web.BaseRequest, target: Target, query: ListQuery, services: Services) -> web.StreamResponse:
    """The whole watch, until the client goes, its time is up or it is too slow."""
    as_table = wants_table(request.headers.get("Accept", ""))
    selection = selectors.selection(target.kind, query.labels, query.fields)
    teller = Teller(target.kind, selection, services, as_table, included(request))
    outbox = Outbox(services.limits.watch_bytes)
    start = await _start(target, query, services)
    response = web.StreamResponse(headers={"Content-Type": JSON, "Cache-Control": "no-cache"})
    await response.prepare(request)
    deadline_s = query.timeout_s * random.uniform(0.9, 1.0) or None
    try:
        async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as group:
            group.create_task(_pump(target, query, services, teller, outbox, start), name="watch/pump")
            while data := await outbox.take():
                await response.write(data)
    except* SlowWatcherError:
        _abort(request)
    except* (TimeoutError, ConnectionError):
        pass
    with contextlib.suppress(ConnectionError):
        await response.write_eof()
    return response


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


@dataclass(frozen=True)
class _Start:
    """Where the watch begins: what is told first, and after which revision it follows the store."""

    initial: listing.Found | None
    revision: int


async def _start(target: Target, query: ListQuery, services: Services) -> _Start:
    if not query.revision or query.initial_events:
        everything = ListQuery(labels=query.labels, fields=query.fields)
        found = await listing.find(services.registry.store, target, everything)
        return _Start(found, found.revision)
    return _Start(None, query.revision)


async def _pump(target: Target, query: ListQuery, services: Services, teller: Teller, outbox: Outbox, start: _Start) -> None:
    """Store to outbox. What goes wrong is told to the client as an ERROR event."""
    try:
        for line in _initial(start, teller, query):
            outbox.put(line, bounded=False)  # all of it is in memory anyway
        if start.initial is None:
            await _check_revision(services, start.revision)
        prefix = _watched(target, teller.selection)
        async with services.registry.store.watch(prefix, after_revision=start.revision) as batches:
            await _follow(batches, teller, outbox, services, bookmarks=query.bookmarks)
    except PrimordiaError as error:
        status = status_of(error, target.kind)
        outbox.put(_event("ERROR", msgspec.json.encode(status)))
    finally:
        outbox.end()


def _watched(target: Target, selection: selectors.Selection) -> str:
    """The prefix of all keys that can be of the selection: whoever waits for one object does not hear of all."""
    one = selection.name()
    if one and (target.namespace or not target.kind.NAMESPACED):
        return keys.key_of(target.kind, one, target.namespace)
    return keys.prefix_of(target.kind, target.namespace)


async def _check_revision(services: Services, revision: int) -> None:
    """A revision that is yet to come is of another store (an older copy of this one, perhaps): the client must list."""
    now = (await services.registry.store.list("/primordia/none/", limit=1)).revision
    if revision > now:
        raise CompactedError(f"Revision {revision} is not there yet; the store is at {now}.")


def _initial(start: _Start, teller: Teller, query: ListQuery) -> Iterator[bytes]:
    if start.initial is None:
        return
    for item in start.initial.items:
        line = teller.initial(item.value, item.mod_revision)
        if line is not None:
            yield line
    if query.bookmarks:
        yield teller.bookmark(start.revision, initial_end=query.initial_events)


async def _follow(
    batches: AsyncIterator[WatchBatch], teller: Teller, outbox: Outbox, services: Services, *, bookmarks: bool
) -> None:
    told_s = services.clock.boottime()
    async for batch in batches:
        lines = [line for event in batch.events if (line := teller.change(event)) is not None]
        now_s = services.clock.boottime()
        if not lines and bookmarks and now_s - told_s >= services.limits.bookmark_s:
            lines = [teller.bookmark(batch.revision)]
        for line in lines:
            outbox.put(line)
        told_s = now_s if lines else told_s

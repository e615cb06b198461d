"""Typed objects over the store, with the rules of Kubernetes: revisions, generations, finalizers, preconditions.

Every write is one guarded transaction. One that got no answer may have been done or not, or may yet be done. Where its guards
let it be done once at most (the key is free, or at the revision that was read), it is asked for again for a few seconds, and
what is found instead tells what became of it. Every other fate that stays unknown (StoreUnavailableError) is the caller's: it
reads again and decides again. A stored object that this version cannot read hides itself, not its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.errors import AlreadyExistsError, ConflictError, NotFoundError, PermanentError, PrimordiaError
from primordia.kit.ids import new_uid, suffix
from primordia.ports.store import (
    CompactedError,
    Compare,
    Delete,
    KeyValue,
    Put,
    Store,
    StoreUnavailableError,
    TxnResult,
    WatchBatch,
    WatchEvent,
)
from primordia.registry import keys, rules
from primordia.registry.claims import change_of, nobodys
from primordia.registry.codec import Change, Page, R, decode, encode, with_revision
from primordia.wire.resources import Resource

log = logging.getLogger(__name__)

_TRIES = 32
_UNANSWERED_S, _AGAIN_S = 3.0, 0.2
"""An engine that chooses another leader is away for so long, about."""
_CHUNK = 500
_NAME_TRIES = 8

Rule = Callable[[Any, Any], Any]


class Registry:
    """Objects by kind, namespace and name. All methods raise StoreUnavailableError when the store is away.

    `new_uid` gives each object its identity; a simulation brings its own, so that a run can be repeated.
    """

    def __init__(self, store: Store, clock: Clock, *, new_uid: Callable[[], str] = new_uid) -> None:
        self.store = store
        self.clock = clock
        self.new_uid = new_uid
        self.undecodable = 0
        self._complained: dict[str, int] = {}

    # ------------------------------------------------------------ reading

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        """One object. Raises NotFoundError; PermanentError when it is stored in a form this version cannot read."""
        item = await self.store.get(keys.key_of(kind, name, namespace))
        return self._require(kind, item, name, namespace)

    async def list(self, kind: type[R], namespace: str = "", *, limit: int = 0, after: str = "", revision: int = 0) -> Page[R]:
        """The objects of a kind, of one namespace or all. `limit` 0 is all; `after` and `revision` are a page's.

        Raises CompactedError when `revision` is no longer kept.
        """
        prefix = keys.prefix_of(kind, namespace)
        start = keys.prefix_of(kind) + after if after else ""
        items: list[R] = []
        unreadable: list[str] = []
        while True:
            chunk = min(_CHUNK, limit - len(items) - len(unreadable)) if limit else _CHUNK
            listing = await self.store.list(prefix, limit=chunk, after=start, revision=revision)
            revision = listing.revision
            for item in listing.items:
                obj = self._try_decode(kind, item.key, item.value, item.mod_revision)
                if obj is None:
                    unreadable.append(keys.path_of(kind, item.key))
                else:
                    items.append(obj)
            start = listing.items[-1].key if listing.items else start
            if not listing.more or (limit and len(items) + len(unreadable) >= limit):
                break
            await asyncio.sleep(0)
        after = keys.path_of(kind, start) if listing.more else ""
        remaining = max(0, listing.count - len(listing.items)) if listing.more else 0
        return Page(tuple(items), revision, listing.more, after, remaining, tuple(unreadable))

    @contextlib.asynccontextmanager
    async def watch(
        self,
        kind: type[R],
        namespace: str = "",
        *,
        after_revision: int,
        bookmarks: bool = False,
        previous: bool = True,
    ) -> AsyncIterator[AsyncIterator[Change[R]]]:
        """The changes after that revision, in order, without gap or repeat; with `bookmarks`, signs of life too.

        Without `previous`, only changes that delete have an `old`: who keeps a cache knows what was before.
        The iteration raises CompactedError when the revision is gone: list again.
        """
        prefix = keys.prefix_of(kind, namespace)
        async with self.store.watch(prefix, after_revision=after_revision) as batches:
            changes = self._changes(kind, batches, bookmarks, previous)
            try:
                yield changes
            finally:
                await changes.aclose()

    # ------------------------------------------------------------ writing

    async def create(self, obj: R) -> R:
        """Store a new object; gives it uid, creation time and generation, and a name if it has only `generateName`.

        Its status is stored as given. Raises AlreadyExistsError; InvalidResourceError when another has what only one may.
        """
        generated = not obj.metadata.name and obj.metadata.generate_name
        free: dict[str, int] = {}
        for _ in range(_NAME_TRIES):
            fresh = self._born(obj)
            key, claims = keys.key_of_object(fresh), change_of(None, fresh, free)
            guards, operations = [Compare(key, "mod", 0), *claims.guards], [Put(key, encode(fresh)), *claims.operations]
            result, sure = await self.once(guards, operations, [key, *claims.wanted])
            if result.done:
                return with_revision(fresh, str(result.revision))
            found = result.found[0]
            if not sure and found is not None and self.is_stored(type(obj), found, fresh.metadata.uid):
                return with_revision(fresh, str(found.create_revision))
            if found is None:
                free = await nobodys(fresh, claims, result.found[1:], self.get)
            elif not generated:
                break
        raise AlreadyExistsError(f"{_words(fresh)} exists already.", remedy="Choose another name, or change that one.")

    async def create_all(
        self, objs: Sequence[Resource], guards: Sequence[Compare] = (), *, also: Sequence[Put | Delete] = ()
    ) -> tuple[Resource, ...]:
        """Store all of them and do `also`, or nothing. Raises ConflictError when one exists or a guard does not hold."""
        fresh = [self._born(obj) for obj in objs]
        places = [keys.key_of_object(obj) for obj in fresh]
        absent = [Compare(key, "mod", 0) for key in places]
        puts = [Put(key, encode(obj)) for key, obj in zip(places, fresh, strict=True)]
        result = await self.store.txn([*guards, *absent], [*puts, *also], read_if_failed=places)
        if result.done:
            return tuple(with_revision(obj, str(result.revision)) for obj in fresh)
        taken = [_words(obj) for obj, found in zip(fresh, result.found, strict=True) if found is not None]
        what = f"{taken[0]} exists already" if taken else "something they depend on changed"
        raise ConflictError(f"{', '.join(_words(obj) for obj in fresh)} cannot be created: {what}.")

    async def update(self, obj: R) -> R:
        """Change spec, labels, annotations, owners and finalizers; the stored status stays. See `rules.updated`.

        With a resource version, raises ConflictError when that is no longer the stored one; with a uid, when it is
        another object's. The last finalizer of an object being deleted removes it. Raises NotFoundError.
        """
        return await self._change(obj, rules.updated)

    async def update_status(self, obj: R) -> R:
        """Change the status only, under the same guards as `update`."""
        return await self._change(obj, rules.with_status)

    async def amend(self, current: R, wanted: R, *, status: bool = False, whole: bool = False) -> R:
        """As `update` (or `update_status`, or both in one for the `whole` object), for one who has what is stored: `current`,
        as it was read, is not read again.

        Raises ConflictError when it is no longer what is stored, NotFoundError when it is gone.
        """
        rule: Rule = rules.successor if whole else rules.with_status if status else rules.updated
        merged: R = rule(current, wanted)
        written, stored = await self._replace(current, merged)
        if not written:
            raise _conflict(stored, f"it is at version {stored.metadata.resource_version}, which was not known")
        return stored

    async def mutate(
        self,
        kind: type[R],
        name: str,
        namespace: str,
        change: Callable[[R], R | None],
        *,
        status: bool = False,
        known: R | None = None,
    ) -> R:
        """Read, change, compare, retry. `change` gives the wanted object, or None for none; it may be called again.

        With `known`, a version that may be old, the first reading is left out: if it is old, what is written says so. Nothing
        but a write is decided by it.

        Raises NotFoundError, and ConflictError when others kept changing it all the time.
        """
        rule = rules.with_status if status else rules.updated
        current: R | None = None
        if known is not None and (hoped := _hoped(change, rule, known)) != known:
            written, current = await self._replace(known, hoped)
            if written:
                return current
        if current is None:
            current = await self.get(kind, name, namespace)
        for _ in range(_TRIES):
            wanted = change(current)
            if wanted is None:
                return current
            written, current = await self._replace(current, rule(current, wanted))
            if written:
                return current
        raise _conflict(current, "others keep changing it")

    async def check_claims(self, before: R | None, after: R) -> None:
        """Raise what writing `after` in place of `before` would, were another to have what only one may."""
        claims = change_of(before, after)
        await nobodys(after, claims, [await self.store.get(key) for key in claims.wanted], self.get)

    async def delete(self, kind: type[R], name: str, namespace: str = "", *, uid: str = "", resource_version: str = "") -> R:
        """Remove an object, or mark it if it has finalizers; returns it as it then is, or was at last.

        Raises NotFoundError, and ConflictError when it has not the given uid or resource version.
        """
        current = await self.get(kind, name, namespace)
        for _ in range(_TRIES):
            _check(current, uid, resource_version)
            wanted = rules.marked(current, rules.timestamp(self.clock.wall()))
            written, current = await self._replace(current, wanted)
            if written:
                return current
        raise _conflict(current, "others keep changing it")

    async def put(self, obj: R, *, lease: int = 0) -> R:
        """Store the object as it is, whatever is there: for records that only their writer changes, as Events.

        Raises NotFoundError when the lease is gone.
        """
        result = await self.store.txn([], [Put(keys.key_of_object(obj), encode(obj), lease)])
        return with_revision(obj, str(result.revision))

    async def once(
        self, guards: Sequence[Compare], operations: Sequence[Put | Delete], read_if_failed: Sequence[str]
    ) -> tuple[TxnResult, bool]:
        """A transaction whose guards no longer hold once it is done, and whether the first answer was had.

        Without it a failure may mean that an earlier try was done. Raises StoreUnavailableError when none comes for long.
        """
        until = self.clock.boottime() + _UNANSWERED_S
        sure = True
        while True:
            try:
                return await self.store.txn(guards, operations, read_if_failed=read_if_failed), sure
            except StoreUnavailableError as error:
                if error.reason != StoreUnavailableError.reason or self.clock.boottime() >= until:
                    raise
                sure = False
            await self.clock.sleep(_AGAIN_S)

    def is_stored(self, kind: type[R], item: KeyValue, uid: str) -> bool:
        """Whether what was found is the object of that uid."""
        obj = self._try_decode(kind, item.key, item.value, item.mod_revision)
        return obj is not None and obj.metadata.uid == uid

    # ------------------------------------------------------------ inside

    def _born(self, obj: R) -> R:
        meta = obj.metadata
        name = meta.name or (meta.generate_name + suffix() if meta.generate_name else "")
        return rules.born(obj, name=name, uid=self.new_uid(), now=rules.timestamp(self.clock.wall()))

    async def _change(self, obj: R, rule: Rule) -> R:
        kind, meta = type(obj), obj.metadata
        current = await self.get(kind, meta.name, meta.namespace)
        for _ in range(_TRIES):
            _check(current, meta.uid, meta.resource_version)
            written, current = await self._replace(current, rule(current, obj))
            if written:
                return current
        raise _conflict(current, "others keep changing it")

    async def _replace(self, current: R, wanted: R) -> tuple[bool, R]:
        """Put `wanted` where `current` is: (True, what is now) or, when it had changed, (False, what is there)."""
        gone = rules.finished(wanted)
        if wanted == current and not gone:
            return True, current
        key = keys.key_of_object(current)
        guard = Compare(key, "mod", int(current.metadata.resource_version))
        operation = Delete(key) if gone else Put(key, encode(wanted))
        free: dict[str, int] = {}
        for _ in range(_TRIES):
            claims = change_of(current, None if gone else wanted, free)
            result, sure = await self.once([guard, *claims.guards], [operation, *claims.operations], [key, *claims.wanted])
            if result.done:
                return True, with_revision(wanted, str(result.revision))
            found = result.found[0]
            if not sure and gone and (found is None or not self.is_stored(type(current), found, current.metadata.uid)):
                return True, wanted
            if not sure and isinstance(operation, Put) and found is not None and found.value == operation.value:
                return True, with_revision(wanted, str(found.mod_revision))
            if found is None or found.mod_revision != guard.value:
                return False, self._require(type(current), found, current.metadata.name, current.metadata.namespace)
            free = await nobodys(wanted, claims, result.found[1:], self.get)
        raise _conflict(current, "what it wants changes hands all the time")

    def _require(self, kind: type[R], item: KeyValue | None, name: str, namespace: str) -> R:
        words = keys.describe(kind, name, namespace)
        if item is None:
            raise NotFoundError(f"{words} does not exist.")
        obj = self._try_decode(kind, item.key, item.value, item.mod_revision)
        if obj is None:
            raise PermanentError(
                f"{words} is stored in a form that this version cannot read.",
                remedy="Use the version that wrote it; the log says which field.",
                reason="Undecodable",
            )
        return obj

    def _try_decode(self, kind: type[R], key: str, value: bytes, revision: int) -> R | None:
        try:
            return decode(kind, value, revision)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.undecodable += 1
            if self._complained.get(key) != revision:
                self._complained[key] = revision
                log.warning("%s at revision %d cannot be read and is left out: %s", key, revision, error)
            return None

    async def _changes(
        self, kind: type[R], batches: AsyncIterator[WatchBatch], bookmarks: bool, previous: bool
    ) -> AsyncGenerator[Change[R], None]:
        async for batch in batches:
            for event in batch.events:
                change = self._to_change(kind, event, previous)
                if change is not None:
                    yield change
            if bookmarks:
                yield Change(None, None, batch.revision)

    def _to_change(self, kind: type[R], event: WatchEvent, previous: bool) -> Change[R] | None:
        """None when the new object cannot be read: the last readable one stays what its watchers know."""
        if event.value is None and event.previous is None:
            raise CompactedError(f"What {event.key} was before its deletion is no longer kept.", retry_after_s=0)
        old = None
        if event.previous is not None and (previous or event.value is None):
            old = self._try_decode(kind, event.key, event.previous, event.previous_revision)
        if event.value is None:
            return Change(old, None, event.revision) if old is not None else None
        new = self._try_decode(kind, event.key, event.value, event.revision)
        return Change(old, new, event.revision) if new is not None else None


def unchanged(obj: Resource) -> Compare:
    """A guard that holds while nobody has changed the object since it was read."""
    return Compare(keys.key_of_object(obj), "mod", int(obj.metadata.resource_version))


def same(obj: Resource, create_revision: int) -> Compare:
    """A guard that holds while the object is the one created at that revision, whatever changed in it since."""
    return Compare(keys.key_of_object(obj), "create", create_revision)


def _hoped(change: Callable[[R], R | None], rule: Rule, known: R) -> R:
    """What is wanted in the place of a version that may be old; that itself where it is refused or left."""
    try:
        wanted = change(known)
    except PrimordiaError:
        return known
    hoped: R = known if wanted is None else rule(known, wanted)
    return hoped


def _check(current: Resource, uid: str, resource_version: str) -> None:
    if uid and uid != current.metadata.uid:
        raise _conflict(current, f"its uid is {current.metadata.uid} and not {uid}: it is another object of that name")
    if resource_version and resource_version != current.metadata.resource_version:
        raise _conflict(current, f"it is at version {current.metadata.resource_version} and not {resource_version}")


def _conflict(obj: Resource, why: str) -> ConflictError:
    return ConflictError(f"{_words(obj)} was not changed: {why}.", remedy="Read it again and repeat the change.")


def _words(obj: Resource) -> str:
    return keys.describe(type(obj), obj.metadata.name, obj.metadata.namespace)

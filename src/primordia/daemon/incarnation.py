"""Whether the engine is the one that this node belongs to; until that is known nothing of what it says is believed.

An engine that lost all its data and began anew knows of no context, and a node that believed it would end everything it runs.
So a node remembers on its own disk which soup it is of, in which incarnation, and waits while the engine does not know that
soup, or is behind. `primordia soup rebuild` leaves one node a file with all that the new engine is to know; that node's daemon
writes it down first, the soup's own object last, for which all others wait.
"""

from __future__ import annotations

import logging

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.files import write_atomic
from primordia.kit.paths import NodePaths
from primordia.ports.store import Compare, Put, Store
from primordia.registry.claims import change_of
from primordia.registry.codec import encode
from primordia.registry.keys import describe, key_of_object
from primordia.registry.registry import Registry
from primordia.wire.resources import BY_KIND, Soup

log = logging.getLogger(__name__)

_SOUP_FILE = "soup-seen.json"
_AGAIN_S = 0.5


class Remembered(msgspec.Struct, frozen=True):
    """The soup that this node is of."""

    uid: str
    incarnation: int


class Incarnation:
    """One node's. `least` is the incarnation that its settings name."""

    def __init__(self, registry: Registry, paths: NodePaths, least: int, clock: Clock) -> None:
        self._registry = registry
        self._paths = paths
        self._seen = paths.state / _SOUP_FILE
        self._least = least
        self._clock = clock

    async def known(self) -> None:
        """Return once the engine may be believed. Raises nothing but cancellation: it waits."""
        told = ""
        while True:
            try:
                await self._rebuild()
                why = await self._doubt()
            except (PrimordiaError, OSError, msgspec.MsgspecError) as error:
                why = str(error)
            if not why:
                return
            if why != told:
                told = why
                log.warning("nothing is changed: %s", why)
            await self._clock.sleep(_AGAIN_S)

    async def _doubt(self) -> str:
        """Why the engine is not to be believed, as a sentence; empty when it is. What is believed is remembered."""
        remembered = self._read()
        try:
            soup = await self._registry.get(Soup, "soup")
        except NotFoundError:
            if remembered is None and self._least <= 1:
                return ""  # a soup that begins
            return "the engine does not know this soup: it lost its data, or is being rebuilt"
        if remembered is not None and soup.metadata.uid != remembered.uid:
            return f"the engine is of another soup ({soup.metadata.uid}) than this node ({remembered.uid})"
        least = max(self._least, remembered.incarnation if remembered is not None else 1)
        if soup.status.incarnation < least:
            return f"the engine is of incarnation {soup.status.incarnation}, and this node of {least}"
        self.remember(soup)
        return ""

    def remember(self, soup: Soup) -> None:
        """This is the soup that the node is of."""
        seen = Remembered(soup.metadata.uid, soup.status.incarnation)
        if seen != self._read():
            write_atomic(self._seen, msgspec.json.encode(seen))

    def _read(self) -> Remembered | None:
        try:
            return msgspec.json.decode(self._seen.read_bytes(), type=Remembered)
        except FileNotFoundError:
            return None

    async def _rebuild(self) -> None:
        """Write down what `soup rebuild` left here, if it did."""
        path = self._paths.rebuild
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        plain = msgspec.json.decode(content, type=list[dict[str, object]])
        for each in plain:
            await _put(self._registry.store, each)
        log.warning("the soup is made again: %d objects", len(plain))
        path.rename(path.with_suffix(".done"))


async def _put(store: Store, plain: dict[str, object]) -> None:
    """One object as it was, uid and all, unless it is there already."""
    obj = msgspec.convert(plain, BY_KIND[str(plain["kind"])])
    key, claims = key_of_object(obj), change_of(None, obj)
    done = await store.txn([Compare(key, "mod", 0), *claims.guards], [Put(key, encode(obj)), *claims.operations])
    if not done.done and await store.get(key) is None:
        meta = obj.metadata
        log.error("%s claims what another has by now, and comes without", describe(type(obj), meta.name, meta.namespace))
        await store.txn([Compare(key, "mod", 0)], [Put(key, encode(obj))])

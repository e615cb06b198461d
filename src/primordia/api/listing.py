"""Lists: selected, in pages, all of one revision.

A page's `continue` names the revision and the last key looked at, so that the next page goes on in the same state of the
store. Selectors are matched against the stored bytes; nothing that is not selected is ever fully decoded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass

import msgspec
from aiohttp import web

from primordia.api import objects
from primordia.api.answers import json_answer, table_answer
from primordia.api.errors import RequestError
from primordia.api.negotiate import wants_table
from primordia.api.paths import ListQuery, Target
from primordia.api.services import Services
from primordia.ports.store import CompactedError, KeyValue, Store
from primordia.registry import keys
from primordia.wire import selectors

_CHUNK = 500


class Token(msgspec.Struct, frozen=True):
    """What `continue` says: behind which key, at which revision."""

    revision: int
    after: str


@dataclass(frozen=True, slots=True)
class Found:
    """The stored objects of a list. `token` is empty when there are no more."""

    items: tuple[KeyValue, ...]
    revision: int
    token: str = ""
    remaining: int = 0


def encode_token(token: Token) -> str:
    """A token as text that clients hand back unread."""
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode()


def decode_token(text: str, prefix: str) -> Token:
    """The token that `encode_token` made for this list. Raises RequestError."""
    try:
        token = msgspec.json.decode(base64.b64decode(text, altchars=b"-_", validate=True), type=Token)
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise RequestError(400, "continue: this is not a token of this API.", remedy="List again without it.") from error
    if not token.after.startswith(prefix) or not 0 < token.revision < 2**63:
        raise RequestError(400, "continue: this is a token of another list.", remedy="List again without it.")
    return token


async def find(store: Store, target: Target, query: ListQuery) -> Found:
    """The selected objects. Raises CompactedError when the asked revision is gone or not yet there."""
    selection = selectors.selection(target.kind, query.labels, query.fields)
    prefix = keys.prefix_of(target.kind, target.namespace)
    after, revision = "", query.revision if query.exact else 0
    if query.token:
        token = decode_token(query.token, prefix)
        after, revision = token.after, token.revision
    one = selection.name()
    if one and target.namespace and not revision:
        return await _find_one(store, target, one, selection)
    items: list[KeyValue] = []
    while True:
        chunk = min(_CHUNK, query.limit - len(items)) if query.limit and not selection else _CHUNK
        listing = await store.list(prefix, limit=chunk, after=after, revision=revision)
        revision = listing.revision
        for place, item in enumerate(listing.items):
            if selection and not selection.matches(item.value):
                continue
            items.append(item)
            if query.limit and len(items) >= query.limit:
                more = listing.more or place + 1 < len(listing.items)
                remaining = 0 if selection else max(0, listing.count - len(listing.items))
                return Found(tuple(items), revision, encode_token(Token(revision, item.key)) if more else "", remaining)
        if not listing.more or not listing.items:
            break
        after = listing.items[-1].key
        await asyncio.sleep(0)
    if query.revision > revision:
        raise CompactedError(f"Revision {query.revision} is not there yet; the store is at {revision}.")
    return Found(tuple(items), revision)


async def _find_one(store: Store, target: Target, name: str, selection: selectors.Selection) -> Found:
    """A list that can have one object only: what `kubectl wait` and our own `wait` ask for."""
    key = keys.key_of(target.kind, name, target.namespace)
    listing = await store.list(key, limit=1)
    items = tuple(item for item in listing.items if item.key == key and selection.matches(item.value))
    return Found(items, listing.revision)


async def answer(request: web.BaseRequest, target: Target, query: ListQuery, services: Services) -> web.Response:
    """The whole answer to a list."""
    as_table = wants_table(request.headers.get("Accept", ""))
    found = await find(services.registry.store, target, query)
    if as_table:
        typed = [objects.typed(target.kind, item.value, item.mod_revision) for item in found.items]
        meta = {"resourceVersion": str(found.revision)} | ({"continue": found.token} if found.token else {})
        return table_answer(target.kind, [obj for obj in typed if obj is not None], services, request, meta)
    encoded = (objects.with_version(target.kind, item.value, item.mod_revision) for item in found.items)
    items = [item for item in encoded if item is not None]
    return json_answer(objects.list_json(target.kind, items, found.revision, found.token, found.remaining))

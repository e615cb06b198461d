"""Stored bytes to the bytes of an answer, without decoding: an object's JSON gets its resourceVersion spliced in.

We wrote those bytes ourselves, so they begin with the kind and the metadata; where they do not (another version wrote
them), they are decoded and encoded.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable

import msgspec

from primordia.registry.codec import decode
from primordia.wire.resources import Resource

log = logging.getLogger(__name__)


@functools.cache
def _head(kind: type[Resource]) -> bytes:
    return b'{"kind":"%s","metadata":{' % kind.KIND.encode()


def with_version(kind: type[Resource], stored: bytes, revision: int) -> bytes | None:
    """The object as it is answered, None when this version cannot read what is stored."""
    head = _head(kind)
    if stored.startswith(head) and not stored.startswith(b"}", len(head)):
        return b'%s"resourceVersion":"%d",%s' % (head, revision, stored[len(head) :])
    obj = typed(kind, stored, revision)
    return msgspec.json.encode(obj) if obj is not None else None


def typed(kind: type[Resource], stored: bytes, revision: int) -> Resource | None:
    """The object itself, None (and a line in the log) when this version cannot read it."""
    try:
        return decode(kind, stored, revision)
    except (msgspec.DecodeError, UnicodeError) as error:
        log.warning("a stored %s at revision %d cannot be read: %s", kind.KIND, revision, error)
        return None


def list_json(kind: type[Resource], items: Iterable[bytes], revision: int, token: str = "", remaining: int = 0) -> bytes:
    """A list answer around encoded items."""
    meta = {"resourceVersion": str(revision)} | ({"continue": token} if token else {})
    head = {"kind": f"{kind.KIND}List", "apiVersion": kind.API_VERSION}
    counted = meta | ({"remainingItemCount": remaining} if remaining else {})
    opening = msgspec.json.encode({**head, "metadata": counted})[:-1]
    return b'%s,"items":[%s]}' % (opening, b",".join(items))

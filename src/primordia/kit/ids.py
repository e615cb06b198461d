"""Identities: uids for objects, short names for kernel things whose names are short."""

from __future__ import annotations

import hashlib
import secrets
import uuid

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def new_uid() -> str:
    """A random RFC 4122 uid, as Kubernetes gives its objects."""
    return str(uuid.uuid4())


def suffix(length: int = 5) -> str:
    """A random suffix for generated names; no vowels, so that it spells nothing."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def short_hash(text: str, length: int = 8) -> str:
    """A stable short name for `text`: hex digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]

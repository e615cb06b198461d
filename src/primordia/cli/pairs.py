"""`KEY=VALUE` on a command line."""

from __future__ import annotations

from primordia.kit.errors import PermanentError


def pair(text: str, flag: str) -> tuple[str, str]:
    """`KEY=VALUE`. Raises PermanentError."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise PermanentError(f"{flag} {text!r} is no KEY=VALUE.", remedy=f"Write: {flag} NAME=VALUE")
    return key, value

"""What another node's refusals become here: the errors that its own body of the contexts port raised. Pure."""

from __future__ import annotations

import msgspec

from primordia.kit.errors import (
    AlreadyExistsError,
    CapacityError,
    ConflictError,
    NotFoundError,
    PermanentError,
    PrimordiaError,
    TemporaryError,
    UnsupportedError,
)
from primordia.ports.guest import GuestError
from primordia.wire.meta import Status

_BY_REASON: dict[str, type[PermanentError]] = {
    each.reason: each for each in (AlreadyExistsError, ConflictError, CapacityError, UnsupportedError)
}
_UNAVAILABLE = (408, 429, 503, 504)


class NodeUnreachableError(TemporaryError):
    """The node that runs the context does not answer."""

    reason = "NodeUnreachable"


def unreachable(node: str, address: str, why: str) -> NodeUnreachableError:
    """The one sentence for a node that does not answer."""
    return NodeUnreachableError(
        f"Node {node}, where the context is, does not answer at {address} ({why.rstrip('.')}).",
        remedy="See `primordia node ls`, and try again.",
    )


def broken(node: str) -> NodeUnreachableError:
    """The one sentence for a node that fell silent in the middle."""
    return NodeUnreachableError(
        f"The connection to node {node}, where the context is, broke off.", remedy="See `primordia node ls`, and try again."
    )


def error_of(status: Status, node: str) -> PrimordiaError:
    """The error that a node's Status tells of; its sentence holds the remedy already."""
    message = status.message or f"Node {node} answered {status.code} {status.reason}."
    for cause in status.details.causes if status.details else ():
        if cause.reason and not cause.field:  # the agent's own word, as ENOENT
            return GuestError(message, reason=cause.reason)
    if status.code == 404:
        return NotFoundError(message)
    if status.reason in _BY_REASON:
        return _BY_REASON[status.reason](message)
    if status.code in _UNAVAILABLE:
        after_s = status.details.retry_after_seconds if status.details else 0
        return TemporaryError(message, retry_after_s=float(after_s or 1))
    if status.code >= 500:
        return PrimordiaError(f"Node {node}: {message}", reason=status.reason)
    return PermanentError(message, reason=status.reason)


def error_of_answer(code: int, body: bytes, node: str) -> PrimordiaError:
    """The error of an answer with a failing HTTP code; its body should be a Status, and may be anything."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, UnicodeError):
        return TemporaryError(f"Node {node} answered HTTP {code} without saying why.", reason="BrokenAnswer")
    return error_of(status, node)

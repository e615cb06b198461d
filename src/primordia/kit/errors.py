"""Errors by what the caller does next.

Every error that can reach a person is a `PrimordiaError`: one sentence that names the thing, one that says the remedy.
Anything else is a bug and is reported as such, with the trace in the log and never on the screen.
"""

from __future__ import annotations


class PrimordiaError(Exception):
    """A sentence for people. `remedy` says what to do about it; `reason` is the CamelCase word for machines."""

    reason = "Error"

    def __init__(self, message: str, *, remedy: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if reason:
            self.reason = reason

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class TemporaryError(PrimordiaError):
    """It may pass by itself: try again, at the earliest after `retry_after_s`."""

    reason = "Unavailable"

    def __init__(self, message: str, *, remedy: str = "", reason: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, remedy=remedy, reason=reason)
        self.retry_after_s = retry_after_s


class PermanentError(PrimordiaError):
    """Trying the same again gives the same answer: the request has to change."""

    reason = "Invalid"


class NotFoundError(PermanentError):
    """The named thing does not exist."""

    reason = "NotFound"


class ConflictError(PermanentError):
    """The thing changed since it was read: read again, then decide again."""

    reason = "Conflict"


class AlreadyExistsError(PermanentError):
    """A thing of that name exists."""

    reason = "AlreadyExists"


class InvalidError(PermanentError):
    """A field has a value it must not have. `field` is its path, as `spec.contexts[0].image`."""

    reason = "Invalid"

    def __init__(self, field: str, problem: str, *, remedy: str = "") -> None:
        super().__init__(f"{field}: {problem}", remedy=remedy)
        self.field = field
        self.problem = problem


class CapacityError(PermanentError):
    """The node or disk has not got what was asked for."""

    reason = "InsufficientCapacity"


class UnsupportedError(PermanentError):
    """This machine, VMM or version cannot do it."""

    reason = "Unsupported"


class FatalError(PrimordiaError):
    """The process cannot go on and must end; its supervisor decides what then."""

    reason = "Fatal"

"""Every failure as a Kubernetes Status: a code for machines, a sentence for people, the fields that are wrong."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from primordia.kit.errors import (
    AlreadyExistsError,
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermanentError,
    PrimordiaError,
    TemporaryError,
    UnsupportedError,
)
from primordia.ports.guest import GuestError
from primordia.ports.store import CompactedError
from primordia.wire.documents import DocumentError
from primordia.wire.kinds import group_of
from primordia.wire.meta import Status, StatusCause, StatusDetails
from primordia.wire.patch import PatchError
from primordia.wire.problems import InvalidResourceError
from primordia.wire.resources import Resource
from primordia.wire.selectors import SelectorError

log = logging.getLogger(__name__)

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    408: "Timeout",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class RequestError(PermanentError):
    """The request itself is wrong; `code` is the HTTP status that says how."""

    def __init__(self, code: int, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy, reason=_REASONS[code])
        self.code = code


# The first that fits decides.
_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    ((DocumentError, PatchError, SelectorError), 400),
    (NotFoundError, 404),
    ((AlreadyExistsError, ConflictError), 409),
    (CompactedError, 410),
    ((InvalidResourceError, InvalidError, CapacityError, UnsupportedError), 422),
    (TemporaryError, 503),
    ((TimeoutError, asyncio.TimeoutError), 504),
)


def status_of(error: BaseException, kind: type[Resource] | None = None, name: str = "") -> Status:
    """The Status that tells of an error. What is not ours is a bug: logged here, and never shown."""
    if isinstance(error, web.RequestPayloadError):
        return _status(400, _REASONS[400], f"The body cannot be read ({_reading(error)}).", kind, name)
    if isinstance(error, RequestError):
        return _status(error.code, error.reason, str(error), kind, name)
    if isinstance(error, GuestError):
        code = 404 if error.reason == "ENOENT" else 422
        return _status(code, _REASONS[code], str(error), kind, name, [StatusCause(reason=error.reason, message=error.message)])
    code = next((code for types, code in _CODES if isinstance(error, types)), 0)
    if not code and not isinstance(error, PermanentError):
        log.error("a request failed in a way that it should not", exc_info=error)
        message = str(error) if isinstance(error, PrimordiaError) else "The server failed in a way that it should not."
        return _status(500, "InternalError", f"{message} See the daemon's log.", kind, name)
    if isinstance(error, TimeoutError):
        return _status(504, "Timeout", "The request took too long.", kind, name)
    code = code or 422
    if isinstance(error, InvalidResourceError):  # kubectl heads the list of causes with these
        details = StatusDetails(
            name=error.name or name, group=group_of(kind) if kind else "", kind=error.kind, causes=_problems(error)
        )
        return Status(message=str(error), reason="Invalid", code=422, details=details)
    after = max(1, round(error.retry_after_s)) if isinstance(error, TemporaryError) and code == 503 else 0
    return _status(code, _reason(error, code), str(error), kind, name, _causes(error), after)


def _reading(error: BaseException) -> str:
    """What is wrong with how a body was sent (its chunks, its compression): the last line of the HTTP library's words."""
    cause = error.__cause__ or error
    lines = str(getattr(cause, "message", cause)).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(cause).__name__


def _reason(error: BaseException, code: int) -> str:
    if isinstance(error, AlreadyExistsError):
        return "AlreadyExists"
    if isinstance(error, CapacityError | UnsupportedError):
        return error.reason
    return _REASONS[code]


def _problems(error: InvalidResourceError) -> tuple[StatusCause, ...]:
    return tuple(StatusCause(reason=each.reason, message=each.message, field=each.field) for each in error.problems)


def _causes(error: BaseException) -> list[StatusCause]:
    if isinstance(error, InvalidError):
        return [StatusCause(reason="FieldValueInvalid", message=error.problem, field=error.field)]
    return []


def _status(
    code: int,
    reason: str,
    message: str,
    kind: type[Resource] | None,
    name: str,
    causes: list[StatusCause] | None = None,
    retry_after_s: int = 0,
) -> Status:
    details = StatusDetails(
        name=name,
        group=group_of(kind) if kind else "",
        kind=kind.PLURAL if kind else "",
        causes=tuple(causes or ()),
        retry_after_seconds=retry_after_s,
    )
    return Status(message=message, reason=reason, code=code, details=details if details != StatusDetails() else None)

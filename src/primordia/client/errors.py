"""What a failed request becomes: a typed error with one sentence, whatever went wrong and wherever."""

from __future__ import annotations

import ssl

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
from primordia.wire.meta import Status, StatusCause

START = "Start one with `primordia up`."


class ConnectError(TemporaryError):
    """No server of the soup answers."""

    reason = "NoServer"


class TlsError(PermanentError):
    """The two ends do not trust each other."""

    reason = "BadTLS"


class BrokenAnswerError(TemporaryError):
    """An answer began and did not end, or is none that this version understands."""

    reason = "BrokenAnswer"


class NotAllowedError(PermanentError):
    """The server knows or does not know who this is, and refuses."""

    reason = "Forbidden"


class ExpiredError(TemporaryError):
    """The asked resource version is no longer kept: list again."""

    reason = "Expired"


class MissingPathError(NotFoundError):
    """There is no such file or folder in the context."""

    reason = "ENOENT"


class BoxGoneError(NotFoundError):
    """The box is no more: killed, its time over, or ended with its parent or node."""

    reason = "BoxGone"


class CommandTimeoutError(TemporaryError):
    """A command did not end in time, and was ended."""

    reason = "Timeout"


class CommandFailedError(PermanentError):
    """A command ended with an exit code other than 0."""

    reason = "NonZeroExitCode"


class InvalidRequestError(PermanentError):
    """The object has values it must not have; `causes` names each field."""

    reason = "Invalid"

    def __init__(self, message: str, *, remedy: str = "", reason: str = "", causes: tuple[StatusCause, ...] = ()) -> None:
        super().__init__(message, remedy=remedy, reason=reason)
        self.causes = causes


_BY_REASON: dict[str, type[PermanentError]] = {
    "NotFound": NotFoundError,
    "AlreadyExists": AlreadyExistsError,
    "Conflict": ConflictError,
    "Forbidden": NotAllowedError,
    "Unauthorized": NotAllowedError,
    "InsufficientCapacity": CapacityError,
    "InsufficientMemory": CapacityError,
    "DiskPressure": CapacityError,
    "TooManyForks": CapacityError,
    "ForkTooDeep": CapacityError,
    "Unsupported": UnsupportedError,
}


def from_status(status: Status) -> PrimordiaError:
    """The error that a Status tells of."""
    message = status.message or f"The server answered {status.code} {status.reason}."
    if status.reason == "Invalid":
        return InvalidRequestError(message, causes=status.details.causes if status.details else ())
    if status.code == 404 and any(each.reason == "ENOENT" for each in (status.details.causes if status.details else ())):
        return MissingPathError(message)
    if status.reason in _BY_REASON:
        return _BY_REASON[status.reason](message, reason=status.reason)
    if status.code == 410:
        return ExpiredError(message)
    if status.code in (429, 503, 504):
        after = status.details.retry_after_seconds if status.details else 0
        return TemporaryError(message, reason=status.reason, retry_after_s=float(after or 1))
    if status.code >= 500:
        return PrimordiaError(message, reason=status.reason)
    return PermanentError(message, reason=status.reason)


def from_answer(code: int, body: bytes) -> PrimordiaError:
    """The error of an answer with a failing HTTP code; its body should be a Status, and may be anything."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, UnicodeError):
        words = " ".join(body[:200].decode(errors="replace").split())
        return BrokenAnswerError(
            f"The server answered HTTP {code} with no status: {words!r}.", remedy="Is it a Primordia server?"
        )
    return from_status(status)


def from_tls(error: ssl.SSLError, server: str) -> TlsError:
    """A failed handshake, in words: who does not trust whom, and why."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(
            f"The certificate of {server} is not accepted: {error.verify_message}.",
            remedy="The config may be of another soup: run `primordia up` to write it anew, and check this machine's clock.",
        )
    words = error.reason or str(error)
    if "CERTIFICATE_EXPIRED" in words:
        return TlsError(
            f"{server} says that this client's certificate has expired.", remedy="Run `primordia up` to get a new one."
        )
    if "ALERT" in words:
        return TlsError(
            f"{server} does not accept this client's certificate ({words}).",
            remedy="The config may be of another soup: run `primordia up` to write it anew.",
        )
    return TlsError(f"No TLS with {server} ({words}).", remedy="Check the server's address in the client config.")

"""The frames of exec over a WebSocket, as Kubernetes' `v4` and `v5.channel.k8s.io` have them; both ends use this.

Every message is binary and begins with a byte that names its channel. The server ends with a Status on channel 3: Success,
or Failure with the exit code as a cause. Version 5 adds channel 255, whose one byte names a channel that is at its end,
so that standard input can be closed. A port-forward has no channels: messages are the bytes, an empty one is the end of
its direction.
"""

from __future__ import annotations

import enum

import msgspec

from primordia.wire.meta import Status, StatusCause, StatusDetails

V5 = "v5.channel.k8s.io"
V4 = "v4.channel.k8s.io"
FORWARD = "v1.portforward.primordia.dev"

STATUS_HEADER = "Primordia-Status"
"""The Status of a refused WebSocket, percent-encoded: its body is not shown by most clients."""

INTERNAL = "/internal/v1/contexts"
"""Where a node serves the streams of its own contexts to the other nodes, by uid: INTERNAL/UID/SUBRESOURCE."""

EXIT_CODE = "ExitCode"
NOT_STARTED = "CommandNotStarted"


class Channel(enum.IntEnum):
    """The first byte of a message."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    STATUS = 3
    RESIZE = 4
    SIGNAL = 5
    """Between nodes only: one byte, the number of a signal for the process group."""
    CLOSE = 255


class TerminalSize(msgspec.Struct, frozen=True, rename="pascal"):
    """What channel 4 carries."""

    width: int
    height: int


def internal_path(uid: str, subresource: str) -> str:
    """The path of a context's stream on its own node, for the other nodes."""
    return f"{INTERNAL}/{uid}/{subresource}"


def end_of(code: int, error: str = "") -> Status:
    """The Status of a process that ended with `code`, or (with `error`) could not be started."""
    if code == 0 and not error:
        return Status(status="Success", code=200)
    message = error or f"The command ended with exit code {code}."
    details = StatusDetails(causes=(StatusCause(reason=EXIT_CODE, message=str(code)),))
    reason = NOT_STARTED if error else "NonZeroExitCode"
    return Status(status="Failure", reason=reason, message=message, details=details, code=500)


def exit_code_of(status: Status) -> int | None:
    """The exit code that a Status tells; None when it tells of something else that went wrong."""
    if status.status == "Success":
        return 0
    for cause in status.details.causes if status.details else ():
        if cause.reason == EXIT_CODE and cause.message.isascii() and cause.message.isdigit() and len(cause.message) < 10:
            return int(cause.message)
    return None

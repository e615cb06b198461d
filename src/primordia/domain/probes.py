"""Readiness: from single probe results to one steady answer, by thresholds, as Kubernetes counts them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Readiness:
    """`ready` flips after so many equal results in a row; `message` is the last failure's."""

    ready: bool = False
    in_a_row: int = 0
    message: str = ""


def judge(before: Readiness, failure: str, *, success_threshold: int, failure_threshold: int) -> Readiness:
    """Readiness after one more probe. `failure` is empty for a success, else says what went wrong."""
    success = not failure
    if success == before.ready:
        return replace(before, in_a_row=0, message=failure)
    count = before.in_a_row + 1
    if count >= max(1, success_threshold if success else failure_threshold):
        return Readiness(ready=success, message=failure)
    return replace(before, in_a_row=count, message=failure)

"""What is judged about an object, before it becomes a condition with a time in its status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`status` is True, False or Unknown; `reason` is CamelCase, `message` a sentence."""

    type: str
    status: str
    reason: str
    message: str = ""

    @classmethod
    def of(cls, kind: str, holds: bool, reason: str, message: str = "") -> Verdict:
        return cls(kind, "True" if holds else "False", reason, message)

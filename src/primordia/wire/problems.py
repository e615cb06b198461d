"""What is wrong with an object, field by field: all of it at once, because mending one at a time is no fun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from primordia.kit.errors import PermanentError

_SHOWN = 20
_LONGEST_VALUE = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """`field` is a path such as `spec.contexts[0].image`; `message` goes on after it. The reasons are Kubernetes' own."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Problems:
    """Gathers problems while an object is looked over."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def invalid(self, field: str, message: str) -> None:
        """A value that it must not have."""
        self.found.append(Problem(field, message))

    def required(self, field: str, message: str = "is missing") -> None:
        """A value that must be there."""
        self.found.append(Problem(field, message, "FieldValueRequired"))

    def duplicate(self, field: str, value: Any) -> None:
        """A value that another one of the same list has."""
        self.found.append(Problem(field, f"{show(value)} is there twice", "FieldValueDuplicate"))

    def forbidden(self, field: str, message: str) -> None:
        """A value that must not be given, or not be changed."""
        self.found.append(Problem(field, message, "FieldValueForbidden"))

    def too_many(self, field: str, count: int, most: int, what: str = "items") -> None:
        """More of something than is accepted."""
        if count > most:
            self.found.append(Problem(field, f"has {count} {what}, and at most {most} are accepted", "FieldValueTooMany"))


class InvalidResourceError(PermanentError):
    """An object that is not accepted, with every reason why."""

    reason = "Invalid"

    def __init__(self, kind: str, name: str, problems: Sequence[Problem]) -> None:
        shown = "; ".join(str(problem) for problem in problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        super().__init__(f"{kind} {show(name)} is invalid: {shown}{more}.")
        self.kind = kind
        self.name = name
        self.problems = tuple(problems)


def show(value: Any) -> str:
    """A value for a sentence: as JSON, short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 4] + '..."'

"""What volumes hold, as the world knows it: each content names the one it was written over, as commits do.

A content stands for all writes up to its time. A snapshot's root is the content's number, so that what nodes say to each
other about roots is true of contents, and who has which write is a question of ancestry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Content:
    """All that was written until `at_s` (true seconds), last in `epoch` on `node`; over its parent from `since_s` on."""

    id: int
    parent: Content | None
    since_s: float
    at_s: float
    epoch: int
    node: str

    @property
    def root(self) -> str:
        """As snapshots name it."""
        return f"{self.id:064x}"

    def has(self, other: Content) -> bool:
        """Whether everything of the other is in this one."""
        mine: Content | None = self
        while mine is not None and mine.id > other.id:
            mine = mine.parent
        return mine is other


class Contents:
    """Every content there ever was."""

    def __init__(self) -> None:
        self._all: list[Content] = []

    def write(self, parent: Content | None, since_s: float, at_s: float, epoch: int, node: str) -> Content:
        """What comes of writing between those moments."""
        made = Content(len(self._all) + 1, parent, since_s, at_s, epoch, node)
        self._all.append(made)
        return made

    def of(self, root: str) -> Content:
        """The content that a root names."""
        return self._all[int(root, 16) - 1]

"""Who waits for room, so that what becomes free wakes those whom it helps and nobody else.

Those who want the same stand in one line. Whatever may help a line wakes its first; who leaves a line, placed or gone or
changed, wakes the next. So a hundred thousand that wait cost one look for each place that becomes free, and none of them
is forgotten: a line whose first does not fit would not fit any of its others either.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
L = TypeVar("L", bound=Hashable)


class WaitingRoom(Generic[K, L]):
    """Keys in lines, each in one at most, in the order they came."""

    def __init__(self) -> None:
        self._lines: dict[L, dict[K, None]] = {}
        self._places: dict[K, L] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: K) -> bool:
        return key in self._places

    def join(self, key: K, line: L) -> K | None:
        """Stand in this line, behind the others or where it stands already; whom leaving another line lets wake."""
        if self._places.get(key) == line:
            return None
        following = self.leave(key)
        self._places[key] = line
        self._lines.setdefault(line, {})[key] = None
        return following

    def leave(self, key: K) -> K | None:
        """Wait no more; the key whose turn it is now in that line, if it waited and is not the last."""
        line = self._places.pop(key, None)
        if line is None:
            return None
        waiting = self._lines[line]
        del waiting[key]
        if not waiting:
            del self._lines[line]
            return None
        return next(iter(waiting))

    def lines(self) -> Iterator[tuple[L, K]]:
        """Every line, and who is first in it."""
        for line, waiting in self._lines.items():
            yield line, next(iter(waiting))

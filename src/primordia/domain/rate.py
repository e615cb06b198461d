"""How often a stranger may try, and how fast bytes may go. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict

_MOST_STRANGERS = 1024


class FailureLimit:
    """At most `most` failures of one stranger within `window_s` seconds; the oldest strangers are forgotten first."""

    def __init__(self, most: int, window_s: float) -> None:
        self._most = most
        self._window_s = window_s
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, who: str, now: float) -> float:
        """The seconds until the next try is allowed; 0 when it is."""
        recent = self._recent(who, now)
        return 0.0 if len(recent) < self._most else recent[-self._most] + self._window_s - now

    def failed(self, who: str, now: float) -> None:
        """Count a failure."""
        self._failures[who] = [*self._recent(who, now), now][-self._most :]
        self._failures.move_to_end(who)
        if len(self._failures) > _MOST_STRANGERS:
            self._failures.popitem(last=False)

    def _recent(self, who: str, now: float) -> list[float]:
        return [at for at in self._failures.get(who, ()) if now - at < self._window_s]


class TokenBucket:
    """At most `rate` bytes a second, in bursts of `burst`. What is larger than a burst is paid for afterwards, by waiting.

    A bucket that may go into debt: en.wikipedia.org/wiki/Token_bucket. A rate of 0 is no limit.
    """

    def __init__(self, rate: float, burst: float = 0.0) -> None:
        self.rate = rate
        self._burst = burst or rate / 4
        self._level = self._burst
        self._at_s = 0.0

    def spend(self, count: int, now: float) -> float:
        """Take so many; the seconds to wait before going on."""
        if self.rate <= 0:
            return 0.0
        self._level = min(self._burst, self._level + (now - self._at_s) * self.rate) - count
        self._at_s = now
        return max(0.0, -self._level / self.rate)

"""How much of the daemon's one thread a guest may take by sending: token buckets.

Every frame costs the daemon some microseconds, wanted or not, so a guest that floods would slow its neighbours. The
rates are far above what an honest agent sends (which fills frames of 32 KiB) and bound a flood of small frames to a
twentieth of a core and one of long frames to about an eighth. That much is felt by whoever waits for a neighbour's answer;
and more so because the VMM and whoever reads the flood share the machine's processors as well. So bulk gives way while
a neighbour is called, as it does among the streams of one agent, and has everything when nobody is. Pure: the caller
says what time it is, and waits.
"""

from __future__ import annotations

FRAMES_PER_S = 6000.0
FRAMES_BURST = 600.0
BYTES_PER_S = 96.0 * 1024 * 1024
BYTES_BURST = 4.0 * 1024 * 1024
YIELDING_BYTES_PER_S = 4.0 * 1024 * 1024
YIELDING_BURST = 1024.0 * 1024
CALL_S = 0.1
"""How long after a call was made its answer is waited for; longer ones are programs that run, and have time."""
_LONG_AGO_S = float("-inf")


class Bucket:
    """`rate` tokens come in each second, up to `burst`; a debt has to be waited for."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._then_s = now_s

    def spend(self, count: float, now_s: float) -> float:
        """Take tokens and return the seconds to wait until the debt is gone; 0 when there is none."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._then_s) * self._rate) - count
        self._then_s = now_s
        return max(0.0, -self._tokens / self._rate)

    def forgive(self) -> None:
        """There is no debt any more."""
        self._tokens = max(0.0, self._tokens)


class Crowd:
    """The guests of one daemon: which of them was called last, and when another one was. Members are told apart by identity."""

    def __init__(self) -> None:
        self._last: object = None
        self._last_s = _LONG_AGO_S
        self._other_s = _LONG_AGO_S

    def called(self, member: object, now_s: float) -> None:
        """A call to this guest begins."""
        if member is not self._last:
            self._other_s, self._last = self._last_s, member
        self._last_s = now_s

    def others_called(self, member: object, now_s: float) -> bool:
        """Whether the answer of another guest is waited for."""
        latest_s = self._other_s if member is self._last else self._last_s
        return now_s - latest_s < CALL_S


class Pace:
    """The buckets of one connection."""

    def __init__(self, now_s: float, crowd: Crowd) -> None:
        self._crowd = crowd
        self._frames = Bucket(FRAMES_PER_S, FRAMES_BURST, now_s)
        self._bytes = Bucket(BYTES_PER_S, BYTES_BURST, now_s)
        self._yielding = Bucket(YIELDING_BYTES_PER_S, YIELDING_BURST, now_s)

    def called(self, now_s: float) -> None:
        """The host calls this guest: the others give way."""
        self._crowd.called(self, now_s)

    def spend(self, frames: int, size: int, now_s: float) -> float:
        """The seconds to wait after having read so much."""
        wait_s = max(self._frames.spend(frames, now_s), self._bytes.spend(size, now_s))
        yield_s = self._yielding.spend(size, now_s)
        if self._crowd.others_called(self, now_s):
            return max(wait_s, yield_s)
        self._yielding.forgive()
        return wait_s

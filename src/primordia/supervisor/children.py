"""When to start a child again: at once after a long life, later and later after short ones. Pure; the caller has the clock.

A child that dies at every start must not take the machine's CPU with it, and one that died after hours of work should be
back before anybody notices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LONG_LIFE_S = 10.0
FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 10.0


@dataclass(frozen=True)
class ChildSpec:
    """A program to keep running. `in_host_netns` says that it lives in the host's network namespace, not the node's.

    With `data_dir` it is an engine server, which is not started when its data was there and is lost. One that `outlives`
    does not die with the supervisor.
    """

    name: str
    argv: tuple[str, ...]
    log: str
    env: dict[str, str] = field(default_factory=dict)
    in_host_netns: bool = False
    stop_timeout_s: float = 10.0
    data_dir: str = ""
    outlives: bool = False


@dataclass(frozen=True)
class Restart:
    """The decision after a child's end: start it again at `at`, having died `short_lives` times in a row."""

    at: float
    short_lives: int


def after_exit(now: float, started_at: float, short_lives: int) -> Restart:
    """Decide the next start. Times are seconds of one monotonic clock."""
    if now - started_at >= LONG_LIFE_S:
        return Restart(now, 0)
    delay = 0.0 if short_lives == 0 else min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (short_lives - 1))
    return Restart(now + delay, short_lives + 1)


def ending(status: int) -> str:
    """What a wait status means, for the log."""
    if status & 0x7F:
        return f"killed by signal {status & 0x7F}"
    return f"exit code {(status >> 8) & 0xFF}"

"""When a program that ended is started again.

The rules and the figures are those of the kubelet (`restartPolicy`, CrashLoopBackOff): the first restart comes at once,
the next after 10 s, then twice as long each time up to five minutes; a run of ten minutes wipes the slate clean.
"""

from __future__ import annotations

FIRST_DELAY_S = 10.0
LONGEST_DELAY_S = 300.0
GOOD_RUN_S = 600.0
_DOUBLINGS_TO_LONGEST = 5


def wants_restart(policy: str, exit_code: int | None) -> bool:
    """Whether a program that ended is to run again. `exit_code` None says that its microVM died under it."""
    if policy == "Always":
        return True
    return policy == "OnFailure" and exit_code != 0


def delay_s(ends: int) -> float:
    """Seconds between the end of a run and the next start, after `ends` short runs in a row (this one included)."""
    if ends <= 1:
        return 0.0
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(ends - 2, _DOUBLINGS_TO_LONGEST))


def attempt_delay_s(failures: int) -> float:
    """Seconds until the next try after `failures` starts in a row did not succeed (image, disk, boot)."""
    return delay_s(max(failures, 1) + 1)


def ends_in_a_row(before: int, ran_s: float) -> int:
    """The count of short runs in a row once a run of `ran_s` seconds has ended."""
    return 1 if ran_s >= GOOD_RUN_S else before + 1

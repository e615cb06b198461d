"""The restart decision and the words for a child's end."""

import os
import signal
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from primordia.supervisor.children import LONG_LIFE_S, LONGEST_DELAY_S, after_exit, ending


def test_a_first_death_is_followed_by_a_start_at_once():
    assert after_exit(now=100.0, started_at=99.0, short_lives=0).at == 100.0


def test_repeated_short_lives_wait_longer_and_longer_up_to_a_bound():
    delays = []
    short_lives = 0
    for _ in range(12):
        decision = after_exit(now=0.0, started_at=0.0, short_lives=short_lives)
        delays.append(decision.at)
        short_lives = decision.short_lives
    assert delays == sorted(delays)
    assert delays[1] > 0
    assert delays[-1] == LONGEST_DELAY_S


def test_a_long_life_forgives_the_short_ones_before():
    decision = after_exit(now=LONG_LIFE_S, started_at=0.0, short_lives=9)
    assert (decision.at, decision.short_lives) == (LONG_LIFE_S, 0)


@given(now=st.floats(0, 1e9), age=st.floats(0, 1e6), short_lives=st.integers(0, 1000))
def test_the_next_start_is_never_in_the_past_and_never_far_away(now, age, short_lives):
    decision = after_exit(now, now - age, short_lives)
    assert now <= decision.at <= now + LONGEST_DELAY_S


def test_endings_are_said_in_words():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    assert ending(os.waitpid(process.pid, 0)[1]) == "exit code 7"
    process.returncode = 0
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(signal.SIGKILL)
    assert ending(os.waitpid(process.pid, 0)[1]) == "killed by signal 9"
    process.returncode = 0

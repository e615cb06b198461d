"""Restart rules and probe thresholds, as tables."""

import pytest

from primordia.domain.probes import Readiness, judge
from primordia.domain.restart import attempt_delay_s, delay_s, ends_in_a_row, wants_restart


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        ("Always", 0, True),
        ("Always", 1, True),
        ("Always", None, True),
        ("OnFailure", 0, False),
        ("OnFailure", 3, True),
        ("OnFailure", None, True),
        ("Never", 0, False),
        ("Never", 1, False),
        ("Never", None, False),
    ],
)
def test_restart_policy(policy: str, code: int | None, again: bool) -> None:
    assert wants_restart(policy, code) is again


def test_back_off_grows_and_is_bounded() -> None:
    assert [delay_s(ends) for ends in range(9)] == [0, 0, 10, 20, 40, 80, 160, 300, 300]
    assert delay_s(10**9) == 300
    assert [attempt_delay_s(failures) for failures in (0, 1, 2)] == [10, 10, 20]


def test_a_good_run_wipes_the_slate() -> None:
    assert ends_in_a_row(5, 599) == 6
    assert ends_in_a_row(5, 600) == 1


def test_readiness_flips_only_at_its_thresholds() -> None:
    state = Readiness()
    seen = []
    for failure in ["", "", "x", "x", "", "x", "x", "x", ""]:
        state = judge(state, failure, success_threshold=2, failure_threshold=3)
        seen.append(state.ready)
    assert seen == [False, True, True, True, True, True, True, False, False]
    assert state.message == ""

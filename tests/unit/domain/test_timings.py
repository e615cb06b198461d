"""The timings of leases, fence and failover: which sets are refused, and how they are read from settings."""

from __future__ import annotations

import pytest

from primordia.domain.timings import Timings
from primordia.kit.errors import InvalidError


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"ttl_s": 5}, "ttl_s"),
        ({"deadline_s": 5.0}, "deadline_s"),
        ({"request_timeout_s": 2.0}, "request_timeout_s"),
        ({"renew_every_s": 0.0}, "renew_every_s must be above 0"),
        ({"renew_every_s": float("nan")}, "renew_every_s"),
        ({"absent_grace_s": float("inf")}, "absent_grace_s"),
        ({"renew_every_s": 3.5}, "renew_every_s"),
        ({"drift_s": 0.6}, "drift_s"),
        ({"takeover_ttl_s": 2.0}, "takeover_ttl_s"),
        ({"failsafe_round_s": 2.1}, "failsafe_round_s"),
        ({"contact_s": 1.4}, "contact_s"),
        ({"contact_s": 2.5}, "contact_s"),
        ({"daemon_silence_s": 2.9}, "daemon_silence_s"),
        ({"daemon_silence_s": 91.0}, "restart_silence_s"),
        ({"absent_grace_s": 5.0}, "absent_grace_s"),
        ({"hold_share": 1.5}, "hold_share"),
    ],
)
def test_unsafe_timings_are_refused(change, names):
    with pytest.raises(ValueError, match=names):
        Timings(**change)
    with pytest.raises(InvalidError, match=r"^timings: "):
        Timings.of(change)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"deadline": 4}, "timings.deadline: there is no such timing"),
        ({"deadline_s": "4"}, "timings.deadline_s: '4' is no number"),
        ({"deadline_s": True}, "timings.deadline_s: True is no number"),
        ({"ttl_s": 6.5}, "timings.ttl_s: 6.5 is no whole number"),
    ],
)
def test_settings_that_are_none_are_named(settings, says):
    with pytest.raises(InvalidError) as refused:
        Timings.of(settings)
    assert str(refused.value).startswith(says)


def test_what_is_not_said_is_as_usual():
    assert Timings.of({}) == Timings()
    slower = Timings.of({"ttl_s": 12.0, "deadline_s": 8})
    assert slower == Timings(ttl_s=12, deadline_s=8) and isinstance(slower.ttl_s, int)

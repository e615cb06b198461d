"""Percentiles, ratios and the shape of a figure."""

from __future__ import annotations

import pytest

from primordia.bench.figures import faster, figure, paired, percentile


def test_nearest_rank() -> None:
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(samples, 50) == 3.0
    assert percentile(samples, 99) == 5.0
    assert percentile(samples, 1) == 1.0
    assert percentile([7.0], 50) == 7.0


def test_of_two_the_lower_is_the_median() -> None:
    assert percentile([2.0, 1.0], 50) == 1.0


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_ratio_is_of_medians() -> None:
    made = figure("api_get", "ms", [2.0, 4.0, 100.0], [1.0, 2.0, 3.0])
    assert (made.p50, made.baseline, made.ratio) == (4.0, 2.0, 2.0)


def test_ratio_of_partners_forgives_what_slowed_both() -> None:
    made = paired("boot_first_command", "ms", [2.0, 40.0, 60.0], [1.0, 20.0, 30.0])
    assert (made.n, made.p50, made.baseline, made.ratio) == (3, 40.0, 20.0, 2.0)
    assert paired("x", "ms", [2.0, 30.0, 90.0], [1.0, 20.0, 30.0]).ratio == 2.0


def test_what_replaces_its_baseline_says_how_many_times_it_is_faster() -> None:
    made = faster("cold_fork_confirmed", "ms", [100.0, 90.0, 110.0], [3000.0])
    assert (made.p50, made.baseline, made.ratio) == (100.0, 3000.0, 30.0)
    assert faster("x", "ms", [0.0], [1.0]).ratio is None


def test_partners_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired("x", "ms", [1.0, 2.0], [1.0])
    assert paired("x", "ms", [1.0], [0.0]).ratio is None


def test_shape_is_the_agreed_one() -> None:
    made = figure("exec_round_trip", "ms", [1.23456])
    assert list(made.plain()) == ["name", "unit", "n", "min", "p50", "p99", "max", "baseline", "ratio"]
    assert made.plain() == {
        "name": "exec_round_trip",
        "unit": "ms",
        "n": 1,
        "min": 1.235,
        "p50": 1.235,
        "p99": 1.235,
        "max": 1.235,
        "baseline": None,
        "ratio": None,
    }


def test_a_baseline_of_nothing_gives_no_ratio() -> None:
    assert figure("idle", "cores", [0.0], [0.0]).ratio is None

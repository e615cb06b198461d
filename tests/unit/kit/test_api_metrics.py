"""The exposition text, and that one broken source costs only itself."""

from __future__ import annotations

from collections.abc import Iterable

from primordia.kit.metrics import Metrics, Sample


def test_counters_histograms_and_gauges() -> None:
    metrics = Metrics()
    counter = metrics.counter("requests_total", "Requests.\nAll.", ("verb",))
    counter.add("GET")
    counter.add("GET", by=2)
    counter.add('a"b\\c\n')
    histogram = metrics.histogram("time_seconds", "Time.", ("verb",))
    histogram.observe(0.001, "GET")
    histogram.observe(0.3, "GET")
    histogram.observe(99, "GET")
    metrics.source(
        lambda: [Sample("b_bytes", 1.5, "B.", {"node": "n"}), Sample("a", 1), Sample("b_bytes", 2, "B.", {"node": "m"})]
    )
    lines = metrics.render().splitlines()
    assert lines[:4] == [
        "# HELP requests_total Requests.\\nAll.",
        "# TYPE requests_total counter",
        'requests_total{verb="GET"} 3',
        'requests_total{verb="a\\"b\\\\c\\n"} 1',
    ]
    assert 'time_seconds_bucket{verb="GET",le="0.001"} 1' in lines
    assert 'time_seconds_bucket{verb="GET",le="0.25"} 1' in lines
    assert 'time_seconds_bucket{verb="GET",le="0.5"} 2' in lines
    assert 'time_seconds_bucket{verb="GET",le="+Inf"} 3' in lines
    assert 'time_seconds_count{verb="GET"} 3' in lines
    assert lines[-7:] == [
        "# HELP a ",
        "# TYPE a gauge",
        "a 1",
        "# HELP b_bytes B.",
        "# TYPE b_bytes gauge",
        'b_bytes{node="n"} 1.5',
        'b_bytes{node="m"} 2',
    ]


def test_a_source_that_fails_costs_only_its_own_lines() -> None:
    def broken() -> Iterable[Sample]:
        raise RuntimeError("no")

    metrics = Metrics()
    metrics.source(broken)
    metrics.source(lambda: [Sample("a", 1)])
    assert "a 1" in metrics.render()

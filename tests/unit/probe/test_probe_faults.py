"""Which faults a seed gives, whom they hurt, and what the witness's lines and the acknowledgements say."""

from __future__ import annotations

import json
import random

import pytest

from primordia.probe import ledger
from primordia.probe.deeds import rules
from primordia.probe.faults import KINDS, Cast, Fault, shuffled
from primordia.probe.witness import Line, Thaw, doubled
from primordia.probe.works import longest_gap

CAST = Cast({"a": "n1", "b": "n5"}, {"r1": ("n1", "n4"), "r2": ("n2", "n5"), "r3": ("n3", "n6")})


def test_a_seed_gives_the_same_faults_again_and_each_kind_before_any_comes_twice() -> None:
    first = shuffled(random.Random(7), 2 * len(KINDS))
    assert first == shuffled(random.Random(7), 2 * len(KINDS))
    assert first != shuffled(random.Random(8), 2 * len(KINDS))
    assert {fault.kind for fault in first[: len(KINDS)]} == set(KINDS)
    assert {fault.kind for fault in shuffled(random.Random(7), 5, ("power cut",))} == {"power cut"}


def test_a_fault_hurts_the_node_of_a_workload_any_node_or_a_whole_rack() -> None:
    assert CAST.victims(Fault("power cut", "owner", 0.0)) == ("n1",)
    assert CAST.victims(Fault("power cut", "owner", 0.99)) == ("n5",)
    assert CAST.victims(Fault("power cut", "any", 0.99)) == ("n6",)
    assert CAST.victims(Fault("rack loss", "owner", 0.99)) == ("n2", "n5")


def test_a_write_of_an_epoch_that_is_over_is_seen() -> None:
    lines = [
        Line(1.0, "a", "n1", "w", 1, 1),
        Line(2.0, "b", "n5", "w", 3, 1),
        Line(3.0, "a", "n2", "w", 2, 1),
        Line(4.0, "a", "n1", "hello", 1, 0),
    ]
    assert doubled(lines) == []
    assert doubled([*lines, Line(4.5, "a", "n1", "w", 1, 2)]) == [
        "a: n1 wrote 2 in epoch 1, 1.500 s after n2 had begun to write in epoch 2"
    ]
    assert len(doubled([*lines, Line(4.5, "a", "n1", "a", 1, 2)])) == 1


def test_only_what_nobody_acknowledged_is_forgiven_to_a_node_that_wakes_up() -> None:
    lines = [Line(1.0, "a", "n1", "w", 1, 1), Line(3.0, "a", "n2", "w", 2, 1)]
    thaws = [Thaw("n1", 4.4)]
    assert doubled([*lines, Line(4.5, "a", "n1", "w", 1, 2)], thaws) == []
    assert len(doubled([*lines, Line(4.5, "a", "n1", "a", 1, 2)], thaws)) == 1
    assert len(doubled([*lines, Line(5.0, "a", "n1", "w", 1, 2)], thaws)) == 1
    assert len(doubled([*lines, Line(4.5, "a", "n3", "w", 1, 2)], thaws)) == 1


def test_the_longest_time_without_an_acknowledgement() -> None:
    assert longest_gap([1.0, 2.0, 9.0, 10.0], 1.5, 9.5) == 7.0
    assert longest_gap([], 1.0, 4.0) == 3.0


def test_a_dump_is_every_record_of_every_epoch() -> None:
    said = {"whole": True, "self": {"epoch": 2}, "found": {"1": [[1, 3], [5, 5]], "2": [[4, 4]]}}
    assert ledger.parse(json.dumps(said).encode()).records == {(1, 1), (1, 2), (1, 3), (1, 5), (2, 4)}
    with pytest.raises(ValueError):
        ledger.parse(b"")


@pytest.mark.parametrize("kind", ["partition, hears nothing", "partition, says nothing", "partition from the engine"])
def test_a_cut_of_one_direction_is_one_chain(kind: str) -> None:
    assert rules(kind).count("chain") == 1
    assert "drop" in rules(kind)

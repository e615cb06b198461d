"""Which benchmarks share a soup, and of which shape it is."""

from __future__ import annotations

from primordia.bench import ready
from primordia.bench.runner import ALONE, BENCHES, SHAPES, grounds
from primordia.cli.tree import build
from primordia.host.shape import Shape, plan_nodes

ONE, SIX = Shape(), Shape(nodes=6, racks=3, segments=2)


def test_each_has_the_soup_that_it_needs_and_shares_it() -> None:
    assert list(grounds(["idle", "exec", "ready"], "", ONE)) == [((ONE, True), ["idle", "exec"]), ((SIX, True), ["ready"])]
    assert list(grounds(["ready"], "", ONE)) == [((SIX, True), ["ready"])]
    assert list(grounds([], "", ONE)) == []


def test_a_shape_that_was_asked_for_holds_for_all() -> None:
    assert list(grounds(["idle", "ready"], "", SIX)) == [((SIX, True), ["idle", "ready"])]


def test_what_measures_boots_has_a_soup_in_which_lifeforms_boot() -> None:
    assert list(grounds(["idle", "boot", "fork"], "", ONE)) == [((ONE, True), ["idle"]), ((ONE, False), ["boot", "fork"])]
    assert list(grounds(["idle", "boot"], "", SIX)) == [((SIX, True), ["idle"]), ((SIX, False), ["boot"])]


def test_a_running_soup_is_measured_as_it_is() -> None:
    assert list(grounds(["idle", "boot", "ready"], "mine", ONE)) == [((ONE, True), ["idle", "boot", "ready"])]


def test_the_soup_of_six_has_three_engine_members_on_three_racks() -> None:
    nodes = plan_nodes(SHAPES["ready"])
    assert len({node.rack for node in nodes if node.engine}) == 3
    assert len(nodes) == ready.LIFEFORMS


def test_every_benchmark_can_be_asked_for_by_name() -> None:
    for name in (*BENCHES, *ALONE, "all"):
        assert build().parse_args(["bench", name]).names == [name]

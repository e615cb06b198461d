"""Where copies lie: the hard rules and the words for their refusal."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.copies import CopyRequest, Holder, blast_radius, place_copies

GIB = 1 << 30


def node(name: str, rack: str, segment: str = "east", free: int = 50, **other: bool) -> Holder:
    """A node with so many GiB free of 100."""
    return Holder(name, segment, rack, total_bytes=100 * GIB, free_bytes=free * GIB, **other)


OWNER = node("n1", "r1")


def test_each_copy_has_a_rack_of_its_own() -> None:
    nodes = [OWNER, node("n2", "r1", free=99), node("n3", "r2"), node("n4", "r2", free=60), node("n5", "r3")]
    placed = place_copies(CopyRequest("n1", GIB, 2), nodes)
    assert (placed.nodes, placed.short) == (("n4", "n5"), 0)
    short = place_copies(CopyRequest("n1", GIB, 3), nodes)
    assert (short.nodes, short.short) == (("n4", "n5"), 1)
    assert short.message == (
        "2 of 3 copies have a place: each needs a rack of its own, apart from the owner's. "
        "Of the others: 2 on a rack that holds the owner or a copy."
    )


def test_equal_rack_names_of_two_segments_are_two_racks() -> None:
    assert place_copies(CopyRequest("n1", GIB, 1), [OWNER, node("n2", "r1", "west")]).nodes == ("n2",)


def test_segments() -> None:
    nodes = [OWNER, node("n2", "r2"), node("n3", "r1", "west"), node("n4", "r2", "west")]
    placed = place_copies(CopyRequest("n1", GIB, 2, spread="segment"), nodes)
    assert (placed.nodes, placed.short) == (("n3",), 1)
    assert "2 on a segment that holds the owner or a copy" in placed.message


def test_every_refusal_is_named() -> None:
    nodes = [
        OWNER,
        node("a", ""),
        node("b", "r2", ready=False),
        node("c", "r3", unschedulable=True),
        node("d", "r4", free=0),
        node("e", "r5", healthy=False),
    ]
    placed = place_copies(CopyRequest("n1", GIB, 1), nodes)
    assert placed.nodes == ()
    for words in ("without segment and rack", "not ready", "cordoned", "1.0 GiB free", "unhealthy"):
        assert words in placed.message
    assert "no other node" in place_copies(CopyRequest("n1", GIB, 1), [OWNER]).message
    assert "segment and rack" in place_copies(CopyRequest("n1", GIB, 1), [replace(OWNER, rack="")]).message
    assert "is not there" in place_copies(CopyRequest("nx", GIB, 1), [OWNER]).message


def test_copies_that_lie_well_stay() -> None:
    nodes = [OWNER, node("n2", "r2", free=0, unschedulable=True), node("n3", "r2", free=90), node("n4", "r3")]
    assert place_copies(CopyRequest("n1", GIB, 1, present=frozenset({"n2"})), nodes).nodes == ("n2",)


racks = st.lists(st.tuples(st.sampled_from("ew"), st.sampled_from(["", "1", "2", "3"]), st.integers(0, 9)), max_size=9)


@given(racks, st.integers(0, 5))
def test_the_rules_hold_whatever_there_is(places: list[tuple[str, str, int]], count: int) -> None:
    nodes = [OWNER, *(node(f"x{i}", rack, segment, free=free) for i, (segment, rack, free) in enumerate(places))]
    placed = place_copies(CopyRequest("n1", 4 * GIB, count), nodes)
    by_name = {each.name: each for each in nodes}
    sites = [(by_name[name].segment, by_name[name].rack) for name in ("n1", *placed.nodes)]
    assert len(set(sites)) == len(sites)
    assert all(by_name[name].rack and by_name[name].free_bytes >= 4 * GIB for name in placed.nodes)
    possible = {(s, r) for s, r, free in places if r and free >= 4} - {("east", "r1")}
    assert len(placed.nodes) == min(count, len(possible))
    assert placed.short == count - len(placed.nodes)


def test_blast_radius() -> None:
    a, b, c = node("a", "r1"), node("b", "r2"), node("c", "r2")
    found = {each.rack: each for each in blast_radius({"v": [a, b], "w": [b, c], "x": [a, b, node("d", "r3")]})}
    assert (found["r2"].lost, found["r2"].last_copy) == (("w",), ("v",))
    assert (found["r1"].lost, found["r1"].last_copy) == ((), ("v",))
    assert found["r3"].lost == found["r3"].last_copy == ()

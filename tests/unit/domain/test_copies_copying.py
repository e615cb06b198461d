"""What a holder is sent next, what must stay for it, and who counts for a sync."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.copying import (
    Begun,
    Held,
    Send,
    batches,
    empty_delta,
    enough,
    held_number,
    nearest,
    next_send,
    relied_on,
    state_of,
)
from primordia.domain.ranges import Range, merge
from primordia.domain.rate import TokenBucket
from primordia.domain.snapshots import Delta, Lag, Manifest


def owner(*roots: tuple[int, str]) -> list[Manifest]:
    return [Manifest("v", 1, number, "", 65536, float(number), (), root) for number, root in roots]


OWNER = owner((1, "a"), (2, "b"), (3, "c"), (5, "e"))


def test_the_newest_common_is_where_it_begins_and_the_newest_where_it_goes() -> None:
    assert next_send([], []) is None
    assert next_send(OWNER, []) == Send(5, 0, "")
    assert next_send(OWNER, []).whole  # type: ignore[union-attr]
    assert next_send(OWNER, [Held(1, "a"), Held(2, "b")]) == Send(5, 2, "b")
    assert next_send(OWNER, [Held(5, "e")]) is None


def test_a_tail_that_the_owner_lacks_is_put_aside() -> None:
    assert next_send(OWNER, [Held(2, "b"), Held(4, "x")]) == Send(5, 2, "b", aside=True)
    assert next_send(OWNER, [Held(2, "b"), Held(9, "x")]) == Send(5, 2, "b", aside=True)
    assert next_send(OWNER, [Held(2, "x"), Held(5, "y")]) == Send(5, 0, "", aside=True)
    assert next_send(OWNER, [Held(2, "b"), Held(7, "e")]) == Send(5, 2, "b", aside=True)


def test_what_the_owner_had_to_put_aside_stays_with_who_has_it_until_there_is_something_newer() -> None:
    held = [Held(3, "c"), Held(5, "e"), Held(6, "f")]
    assert next_send(OWNER, held, damaged=(6,)) is None
    assert next_send(OWNER, held) == Send(5, 3, "c", aside=True), "another one's tail does not"
    assert next_send(OWNER, [*held, Held(7, "x")], damaged=(6,)) == Send(5, 3, "c", aside=True)
    assert next_send(OWNER, [Held(3, "c"), Held(6, "f")], damaged=(6,)) == Send(5, 3, "c", aside=True)
    assert next_send([*OWNER, *owner((7, "g"))], held, damaged=(6,)) == Send(7, 5, "e", aside=True)


def test_the_same_content_under_another_number() -> None:
    back = owner((1, "a"), (2, "b"), (3, "a"))
    assert next_send(back, [Held(1, "a")]) == Send(3, 1, "a")
    assert next_send(back, [Held(2, "b")]) == Send(3, 2, "b")
    alone = owner((3, "a"))
    send = next_send(alone, [Held(1, "a")])
    assert send == Send(3, 0, "a")
    assert empty_delta(alone, send) == Delta(alone[0], "a", ())
    assert empty_delta(OWNER, Send(5, 0, "")) is None


def test_what_was_cut_off_goes_on_while_it_leads_somewhere() -> None:
    begun = Begun(3, "c", "b", 4096)
    assert next_send(OWNER, [Held(2, "b")], begun) == Send(3, 2, "b", 4096)
    assert next_send(OWNER, [Held(3, "c")], begun) == Send(5, 3, "c")
    assert next_send(owner((2, "b"), (5, "e")), [Held(2, "b")], begun) == Send(5, 2, "b")
    assert next_send(OWNER, [], Begun(5, "e", "", 9)) == Send(5, 0, "", 9)


def test_what_a_holder_relies_on() -> None:
    assert relied_on(OWNER, [Held(1, "a"), Held(2, "b")]) == {2}
    assert relied_on(OWNER, []) == frozenset()
    assert held_number(OWNER, [Held(2, "b"), Held(3, "z")]) == 2
    assert held_number(OWNER, []) == 0


def test_copies_of_the_owners_rack_or_without_a_rack_do_not_count() -> None:
    sites = {"n1": ("e", "r1"), "n2": ("e", "r1"), "n3": ("e", "r2"), "n4": ("e", "r2"), "n5": ("w", "r1"), "n6": ("", "")}
    everyone = dict.fromkeys(sites, 7)
    assert enough(everyone, sites, ("e", "r1"), 7) == ("n3", "n5")
    assert enough({**everyone, "n3": 6}, sites, ("e", "r1"), 7) == ("n4", "n5")
    assert enough({**everyone, "gone": 9}, sites, ("e", "r1"), 8) == ()


def test_the_nearest_source_is_first() -> None:
    sources = {"far": ("w", "r1"), "near": ("e", "r1"), "own": ("e", "r2"), "next": ("e", "r2")}
    assert nearest(sources, ("e", "r1"), "own") == ("near", "next", "own", "far")


def test_states() -> None:
    behind = Lag(3, 100, 20.0)
    assert state_of(3, Lag(), 1.0, False, "") == "InSync"
    assert state_of(3, Lag(1, 9, 2.0), 1.0, False, "") == "InSync"
    assert state_of(3, behind, 1.0, False, "") == "Behind"
    assert state_of(3, behind, 60.0, False, "") == "InSync"
    assert state_of(0, behind, 1.0, False, "") == "Seeding"
    assert state_of(3, behind, 1.0, True, "away") == "Unreachable"
    assert state_of(3, behind, 1.0, False, "its pool is full") == "Failed"


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 90))), st.integers(1, 64))
def test_batches_are_the_same_bytes_in_order(pairs: list[tuple[int, int]], most: int) -> None:
    ranges = merge(Range(*each) for each in pairs)
    cut = batches(ranges, most)
    assert merge(each for batch in cut for each in batch) == ranges
    assert [each for batch in cut for each in batch] == sorted(each for batch in cut for each in batch)
    assert all(0 < sum(each.length for each in batch) <= most for batch in cut)
    assert all(sum(each.length for each in batch) == most for batch in cut[:-1])


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50))
def test_a_bucket_holds_its_rate(counts: list[int]) -> None:
    bucket, now = TokenBucket(100.0, 50.0), 5.0
    for count in counts:
        now += bucket.spend(count, now)
    assert now - 5.0 >= (sum(counts) - 50) / 100.0 - 1e-6
    assert now - 5.0 <= sum(counts) / 100.0 + 1e-6
    assert TokenBucket(0).spend(1 << 40, now) == 0

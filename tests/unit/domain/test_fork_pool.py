"""The pool's planner: where it leads, and what it never does."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.pool import Pool, Room, plan

ROOMY = Room(free_bytes=1000, reserve_bytes=100, forks_left=50)


def pool(template: str = "py", **more: int) -> Pool:
    return Pool(template, **{"minimum": 2, "maximum": 5, "paused_bytes": 10, **more})


def test_an_empty_pool_is_filled_to_its_minimum_and_no_further() -> None:
    held = 0
    while (step := plan([pool(waiting=held)], ROOMY)).verb == "add":
        held += 1
    assert held == 2
    assert (step.verb, step.reason) == ("rest", "every pool is full")


def test_claims_of_late_raise_what_is_wanted_up_to_the_maximum() -> None:
    assert pool(lately=4).wanted == 4
    assert pool(lately=40).wanted == 5
    assert pool(minimum=9).wanted == 5


def test_the_neediest_is_filled_first() -> None:
    assert plan([pool("a", waiting=1), pool("b")], ROOMY).template == "b"
    assert plan([pool("a", arriving=1), pool("b", minimum=4, waiting=1)], ROOMY).template == "b"


def test_more_than_is_wanted_is_dropped() -> None:
    step = plan([pool(waiting=3)], ROOMY)
    assert (step.verb, step.template) == ("drop", "py")


def test_short_memory_shrinks_the_fullest_even_below_its_minimum() -> None:
    for short in (replace(ROOMY, free_bytes=50), replace(ROOMY, stalled_percent=30.0)):
        assert plan([pool("a", waiting=1), pool("b", waiting=2)], short).template == "b"
        assert plan([pool("a", waiting=1)], short).verb == "drop"
        assert plan([pool("a")], short).verb == "rest"


def test_the_reserve_and_the_limit_are_kept() -> None:
    assert plan([pool()], replace(ROOMY, free_bytes=105)).reason.endswith("reserve")
    assert plan([pool()], replace(ROOMY, forks_left=0)).verb == "rest"


pools = st.lists(
    st.builds(
        Pool,
        template=st.sampled_from("abc"),
        minimum=st.integers(0, 4),
        maximum=st.integers(0, 6),
        waiting=st.integers(0, 6),
        lately=st.integers(0, 9),
        paused_bytes=st.just(30),
    ),
    max_size=3,
    unique_by=lambda each: each.template,
)
rooms = st.builds(
    Room,
    free_bytes=st.integers(0, 600),
    reserve_bytes=st.just(100),
    forks_left=st.integers(-2, 8),
    stalled_percent=st.sampled_from([0.0, 50.0]),
)


@given(pools, rooms)
def test_steps_come_to_rest_and_break_no_limit(given_pools: list[Pool], room: Room) -> None:
    held = {each.template: each for each in given_pools}
    for _ in range(60):
        step = plan(list(held.values()), room)
        if step.verb == "rest":
            return
        before, change = held[step.template], 1 if step.verb == "add" else -1
        after = held[step.template] = replace(before, waiting=before.waiting + change)
        room = replace(room, free_bytes=room.free_bytes - 30 * change, forks_left=room.forks_left - change)
        assert after.waiting >= 0
        if change > 0:
            assert after.waiting <= after.maximum
            assert room.free_bytes >= room.reserve_bytes
            assert room.forks_left >= 0
    raise AssertionError("the plan does not come to rest")

"""The state machine of moves: every phase waits for what it must, and gives up only while that costs nothing."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.moving import (
    Choose,
    Destination,
    Done,
    Enter,
    GiveUp,
    HandOver,
    Move,
    Nothing,
    View,
    Wait,
    decide,
    read_destination,
)

HERE = View("n1", 3)
SEEDING = Move("Seeding", "n1", "n2", 3)
words = st.sampled_from(["", "something is missing"])
views = st.builds(
    View,
    st.sampled_from(["n1", "n2", ""]),
    st.sampled_from([3, 4]),
    wish=st.booleans(),
    deleting=st.booleans(),
    rooted=words,
    lacks=words,
    unseeded=words,
    running=words,
    unhanded=words,
    starting=words,
    overdue=words,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("node/n2", Destination("node", "n2")),
        ("rack/r1", Destination("rack", "r1")),
        ("segment/east", Destination("segment", "east")),
        ("elsewhere", Destination("elsewhere")),
        ("elsewhere/n2", None),
        ("node/", None),
        ("node", None),
        ("n2", None),
        ("", None),
        ("shelf/s1", None),
    ],
)
def test_a_wish_is_a_place_of_a_known_kind(text: str, found: Destination | None) -> None:
    assert read_destination(text) == found


def test_the_way_in_order() -> None:
    assert decide(HERE, None) == Choose()
    assert decide(dataclasses.replace(HERE, unseeded="a copy"), SEEDING) == Wait("a copy")
    assert decide(HERE, SEEDING) == Enter("Stopping")
    stopping = dataclasses.replace(SEEDING, phase="Stopping")
    assert decide(dataclasses.replace(HERE, running="main runs"), stopping) == Wait("main runs")
    assert decide(HERE, stopping) == Enter("HandingOver")
    handing = dataclasses.replace(SEEDING, phase="HandingOver")
    assert decide(dataclasses.replace(HERE, unhanded="the last"), handing) == Wait("the last")
    assert decide(HERE, handing) == HandOver()
    there, started = View("n2", 4, wish=False), Move("Starting", "n1", "n2", 4)
    assert decide(dataclasses.replace(there, starting="main starts"), started) == Wait("main starts")
    assert decide(there, started) == Done()


def test_without_a_wish_there_is_nothing_and_what_is_better_left_stays() -> None:
    assert decide(dataclasses.replace(HERE, wish=False), None) == Nothing()
    assert isinstance(decide(dataclasses.replace(HERE, node=""), None), GiveUp)
    assert decide(dataclasses.replace(HERE, rooted="it has ended"), None) == GiveUp("it has ended")


@given(views, st.sampled_from(["Seeding", "Stopping", "HandingOver"]))
def test_it_is_handed_over_only_when_nothing_is_missing(view: View, phase: str) -> None:
    step = decide(view, dataclasses.replace(SEEDING, phase=phase))
    if isinstance(step, HandOver):
        assert phase == "HandingOver" and view.wish and (view.node, view.epoch) == ("n1", 3)
        assert not (view.running or view.unhanded or view.lacks or view.overdue or view.deleting)
    if isinstance(step, Enter):
        assert view.wish and not view.lacks
        assert not (view.unseeded if step.phase == "Stopping" else view.running)


@given(views)
def test_after_the_hand_over_nothing_is_given_up(view: View) -> None:
    step = decide(view, Move("Starting", "n1", "n2", 4))
    assert isinstance(step, Wait | Done | Nothing)
    if isinstance(step, Done):
        assert step.void == ((view.node, view.epoch) != ("n2", 4))


@given(views, st.sampled_from(["Seeding", "Stopping", "HandingOver"]))
def test_whoever_takes_the_wish_back_gets_it_back(view: View, phase: str) -> None:
    view = dataclasses.replace(view, wish=False, deleting=False)
    assert isinstance(decide(view, dataclasses.replace(SEEDING, phase=phase)), GiveUp)

"""When a node may be declared dead, and when it must not be."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.takeover import Dead, Hold, Verdict, Wait, Watched, judge, last_sign_s, next_reading_s
from primordia.domain.timings import Timings

USUAL = Timings()
GONE_S = 100.0


def node(name: str, rack: str = "", **fields: object) -> Watched:
    return dataclasses.replace(Watched(name, rack or f"r-{name}", life=7), **fields)  # type: ignore[arg-type]


def gone(name: str = "n1", rack: str = "", **fields: object) -> Watched:
    return node(name, rack, present=False, **{"since_s": GONE_S, **fields})


def said(one: Watched, now: float = GONE_S, *others: Watched, override: bool = False) -> Verdict | None:
    rest = others or (node("n2"), node("n3"))
    return judge((one, *rest), USUAL, now, override=override).get(one.node)


def test_nothing_is_said_of_those_that_live_or_are_dead_already() -> None:
    assert said(node("n1")) is None
    assert said(gone(death="node")) is None
    assert said(gone(death="controllers")) is None
    assert said(gone(life=0), GONE_S + 1000) is None, "no life is known, so none can be ended"


def test_a_lease_that_was_seen_close_to_its_end_ran_out() -> None:
    for left, read in ((1.5, 98.6), (1.0, 99.0), (0.25, 99.8), (1.0, 98.0)):
        assert isinstance(said(gone(left_s=left, read_s=read)), Dead)


def test_a_lease_with_more_left_was_ended_and_is_waited_for() -> None:
    for left, read in ((1.6, 99.0), (2.0, 98.0), (6.0, 99.9), (None, 0.0)):
        verdict = said(gone(left_s=left, read_s=read))
        assert verdict == Wait(GONE_S + USUAL.deadline_s + USUAL.drift_s, verdict.reason)  # type: ignore[union-attr]


def test_one_that_went_earlier_than_it_had_to_was_ended_by_a_hand() -> None:
    assert isinstance(said(gone(left_s=1.5, read_s=99.9)), Wait)


def test_a_reading_of_nothing_is_the_answer_for_a_lease_that_was_ended_too() -> None:
    assert isinstance(said(gone(left_s=0.0, read_s=99.9)), Wait)


def test_an_old_reading_says_nothing() -> None:
    assert isinstance(said(gone(left_s=1.0, read_s=GONE_S - 60)), Wait)


def test_its_own_deadline_and_the_drift_pass_here() -> None:
    end = GONE_S + USUAL.deadline_s + USUAL.drift_s
    assert isinstance(said(gone(), end - 0.01), Wait)
    assert isinstance(said(gone(), end), Dead)


def test_one_that_was_never_seen_has_its_grace() -> None:
    absent = gone(from_start=True, left_s=1.0, read_s=99.0)
    assert isinstance(said(absent, GONE_S + USUAL.absent_grace_s - 0.1), Wait)
    assert isinstance(said(absent, GONE_S + USUAL.absent_grace_s), Dead)


def test_maintenance_and_a_soup_of_one() -> None:
    late = GONE_S + 1000
    assert said(gone(maintenance=True), late) == Wait(None, "It is in maintenance, and is not declared dead.")
    assert isinstance(judge((gone(),), USUAL, late)["n1"], Wait)


def test_one_that_was_taken_out_of_the_soup_has_no_life_and_no_hold() -> None:
    left = [gone(f"n{i}", life=0, left=True, from_start=True) for i in range(3)]
    assert all(isinstance(each, Wait) for each in judge((*left, node("n4")), USUAL, GONE_S + 29).values())
    assert all(isinstance(each, Dead) for each in judge((*left, node("n4")), USUAL, GONE_S + 30).values())
    assert isinstance(said(gone(), GONE_S + 60, *left, node("n5")), Dead), "those who left do not count"


# ---------------------------------------------------------------- the hold


def test_a_rack_that_goes_is_no_hold_whatever_its_size() -> None:
    lost = [gone(f"a{number}", "r1") for number in range(4)]
    verdicts = judge((*lost, node("b", "r2"), node("c", "r3")), USUAL, GONE_S + 60)
    assert all(isinstance(verdict, Dead) for verdict in verdicts.values()) and len(verdicts) == 4


def test_a_third_on_several_racks_is_no_hold_and_more_is() -> None:
    def soup(away: int) -> tuple[Watched, ...]:
        return tuple(gone(f"n{i}") if i < away else node(f"n{i}") for i in range(6))

    late = GONE_S + 60
    assert all(isinstance(each, Dead) for each in judge(soup(2), USUAL, late).values())
    held = judge(soup(3), USUAL, late)
    assert all(isinstance(each, Hold) and "3 of 6 nodes, on 3 racks" in each.reason for each in held.values())
    assert all(isinstance(each, Dead) for each in judge(soup(3), USUAL, late, override=True).values())
    assert all(isinstance(each, Wait) for each in judge(soup(3), USUAL, GONE_S + 1, override=True).values())


def test_one_after_the_other_is_no_hold() -> None:
    apart = [gone(f"n{i}", since_s=GONE_S + i * (USUAL.ttl_s + 0.1)) for i in range(3)]
    verdicts = judge((*apart, node("n4"), node("n5")), USUAL, GONE_S + 100)
    assert all(isinstance(each, Dead) for each in verdicts.values())


def test_a_proof_speaks_for_itself_and_does_not_count() -> None:
    proved = [gone(f"p{i}", death="node") for i in range(3)]
    assert isinstance(said(gone(), GONE_S + 60, *proved, node("n2")), Dead)


def test_those_the_controllers_declared_still_count() -> None:
    assert isinstance(said(gone(), GONE_S + 60, gone("n2", death="controllers"), node("n3")), Hold)


def test_those_that_are_about_to_go_count() -> None:
    ran_out = gone(left_s=1.0, read_s=99.0)
    assert isinstance(said(ran_out, GONE_S, node("n2", left_s=1.5, read_s=99.9), node("n3")), Hold)
    assert isinstance(said(ran_out, GONE_S, node("n2", ending=True), node("n3")), Hold), "nothing was left of that one"
    assert isinstance(said(ran_out, GONE_S, node("n2", left_s=5.5, read_s=99.9), node("n3")), Dead)
    assert isinstance(said(ran_out, GONE_S, node("n2", left_s=1.5, read_s=60.0), node("n3")), Dead), "long ago"


def test_nodes_of_no_rack_count_as_racks_of_their_own() -> None:
    away = [dataclasses.replace(gone(f"n{i}"), rack="") for i in range(2)]
    verdicts = judge((*away, node("n3")), USUAL, GONE_S + 60)
    assert all(isinstance(each, Hold) for each in verdicts.values())


# ---------------------------------------------------------------- readings


def test_a_lease_is_read_close_to_its_end_however_it_is_renewed() -> None:
    """Whenever the renewals stop, some reading above zero falls into the last 1.5 s, and the engine is asked rarely before."""
    for stops in (0.0, 0.3, 0.9, 2.2, 3.1, 5.9):
        now, low, asked, renewed = 0.0, False, 0, 0.0
        while now < stops + USUAL.ttl_s:
            renewed = max(each for each in (i * 1.0 for i in range(100)) if each <= min(now, stops))
            left = float(int(renewed + USUAL.ttl_s - now))  # whole seconds, as the engine tells
            if renewed + USUAL.ttl_s <= now:
                break
            low = low or 0 < left <= USUAL.takeover_ttl_s
            asked += 1
            now += next_reading_s(left, USUAL)
        assert low and asked < 16


def test_the_last_sign_is_the_deadline_after_the_last_renewal_that_there_can_have_been() -> None:
    deadline_s = USUAL.deadline_s + USUAL.drift_s
    assert last_sign_s(gone(left_s=None), USUAL) == GONE_S + deadline_s
    assert last_sign_s(gone(left_s=1.0, read_s=99.0), USUAL) == 95.0 + deadline_s
    assert last_sign_s(gone(left_s=6.0, read_s=99.5), USUAL) == GONE_S + deadline_s, "it may have renewed after the reading"
    assert last_sign_s(gone(left_s=6.0, read_s=99.5, death="node"), USUAL) == GONE_S, "it had ended everything"


@given(
    renewed=st.floats(0, 50),
    ended=st.one_of(st.none(), st.floats(0, 6)),
    reads=st.lists(st.floats(0, 8), max_size=12),
    seen_late=st.floats(0, 3),
    wait=st.floats(0, 8),
)
def test_whoever_is_called_dead_has_passed_its_deadline(
    renewed: float, ended: float | None, reads: list[float], seen_late: float, wait: float
) -> None:
    """Renewed for the last time, then run out or ended by a hand; read at arbitrary moments, in whole seconds."""
    went = renewed + (USUAL.ttl_s if ended is None else ended)
    left_s, read_s = None, 0.0
    for after in sorted(reads):
        at = renewed + after
        left = float(int(renewed + USUAL.ttl_s - at)) if at < went else 0.0
        if left > 0:
            left_s, read_s = left, at
    away = Watched("n1", "r1", 7, present=False, since_s=went + seen_late, left_s=left_s, read_s=read_s)
    now = went + seen_late + wait
    if isinstance(judge((away, node("n2"), node("n3")), USUAL, now)["n1"], Dead):
        assert now >= renewed + USUAL.deadline_s

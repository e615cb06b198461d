"""The lease machine: what it does next, and that it never believes longer than the engine grants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.lease import (
    Action,
    Claim,
    Failed,
    Free,
    Gone,
    Grant,
    Granted,
    LeaseState,
    Look,
    Mine,
    Outcome,
    Renew,
    Renewed,
    Taken,
    Wait,
    after,
    deadline,
    decide,
    holds,
)
from primordia.domain.timings import Timings

T = Timings()


def held(now: float = 100.0) -> LeaseState:
    state = LeaseState()
    for outcome in (Free(), Granted(7), Mine(7, 40), Renewed()):
        assert not isinstance(decide(state, T, now), Wait)
        state = after(state, T, outcome, now, now)
    return state


def test_the_way_to_a_held_key():
    state = LeaseState()
    expected: list[tuple[Action, Outcome]] = [
        (Look(), Free()),
        (Grant(6), Granted(7)),
        (Claim(7), Mine(7, 40)),
        (Renew(7), Renewed()),
        (Wait(101.0), Free()),
    ]
    for action, outcome in expected:
        assert decide(state, T, 100.0) == action
        if not isinstance(action, Wait):
            state = after(state, T, outcome, 100.0, 100.0)
    assert holds(state, T, 103.9) and not holds(state, T, 104.0)


def test_the_deadline_counts_from_before_the_renewal_was_sent():
    state = after(held(), T, Renewed(), sent=101.0, now=103.5)
    assert deadline(state, T) == 105.0


def test_a_failure_moves_no_deadline_and_is_tried_again_soon():
    state = held()
    before = deadline(state, T)
    for number in range(5):
        state = after(state, T, Failed("it is away"), 101.0 + number, 101.5 + number)
        assert deadline(state, T) == before
        assert state.next_s <= 101.5 + number + T.request_timeout_s
    assert state.trouble == "it is away"
    assert after(state, T, Renewed(), 107.0, 107.0).trouble == ""


def test_a_lost_lease_is_replaced_by_a_new_one_after_a_look():
    state = after(held(), T, Gone(), 101.0, 101.0)
    assert not holds(state, T, 101.0)
    assert decide(state, T, 101.0) == Look()
    assert decide(after(state, T, Free(), 101.0, 101.0), T, 101.0) == Grant(6)


def test_a_taken_key_is_looked_at_slowly_and_never_claimed():
    state = after(LeaseState(), T, Taken("another"), 100.0, 100.0)
    assert decide(state, T, 101.0) == Wait(105.0)
    assert decide(state, T, 105.0) == Look()
    assert state.taken_by == "another"


def test_a_found_key_of_our_own_is_renewed_before_it_is_believed():
    state = after(LeaseState(), T, Mine(9, 33), 100.0, 100.0)
    assert not holds(state, T, 100.0)
    assert decide(state, T, 100.0) == Renew(9)
    state = after(state, T, Renewed(), 100.0, 100.0)
    assert holds(state, T, 100.0) and state.create_revision == 33


def test_the_key_itself_is_looked_at_now_and_then():
    state = held()
    now = 100.0
    while not isinstance(decide(state, T, now), Look):
        state = after(state, T, Renewed(), now, now)
        now += 1.0
        assert now < 100 + 2 * T.check_every_s
    state = after(state, T, Free(), now, now)
    assert not holds(state, T, now) and decide(state, T, now) == Grant(6)


class Engine:
    """One key with leases, by the engine's own clock; `now` only grows."""

    def __init__(self) -> None:
        self.ends: dict[int, float] = {}
        self.key: tuple[int, str, int] | None = None
        self.revision = 1
        self.grants = 0

    def perform(self, action: Action, who: str, now: float) -> Outcome:
        self.ends = {lease: end for lease, end in self.ends.items() if end > now}
        if self.key is not None and self.key[0] not in self.ends:
            self.key = None
        if isinstance(action, Grant):
            self.grants += 1
            self.ends[self.grants] = now + action.ttl_s
            return Granted(self.grants)
        if isinstance(action, Renew):
            if action.lease not in self.ends:
                return Gone()
            self.ends[action.lease] = now + T.ttl_s
            return Renewed()
        if isinstance(action, Claim) and self.key is None:
            if action.lease not in self.ends:
                return Gone()
            self.revision += 1
            self.key = (action.lease, who, self.revision)
        if self.key is None:
            return Free()
        lease, holder, revision = self.key
        return Mine(lease, revision) if holder == who else Taken(holder)


steps = st.lists(
    st.tuples(st.sampled_from("ab"), st.floats(0, 3), st.floats(0, 1), st.sampled_from(["ok", "lost", "undone"])),
    min_size=5,
    max_size=120,
)


@given(steps)
def test_two_holders_never_believe_at_once_whatever_is_late_or_lost(story):
    """Requests take time before and after the engine sees them, get lost, or lose their answers."""
    engine, now = Engine(), 100.0
    states = {"a": LeaseState(), "b": LeaseState()}
    for who, pause, delay, fate in story:
        now += pause
        action = decide(states[who], T, now)
        if isinstance(action, Wait):
            continue
        sent, now = now, now + delay
        outcome: Outcome = Failed("away") if fate == "undone" else engine.perform(action, who, now)
        now += delay
        if fate == "lost":
            outcome = Failed("the answer was lost")
        states[who] = after(states[who], T, outcome, sent, now)
        believing = [name for name, state in states.items() if holds(state, T, now)]
        assert len(believing) <= 1
        for name in believing:
            assert engine.key is not None and engine.key[1] == name and engine.ends[engine.key[0]] > now

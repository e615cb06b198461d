"""The fence's decisions: when what a node runs must stand, may go on, and must end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.fence import (
    Action,
    AskPeers,
    DaemonView,
    FenceState,
    Freeze,
    Kill,
    LeaseView,
    Rest,
    Thaw,
    View,
    after,
    decide,
    ended_by,
    observe,
    stands_from,
)
from primordia.domain.timings import Timings

T = Timings()
OTHERS = frozenset({"n2", "n3"})
RUNS = FenceState(until=104.0, seen_s=100.0)
STANDS = FenceState(until=104.0, frozen_s=104.0, seen_s=104.0, why="why")


def lease(life: int = 7, sent_s: float | None = 100.0, looked_s: float | None = 90.0, trouble: str = "") -> LeaseView:
    return LeaseView(life, sent_s, looked_s, trouble)


def view(now: float, held: LeaseView | None = None, **more: object) -> View:
    return View(**{"now": now, "lease": held or lease(), "others": OTHERS} | more)  # type: ignore[arg-type]


def act(state: FenceState, seen: View) -> Action:
    return decide(observe(state, T, seen), T, seen)


@pytest.mark.parametrize(
    ("name", "state", "seen", "expected"),
    [
        ("renewed", RUNS, view(101.0), Rest),
        ("the engine is away", RUNS, view(101.0, lease(trouble="no answer")), AskPeers),
        ("asked a moment ago", FenceState(104.0, asked_s=100.5), view(101.0, lease(trouble="no answer")), Rest),
        ("the next round is due", FenceState(104.0, asked_s=100.0), view(101.0, lease(trouble="no answer")), AskPeers),
        ("just before the deadline", RUNS, view(103.999), Rest),
        ("at the deadline", RUNS, view(104.0), Freeze),
        ("long after it, as after a suspend", RUNS, view(5000.0), Freeze),
        ("a full round in time", RUNS, view(104.0, lease(trouble="x"), round_s=103.0), AskPeers),
        ("a full round that began too late", RUNS, view(105.0, lease(trouble="x"), round_s=104.5), Freeze),
        ("a full round of long ago", RUNS, view(104.0, lease(trouble="x"), round_s=99.0), Freeze),
        ("a full round does not help a lost lease", RUNS, view(104.0, LeaseView(trouble="x"), round_s=103.0), Freeze),
        ("lost, before the deadline", RUNS, view(103.0, LeaseView()), Rest),
        ("lost, and no other in time", RUNS, view(104.0, LeaseView()), Freeze),
        ("another life, settled", RUNS, view(104.0, lease(8, 103.0)), Rest),
        ("its life is over", RUNS, view(101.0, LeaseView(ended="dead")), Kill),
        ("its life is over, and it stands", STANDS, view(110.0, LeaseView(ended="dead")), Kill),
        ("alone", RUNS, view(500.0, others=frozenset()), Rest),
        ("alone, and it stands", STANDS, view(500.0, others=frozenset()), Thaw),
        ("nobody knows who the others are", RUNS, view(104.0, others=None), Freeze),
        ("nothing ran yet", FenceState(), view(104.0, LeaseView()), Rest),
        ("stands, nothing is heard", STANDS, view(110.0), Rest),
        ("stands, renewed but not read", STANDS, view(110.0, lease(7, 109.0, 103.0)), Rest),
        ("stands, read but not renewed", STANDS, view(110.0, lease(7, 103.0, 109.0)), Rest),
        ("stands, both from before it stood", STANDS, view(104.5, lease(7, 103.9, 103.9)), Rest),
        ("stands, renewed and read", STANDS, view(110.0, lease(7, 109.0, 109.5)), Thaw),
        ("stands, renewed and read too long ago", STANDS, view(113.0, lease(7, 109.0, 109.5)), Rest),
        ("stands, lost", STANDS, view(110.0, LeaseView()), Rest),
        ("stands, the others have no engine", STANDS, view(110.0, lease(trouble="x"), round_s=109.5), Rest),
        ("stands, another life that may go on", STANDS, view(110.0, lease(8, 109.0, 109.5)), Thaw),
    ],
)
def test_what_is_done(name: str, state: FenceState, seen: View, expected: type) -> None:
    action = act(state, seen)
    assert type(action) is expected, (name, action)
    if not isinstance(action, Rest | AskPeers):
        assert action.why
    if isinstance(action, Rest):
        assert action.until > seen.now


def silence(daemon: DaemonView, seconds: int, step: float = 1.0) -> Action:
    state = FenceState(until=1e9)
    now, action = 100.0, Rest(0.0)
    while now <= 100.0 + seconds:
        seen = view(now, lease(sent_s=now), daemon=daemon)
        state = observe(state, T, seen)
        action = decide(state, T, seen)  # type: ignore[assignment]
        now += step
    return action


def test_a_silent_daemon_is_killed_with_what_it_ran_and_that_is_proved():
    assert isinstance(silence(DaemonView(9, 1.0), 29), Rest)
    killed = silence(DaemonView(9, 1.0), 30)
    assert isinstance(killed, Kill) and killed.prove and "30 s" in killed.why


@pytest.mark.parametrize("daemon", [DaemonView(9, None), DaemonView(9, 1.0, announced=True)])
def test_one_that_starts_or_was_announced_is_given_longer(daemon: DaemonView):
    assert isinstance(silence(daemon, 89), Rest)
    assert isinstance(silence(daemon, 90), Kill)


def test_no_daemon_is_no_silence():
    assert isinstance(silence(DaemonView(0, 1.0), 300), Rest)


def test_time_in_which_nobody_looked_is_not_the_daemons():
    assert isinstance(silence(DaemonView(9, 1.0), 400, step=100.0), Rest)


def test_a_beat_or_another_process_begins_the_count_anew():
    state = FenceState(until=1e9, daemon_pid=9, beat=1.0, silence_s=29.5, seen_s=100.0)
    assert observe(state, T, view(101.0, daemon=DaemonView(9, 2.0))).silence_s == 0
    assert observe(state, T, view(101.0, daemon=DaemonView(10, 1.0))).silence_s == 0
    assert observe(state, T, view(101.0, daemon=DaemonView(9, 1.0))).silence_s == 30.5


@pytest.mark.parametrize(
    ("ran", "life", "previous", "death", "ends"),
    [
        (None, 9, 5, 5, False),
        (9, 9, None, 0, False),
        (5, 9, 5, 0, False),
        (5, 9, 5, 4, False),
        (5, 9, 5, 5, True),
        (5, 9, 7, 7, True),
        (5, 9, 7, 0, True),
        (5, 9, 0, 0, True),
        (5, 9, None, 0, True),
        (0, 9, 5, 0, True),
        (0, 9, 0, 0, False),
    ],
)
def test_what_ran_before_a_new_life_goes_on_only_if_nobody_can_have_taken_it(ran, life, previous, death, ends):
    assert bool(ended_by(ran, life, previous, death)) == ends


def test_after_a_kill_nothing_runs_so_nothing_need_stand():
    state = after(STANDS, Kill("x", prove=True), 110.0, 111.0)
    assert (state.until, state.frozen_s) == (None, None)
    assert stands_from(state, view(111.0)) is None
    assert stands_from(RUNS, view(101.0)) == 104.0
    assert stands_from(RUNS, view(101.0, others=frozenset())) is None


# ---------------------------------------------------------------- a node, an engine and time

FREEZE_TAKES_S = 0.05


class Node:
    """A node's fence and keeper against an engine that may be cut off at any time; its key may be taken meanwhile."""

    def __init__(self, others: frozenset[str]) -> None:
        self.others = others
        self.state = FenceState()
        self.life, self.dead_life, self.lives = 1, 0, 1
        self.key_ends = 6.0
        self.sent: float | None = 0.0
        self.looked: float | None = 0.0
        self.settled = True
        self.ended = ""
        self.trouble = ""
        self.round_s: float | None = None
        self.ran_under = 1
        self.thawed_under: list[tuple[int, int]] = []

    @property
    def runs(self) -> bool:
        return self.state.frozen_s is None

    def expire(self, now: float, declare: bool) -> None:
        """The engine's side: the lease ends, and the controllers may declare it."""
        if now >= self.key_ends and declare and self.dead_life < self.lives:
            self.dead_life = self.lives

    def hear(self, now: float, delay: float, answers: bool) -> None:
        """One request of the keeper, begun at `now` and answered after `delay`; it reached the engine at once."""
        if not answers:
            self.trouble = "no answer"
            return
        self.trouble = ""
        if now >= self.key_ends:  # lost: a new life, and what becomes of the one before
            before, self.lives = self.lives, self.lives + 1
            self.key_ends = now + 6.0
            self.ended = ended_by(self.ran_under, self.lives, before, self.dead_life)
            self.settled = not self.ended
            if self.settled:
                self.life = self.ran_under = self.lives
        else:
            self.key_ends = now + 6.0
        self.sent = self.looked = now

    def turn(self, now: float) -> None:
        held = LeaseView(
            self.life if self.settled else 0, self.sent if self.settled else None, self.looked, self.trouble, self.ended
        )
        seen = View(now, held, self.others, self.round_s)
        self.state = observe(self.state, T, seen)
        action = decide(self.state, T, seen)
        if isinstance(action, Thaw):
            self.thawed_under.append((self.ran_under, self.dead_life))
        if isinstance(action, Kill):
            self.ran_under, self.settled, self.ended, self.life = self.lives, True, "", self.lives
        self.state = after(self.state, action, now, now + FREEZE_TAKES_S * isinstance(action, Freeze))


@given(
    st.lists(
        st.tuples(st.sampled_from([0.02, 0.1, 0.5, 1.0, 3.0, 7.0]), st.floats(0, 0.5), st.booleans(), st.booleans()),
        min_size=1,
        max_size=120,
    )
)
def test_nothing_runs_once_it_may_run_elsewhere_and_no_dead_life_is_thawed(steps):
    """The fence is looked at when it asked to be; the engine declares a death whenever it may."""
    node, now = Node(OTHERS), 0.0
    for pause, delay, answers, declares in steps:
        end = now + pause
        while now < end:
            node.turn(now)
            node.expire(now, declares)
            if node.runs and node.ran_under <= node.dead_life:
                raise AssertionError(f"life {node.ran_under} runs at {now:.2f} and is dead")
            action = decide(node.state, T, View(now, others=OTHERS))
            wake = action.until if isinstance(action, Rest) else now
            now = min(end, max(wake, now + 0.01))
        node.hear(now, delay, answers)
    assert all(ran > dead for ran, dead in node.thawed_under)


@given(st.lists(st.tuples(st.floats(0.01, 60.0), st.booleans()), max_size=50))
def test_a_soup_of_one_node_never_freezes(steps):
    node, now = Node(frozenset()), 0.0
    for pause, answers in steps:
        now += pause
        node.turn(now)
        assert node.state.frozen_s is None
        node.hear(now, 0.0, answers)

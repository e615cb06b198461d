"""Contact with the engine; and that no node runs on by the others' word while one of them may declare it dead."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from primordia.domain.contact import Contact, fit_to_lead, has_engine, heard, why_unsure
from primordia.domain.fence import AskPeers, FenceState, Freeze, LeaseView, View, after, decide, observe
from primordia.domain.timings import Timings

T = Timings()


def test_contact_lasts_from_before_the_request_and_breaks_without_answers():
    contact = heard(None, T, 100.0, 100.2)
    assert contact == Contact(100.2, 102.0)
    assert has_engine(contact, 101.9) and not has_engine(contact, 102.0) and not has_engine(None, 0.0)
    assert heard(contact, T, 101.0, 101.3) == Contact(100.2, 103.0)
    assert heard(contact, T, 101.9, 102.1) == Contact(102.1, 103.9), "a break begins a new run"


def test_nobody_is_declared_dead_by_one_that_has_just_come_back():
    contact = Contact(100.0, 200.0)
    assert "just now" in why_unsure(None, T, 0.0)
    assert "just now" in why_unsure(Contact(100.0, 150.0), T, 150.0)
    assert "4.0 s more" in why_unsure(contact, T, 100.5)
    assert why_unsure(contact, T, 104.5) == ""


def test_one_whose_supervisor_hangs_does_not_lead():
    assert fit_to_lead(None, T, 1e6)
    assert fit_to_lead(Contact(0.0, 100.0), T, 105.9) and not fit_to_lead(Contact(0.0, 100.0), T, 106.0)


@dataclass
class Node:
    """A supervisor that tries the engine each second, and its fence."""

    name: str
    phase: float
    sent: float | None = None
    next_try: float = 0.0
    trouble: str = ""
    contact: Contact | None = None
    fence: FenceState = field(default_factory=FenceState)
    round_begun: float | None = None
    round_s: float | None = None

    def try_engine(self, now: float, answers: bool) -> None:
        if now < self.next_try:
            return
        self.next_try = now + (T.renew_every_s if answers else T.request_timeout_s)
        if answers:
            self.sent, self.trouble, self.contact = now, "", heard(self.contact, T, now, now)
        else:
            self.trouble = "no answer"


STEP_S = 0.25
WORLDS = st.lists(
    st.tuples(st.sampled_from([0.25, 0.75, 1.5, 2.5, 4.0, 6.0]), st.tuples(st.booleans(), st.booleans(), st.booleans())),
    min_size=1,
    max_size=14,
)


@given(WORLDS, st.lists(st.floats(0, 0.99), min_size=3, max_size=3))
def test_whoever_may_be_declared_dead_stands_whatever_the_engine_does(worlds, phases):
    """In each stretch of time each node reaches the engine or not: an engine that is slow, cut off, gone, or any of these by
    turns. Leases run out by the engine's clock even then, which is worse than any engine; the leader is on every node."""
    nodes = [Node(name, phase, next_try=phase) for name, phase in zip("abc", phases, strict=True)]
    now = 0.0
    for length, reach in [(2.0, (True, True, True)), *worlds]:
        end = now + length
        while now < end:
            for node, answers in zip(nodes, reach, strict=True):
                node.try_engine(now, answers)
            for node in nodes:
                turn(node, nodes, now)
            for node in nodes:
                gone = node.sent is not None and now >= node.sent + T.ttl_s
                sure = any(why_unsure(other.contact, T, now) == "" for other in nodes if other is not node)
                assert not (gone and sure and node.fence.frozen_s is None), (node.name, now)
            now += STEP_S


def turn(node: Node, nodes: list[Node], now: float) -> None:
    others = [each for each in nodes if each is not node]
    if node.round_begun is not None:  # the answers come a step after the questions
        if not any(has_engine(each.contact, now) or not each.trouble for each in others):
            node.round_s = node.round_begun
        node.round_begun = None
    lease = LeaseView(7 if node.sent is not None else 0, node.sent, node.sent, node.trouble)
    view = View(now, lease, frozenset(each.name for each in others), node.round_s)
    node.fence = observe(node.fence, T, view)
    action = decide(node.fence, T, view)
    if isinstance(action, Freeze | AskPeers):
        node.fence = after(node.fence, action, now, now)
    if isinstance(action, AskPeers):
        node.round_begun = now

"""Which node is asked for a box, and in which order the others."""

from __future__ import annotations

import random

from primordia.domain.claiming import Host, order


def test_a_waiting_fork_comes_before_everything() -> None:
    hosts = [
        Host("empty", True, free_share=0.9),
        Host("frozen", True, frozen=True, free_share=0.2),
        Host("warm", True, warm=1, frozen=True, free_share=0.1),
        Host("warmer", True, warm=3, frozen=True, free_share=0.3),
        Host("cordoned", False, warm=9, frozen=True, free_share=1.0),
    ]
    for seed in range(20):
        random.Random(seed).shuffle(hosts)
        assert order(hosts) == ("warmer", "warm", "frozen", "empty")


def test_what_others_are_about_to_take_does_not_wait() -> None:
    hosts = [Host("taken", True, warm=-1, frozen=True, free_share=0.9), Host("warm", True, warm=1, frozen=True)]
    assert order(hosts) == ("warm", "taken")


def test_of_equals_the_name_decides_and_of_none_nobody() -> None:
    assert order([Host("b", True), Host("a", True)]) == ("a", "b")
    assert order([]) == order([Host("a", False)]) == ()
